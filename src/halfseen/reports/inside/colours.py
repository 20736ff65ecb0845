"""Three principal components of the patch tokens as red, green and blue, layer by layer."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from halfseen.reports.inside.looked_at import Inside
from halfseen.reports.inside.packing import Packed, as_base64, plan_layers
from halfseen.reports.inside.similarity import layer_words

BUDGET = 800_000
"""Characters of all colours together."""


class Colours(NamedTuple):
    """What the page can show."""

    encoders: list["ColourEncoder"]
    images: int
    blocks: list[Packed]
    notes: list[str]


class ColourEncoder(NamedTuple):
    """One encoder's maps, a layer behind the other in its block; a layer holds [images, rows, columns, 3]."""

    number: int
    label: str
    layers: list[str]
    short: list[str]
    grids: list[tuple[int, int]]
    block: str


def build_colours(inside: Inside, budget: int = BUDGET) -> Colours | None:
    """None where no encoder has colours."""
    found = []
    for number, each in enumerate(inside.encoders):
        names = [str(name) for name in each.arrays.get("similarity/layers", np.empty(0, np.str_))]
        names = [name for name in names if f"similarity/colours.{name}" in each.arrays]
        if names:
            found.append((number, each, names))
    if not found:
        return None
    images = min(len(each.arrays[f"similarity/colours.{names[-1]}"]) for _, each, names in found)
    sizes = [
        max(int(np.prod(each.arrays[f"similarity/colours.{name}"].shape[1:])) for name in names)
        for _, each, names in found
    ]
    plan = plan_layers([len(names) for _, _, names in found], images, sizes, budget)
    if plan is None:
        return Colours([], 0, [], ["The colours are left out: they are too large for this page."])
    encoders, blocks, notes = [], [], []
    for (number, each, names), places in zip(found, plan.layers, strict=True):
        kept = [names[place] for place in places]
        stacks = [_bytes(each.arrays[f"similarity/colours.{name}"][: plan.images]) for name in kept]
        blocks.append(Packed(f"colours-{number}", as_base64(np.concatenate([stack.ravel() for stack in stacks]))))
        depth = each.files.row.num_layers
        encoders.append(
            ColourEncoder(
                number,
                each.label,
                [layer_words(name, depth) for name in kept],
                ["final" if name == "final" else name for name in kept],
                [(int(stack.shape[1]), int(stack.shape[2])) for stack in stacks],
                f"colours-{number}",
            )
        )
        if len(kept) < len(names):
            notes.append(f"{each.label}: {len(kept)} of {len(names)} layers, evenly chosen.")
    if plan.images < images:
        notes.append(f"The first {plan.images} of {images} images, so that the page stays small.")
    return Colours(encoders, plan.images, blocks, notes)


def _bytes(colours: NDArray[np.generic]) -> NDArray[np.uint8]:
    """In 0..255, whether they are kept as bytes or as shares."""
    if colours.dtype == np.uint8:
        return colours.astype(np.uint8)
    found: NDArray[np.uint8] = np.rint(np.nan_to_num(np.asarray(colours, dtype=np.float64)).clip(0, 1) * 255).astype(
        np.uint8
    )
    return found
