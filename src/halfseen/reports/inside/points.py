"""A map of all analysed images: near each other where the encoder sees the same."""

from typing import NamedTuple

import numpy as np

from halfseen.reports.inside.looked_at import Inside

PALETTE = 6
"""Colours of classes that a colour-blind reader can tell apart; with two shapes twice as many classes."""
WAYS = {"tsne": "t-SNE", "pca": "PCA"}


class Points(NamedTuple):
    """What the page can show.

    Attributes:
        ways: (key, name) of the projections, t-SNE first where it is there.
        classes: names with the number of images of each; empty without labels.
        many: more classes than colours and shapes: only a chosen one is coloured.
    """

    encoders: list["PointEncoder"]
    ways: list[tuple[str, str]]
    classes: list[tuple[str, int]]
    labels: list[int]
    many: bool


class PointEncoder(NamedTuple):
    """One encoder's maps: way -> x and y of every image in [0, 1], one aspect, y upwards."""

    number: int
    label: str
    places: dict[str, list[tuple[float, float]]]


def build_points(inside: Inside) -> Points | None:
    """None where the analysis has no places for images."""
    n = len(inside.labels)
    encoders = []
    for number, each in enumerate(inside.encoders):
        places = {
            way: _unit(np.asarray(each.arrays[f"embedding/images_{way}"], dtype=np.float64))
            for way in WAYS
            if f"embedding/images_{way}" in each.arrays and len(each.arrays[f"embedding/images_{way}"]) == n
        }
        if places:
            encoders.append(PointEncoder(number, each.label, places))
    if not encoders:
        return None
    labels = [int(label) for label in inside.labels]
    used = sorted({label for label in labels if 0 <= label < len(inside.class_names)})
    place = {label: number for number, label in enumerate(used)}
    classes = [(inside.class_of(labels.index(label)), labels.count(label)) for label in used]
    ways = [(way, name) for way, name in WAYS.items() if all(way in each.places for each in encoders)]
    ways = ways or [(way, name) for way, name in WAYS.items() if any(way in each.places for each in encoders)]
    return Points(
        [each for each in encoders if all(way in each.places for way, _ in ways)],
        ways,
        classes,
        [place.get(label, -1) for label in labels],
        len(classes) > 2 * PALETTE,
    )


def _unit(points: np.ndarray) -> list[tuple[float, float]]:
    """Into the unit square by one factor for both axes, so that distances keep their proportions."""
    points = np.nan_to_num(points)
    low, high = points.min(axis=0), points.max(axis=0)
    span = max(float((high - low).max()), 1e-12)
    placed = (points - (low + high) / 2) / span + 0.5
    return [(round(float(x), 4), round(float(y), 4)) for x, y in placed]
