"""Nearest images of whole and of half-seen ones, as the analysis found them."""

from typing import NamedTuple

import numpy as np

from halfseen.reports.inside.looked_at import Inside, Looked

Row = list[tuple[int, float]]
"""Neighbours: (place among all images, cosine similarity), the nearest first."""


class Neighbours(NamedTuple):
    """`images` queries, each with a row of `most` neighbours for the whole image and one for each of its masks."""

    encoders: list["NeighbourEncoder"]
    images: int
    most: int
    notes: list[str]


class NeighbourEncoder(NamedTuple):
    """One encoder's neighbours.

    Attributes:
        whole: of each query; empty where the analysis is older than these.
        masked: of each query and mask.
        hidden: of each query and mask, '1' for each hidden patch, row by row.
    """

    number: int
    label: str
    grid: tuple[int, int]
    whole: list[Row]
    masked: list[list[Row]]
    hidden: list[list[str]]
    masks: int


def build_neighbours(inside: Inside) -> Neighbours | None:
    """None where there are neither neighbours nor a sentence about them."""
    encoders = [_view(number, each) for number, each in enumerate(inside.encoders)]
    encoders = [each for each in encoders if each.whole or each.masked]
    notes = inside.notes("masking", ("Left out", "Retrieval"))
    if not encoders:
        return Neighbours([], 0, 0, notes) if notes else None
    images = max(max(len(each.whole), len(each.masked)) for each in encoders)
    rows = [row for each in encoders for row in (*each.whole, *(row for masks in each.masked for row in masks))]
    return Neighbours(encoders, images, max(map(len, rows), default=0), notes)


def _view(number: int, encoder: Looked) -> NeighbourEncoder:
    arrays = encoder.arrays
    whole: list[Row] = []
    if "rank/nearest" in arrays and "rank/nearest_similarity" in arrays:
        whole = [_row(*pair) for pair in zip(arrays["rank/nearest"], arrays["rank/nearest_similarity"], strict=True)]
    masked: list[list[Row]] = []
    hidden: list[list[str]] = []
    if "masking/nearest" in arrays and "masking/hidden" in arrays:
        shown = arrays["masking/hidden"]
        count = len(shown)
        masked = [
            [_row(*pair) for pair in zip(places, values, strict=True)]
            for places, values in zip(
                arrays["masking/nearest"][:count], arrays["masking/similarity"][:count], strict=True
            )
        ]
        hidden = [["".join("1" if patch else "0" for patch in mask) for mask in masks] for masks in shown]
    return NeighbourEncoder(
        number, encoder.label, encoder.grid, whole, masked, hidden, max(map(len, masked), default=0)
    )


def _row(places: np.ndarray, values: np.ndarray) -> Row:
    found = zip(places, values, strict=True)
    # What isn't finite is no similarity, and no JSON.
    return [(int(place), round(float(value), 3)) for place, value in found if np.isfinite(value)]
