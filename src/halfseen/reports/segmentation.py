"""Examples of a segmentation: the image, its true classes and the predicted ones, in the same colours."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from halfseen.reports.inside.packing import encoded, picture_uri
from halfseen.reports.runfiles import SegmentationSet
from halfseen.reports.tables import visible

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#e69f00", "#999933", "#882255", "#44aa99")
"""Classes in order of their numbers, told apart by colour-blind readers as far as so many can be."""
NO_CLASS = "#ffffff"
LARGEST_PICTURE = 192


class LegendEntry(NamedTuple):
    """A class and its colour; `hue` names no class where the colour is that of pixels without one."""

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
    """A run's examples."""

    triples: list[Triple]
    legend: list[LegendEntry]
    width: int
    height: int
    note: str


def view_segmentation(examples: SegmentationSet) -> SegmentationView:
    names = [visible(name) for name in examples.names]
    colours = class_colours(len(names))
    table = np.array([*(_rgb(colour) for colour in colours), *([_rgb(NO_CLASS)] * (256 - len(colours)))], np.uint8)
    triples = []
    for number, (image, target, prediction, miou) in enumerate(
        zip(examples.images, examples.targets, examples.predictions, examples.miou, strict=True), start=1
    ):
        known = target != 255
        right = float((target == prediction)[known].mean()) if known.any() else float("nan")
        score = "mean IoU not defined" if np.isnan(miou) else f"mean IoU {100 * miou:.1f} %"
        words = f"{score}, {100 * right:.1f} % of the pixels right; shows {_listed(target, names)}"
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
    note = "" if len(names) <= len(COLOURS) else f"{len(names)} classes: neighbours in the legend look alike."
    height, width = examples.images.shape[1:3]
    return SegmentationView(triples, legend, int(width), int(height), note)


def class_colours(count: int) -> list[str]:
    """A colour for each class: a palette of ten, for more a circle of hues in three lightnesses."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    import colorsys

    found = []
    for number in range(count):
        red, green, blue = colorsys.hls_to_rgb(number * 0.61803 % 1, (0.4, 0.55, 0.7)[number % 3], 0.6)
        found.append(f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}")
    return found


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
