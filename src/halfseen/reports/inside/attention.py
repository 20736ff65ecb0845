"""Attention maps of single queries, head by head, as the analysis kept them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from halfseen.reports.inside.looked_at import Inside, Looked
from halfseen.reports.inside.packing import Packed, as_base64, plan_layers

BUDGET = 1_400_000
"""Characters of all attention maps together."""


class Attention(NamedTuple):
    """What the page can show; `most_heads` is the largest number of heads of an encoder."""

    encoders: list["AttentionEncoder"]
    images: int
    most_heads: int
    blocks: list[Packed]
    notes: list[str]


class AttentionEncoder(NamedTuple):
    """One encoder's maps.

    Attributes:
        number: its place among the page's encoders.
        layers: the kept blocks in words.
        queries: in words.
        places: (row, column) of each query; None for the class token.
        peaks: largest weight of each map, per block, image, head and query; the bytes are relative to it.
    """

    number: int
    label: str
    layers: list[str]
    grid: tuple[int, int]
    heads: int
    queries: list[str]
    places: list[tuple[int, int] | None]
    peaks: list[float]
    block: str


def build_attention(inside: Inside, budget: int = BUDGET) -> Attention | None:
    """The maps that fit into the page; None where no encoder has any."""
    found = [(number, each) for number, each in enumerate(inside.encoders) if "attention/maps" in each.arrays]
    notes = inside.notes("attention")
    shapes = [each.arrays["attention/maps"].shape for _, each in found]
    if not found:
        return Attention([], 0, 0, [], notes) if notes else None
    images = min(shape[1] for shape in shapes)
    sizes = [int(np.prod(shape[2:])) for shape in shapes]
    plan = plan_layers([shape[0] for shape in shapes], images, sizes, budget)
    if plan is None:
        notes.append("Attention maps by head are left out: they are too large for this page.")
        return Attention([], 0, 0, [], notes)
    encoders, blocks = [], []
    for (number, each), places, shape in zip(found, plan.layers, shapes, strict=True):
        maps = np.asarray(each.arrays["attention/maps"][places, : plan.images], dtype=np.float32)
        peaks = np.nan_to_num(maps).max(axis=(-2, -1))
        blocks.append(Packed(f"attention-{number}", as_base64(_relative(maps, peaks))))
        queries = _queries(each)
        encoders.append(
            AttentionEncoder(
                number,
                each.label,
                [f"block {place + 1} of {shape[0]}" for place in places],
                (int(shape[-2]), int(shape[-1])),
                int(shape[2]),
                [_words(query) for query in queries[: shape[3]]],
                queries[: shape[3]],
                [float(f"{peak:.3g}") for peak in peaks.ravel()],
                f"attention-{number}",
            )
        )
        if len(places) < shape[0]:
            notes.append(
                f"{each.label}: {len(places)} of {shape[0]} blocks, evenly chosen, so that the page stays small."
            )
    if plan.images < images:
        notes.append(f"The first {plan.images} of {images} images, so that the page stays small.")
    return Attention(encoders, plan.images, max(each.heads for each in encoders), blocks, notes)


def _relative(maps: NDArray[np.float32], peaks: NDArray[np.float32]) -> NDArray[np.uint8]:
    shares = np.nan_to_num(maps) / np.maximum(peaks, 1e-12)[..., None, None]
    relative: NDArray[np.uint8] = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    return relative


def _queries(encoder: Looked) -> list[tuple[int, int] | None]:
    """Places of the queries; the class token's own map is the last where there is one more map than queries."""
    queries: list[tuple[int, int] | None] = [
        (int(row), int(column)) for row, column in np.asarray(encoder.arrays["attention/queries"])
    ]
    return [*queries, None]


def _words(query: tuple[int, int] | None) -> str:
    return "class token" if query is None else f"row {query[0] + 1}, column {query[1] + 1}"
