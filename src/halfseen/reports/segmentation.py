"""Examples of a segmentation: the image, its true classes and the predicted ones, in the same colours."""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from halfseen.reports.inside.packing import encoded, picture_uri
from halfseen.reports.runfiles import SegmentationSet
from halfseen.reports.tables import visible

COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#e69f00", "#332288", "#44aa99", "#8c564b",
    "#f7b6d2", "#b2df8a",
)  # fmt: skip
"""Of the classes in order, told apart by colour-blind readers as far as so many can be."""
BACKGROUND = "#5b626c"
"""Quiet, so that the things stand out; for a class of that name."""
NO_CLASS = "#ffffff"
LARGEST_PICTURE = 192


class LegendEntry(NamedTuple):
    """A class and its colour."""

    name: str
    colour: str


class Triple(NamedTuple):
    """Image, true and predicted classes as data URIs, and the image's mean IoU in words."""

    image: str
    target: str
    prediction: str
    score: str
    words: str


class SegmentationView(NamedTuple):
    """Examples of a protocol."""

    protocol: str
    triples: list[Triple]
    legend: list[LegendEntry]
    width: int
    height: int
    note: str


def view_segmentation(protocol: str, examples: SegmentationSet) -> SegmentationView:
    names = [visible(name) for name in examples.names]
    colours = class_colours(names)
    table = np.array([*(_rgb(colour) for colour in colours), *([_rgb(NO_CLASS)] * (256 - len(colours)))], np.uint8)
    triples = []
    for number, (image, target, prediction, miou) in enumerate(
        zip(examples.images, examples.targets, examples.predictions, examples.miou, strict=True), start=1
    ):
        known = target != 255
        score = "mean IoU not defined" if np.isnan(miou) else f"mean IoU {100 * miou:.1f} %"
        right = f", {100 * (target == prediction)[known].mean():.1f} % of the pixels right" if known.any() else ""
        words = f"{score}{right}; shows {_listed(target, names)}"
        triples.append(
            Triple(
                picture_uri(_small(image, Image.Resampling.LANCZOS)),
                _flat(target, table),
                _flat(prediction, table),
                score,
                f"Example {number}: {words}",
            )
        )
    used = np.unique(np.concatenate([examples.targets.ravel(), examples.predictions.ravel()]))
    legend = [LegendEntry(names[label], colours[label]) for label in used if label < len(names)]
    if (used >= len(names)).any():
        legend.append(LegendEntry("no class", NO_CLASS))
    note = "" if len(legend) <= len(COLOURS) + 1 else f"{len(legend)} colours are more than can surely be told apart."
    height, width = examples.images.shape[1:3]
    return SegmentationView(visible(protocol), triples, legend, int(width), int(height), note)


def class_colours(names: Sequence[str]) -> list[str]:
    """A colour for each class: grey for a background, a palette for a dozen others, a circle of hues for more."""
    things = [name for name in names if name != "background"]
    if len(things) <= len(COLOURS):
        palette = list(COLOURS[: len(things)])
    else:
        hues = [number * 0.61803 % 1 for number in range(len(things))]
        palette = [_hexadecimal(hue, (0.4, 0.55, 0.7)[number % 3]) for number, hue in enumerate(hues)]
    following = iter(palette)
    return [BACKGROUND if name == "background" else next(following) for name in names]


def _hexadecimal(hue: float, lightness: float) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, 0.6))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _listed(target: NDArray[np.uint8], names: list[str]) -> str:
    shown = [names[label] for label in np.unique(target) if label < len(names)]
    return ", ".join(shown) or "no class"


def _small(pixels: NDArray[np.uint8], filter: Image.Resampling) -> NDArray[np.uint8]:
    image = Image.fromarray(pixels)
    if max(image.size) > LARGEST_PICTURE:
        image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE), filter)
    return np.asarray(image)


def _flat(classes: NDArray[np.uint8], table: NDArray[np.uint8]) -> str:
    """A map of classes as a PNG with a palette: each class keeps exactly one colour."""
    image = Image.fromarray(_small(classes, Image.Resampling.NEAREST))
    image.putpalette(table.ravel().tolist())
    return encoded(image, "PNG")
