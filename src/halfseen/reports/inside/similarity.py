"""The patch explorer's numbers: cosine similarity of every pair of patches, layer by layer."""

from typing import NamedTuple

import numpy as np

from halfseen.reports.inside.looked_at import Inside, Looked
from halfseen.reports.inside.packing import Packed, as_base64, plan_layers, quantise_pairs

BUDGET = 4_000_000
"""Characters of all similarities together."""
MOST_SIDE_BY_SIDE = 4


class Explorer(NamedTuple):
    """What the explorer can show.

    Attributes:
        encoders: for each, in the page's order: its number among the page's encoders, its label, layers in words, grid.
        images: how many of the shown images.
        steps: positions of the layer slider: the most layers that an encoder has.
        blocks: the numbers.
        notes: what was left out.
    """

    encoders: list["ExplorerEncoder"]
    images: int
    steps: int
    blocks: list[Packed]
    notes: list[str]


class ExplorerEncoder(NamedTuple):
    """One map of the explorer.

    Attributes:
        grids: (rows, columns) of the patches of each layer.
        ranges: (similarity of byte 0, similarity of byte 255) of each layer.
        block: key of the bytes: layer by layer, image by image, the upper triangle of all pairs.
    """

    number: int
    label: str
    layers: list[str]
    grids: list[tuple[int, int]]
    ranges: list[tuple[float, float]]
    block: str


def build_explorer(inside: Inside, budget: int = BUDGET) -> Explorer | None:
    """The similarities that fit into the page; None where no analysis kept any."""
    found = [(number, each, _layers(each)) for number, each in enumerate(inside.encoders)]
    found = [(number, each, names) for number, each, names in found if names]
    if not found:
        return None
    images = min(len(each.arrays[f"similarity/pairs.{names[-1]}"]) for _, each, names in found)
    sizes = [max(_triangle(each, name) for name in names) for _, each, names in found]
    plan = plan_layers([len(names) for _, _, names in found], images, sizes, budget)
    notes = []
    while plan is None and found:
        notes.append(f"{found[-1][1].label}: left out, its similarities are too large for this page.")
        found, sizes = found[:-1], sizes[:-1]
        plan = plan_layers([len(names) for _, _, names in found], images, sizes, budget)
    if plan is None or not found:
        return None
    encoders, blocks = [], []
    for (number, each, names), places in zip(found, plan.layers, strict=True):
        kept = [names[place] for place in places]
        block = f"pairs-{number}"
        triangles = [quantise_pairs(each.arrays[f"similarity/pairs.{name}"][: plan.images]) for name in kept]
        blocks.append(Packed(block, as_base64(np.concatenate([part.values.ravel() for part in triangles]))))
        depth = each.files.row.num_layers
        grids = [_grid(each, name) for name in kept]
        words = [layer_words(name, depth) for name in kept]
        ranges = [(part.low, part.high) for part in triangles]
        encoders.append(ExplorerEncoder(number, each.label, words, grids, ranges, block))
        if len(kept) < len(names):
            notes.append(
                f"{each.label}: {len(kept)} of {len(names)} layers, evenly chosen, so that the page stays small."
            )
    if plan.images < images:
        notes.append(f"The first {plan.images} of {images} images, so that the page stays small.")
    notes += inside.notes("similarity")
    return Explorer(encoders, plan.images, max(len(each.layers) for each in encoders), blocks, notes)


def layer_words(name: str, depth: int) -> str:
    return "final norm" if name == "final" else f"block {name} of {depth}"


def _layers(encoder: Looked) -> list[str]:
    """Names of the layers that have similarities, in their order."""
    names = [str(name) for name in encoder.arrays.get("similarity/layers", np.empty(0, np.str_))]
    return [name for name in names if f"similarity/pairs.{name}" in encoder.arrays]


def _triangle(encoder: Looked, name: str) -> int:
    patches = int(encoder.arrays[f"similarity/pairs.{name}"].shape[-1])
    return patches * (patches + 1) // 2


def _grid(encoder: Looked, name: str) -> tuple[int, int]:
    rows, columns = (int(side) for side in encoder.arrays[f"similarity/grid.{name}"])
    if rows * columns != encoder.arrays[f"similarity/pairs.{name}"].shape[-1]:
        raise ValueError(f"similarity/grid.{name} doesn't fit its pairs")
    return rows, columns
