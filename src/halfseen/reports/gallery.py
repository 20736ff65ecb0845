"""A run's reconstructions as small embedded pictures."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from halfseen.reports.inside.packing import picture_uri
from halfseen.reports.runfiles import PictureSet
from halfseen.reports.tables import visible

LARGEST_PICTURE = 128
"""Pictures are embedded with at most this many pixels a side, so that a report stays small enough for an e-mail."""


class Picture(NamedTuple):
    """A picture as a data URI."""

    uri: str
    width: int
    height: int
    alt: str


class PictureRow(NamedTuple):
    """One image's original, masked, predicted and pasted pictures."""

    name: str
    score: str
    pictures: list[Picture]


class PictureSetView(NamedTuple):
    """All images at one mask ratio."""

    share: str
    words: str
    rows: list[PictureRow]


class Gallery(NamedTuple):
    """A run's reconstructions; `start` is the set that is shown first."""

    note: str
    start: int
    shares: list[str]
    sets: list[PictureSetView]


def build_gallery(pictures: PictureSet) -> Gallery:
    # From little hidden to much; what was asked for first is shown first.
    order = [int(number) for number in np.argsort(pictures.hidden_share, kind="stable")]
    shares = [f"{100 * pictures.hidden_share[number]:.0f} %" for number in order]
    views = []
    for number, share in zip(order, shares, strict=True):
        stacks = {
            "original": pictures.original,
            "masked, hidden parts grey": pictures.masked[number],
            "predicted": pictures.predicted[number],
            "prediction pasted into the original": pictures.pasted[number],
        }
        rows = []
        for index in range(len(pictures.original)):
            name = visible(_file_name(str(pictures.paths[index])))
            shown = [_picture(stack[index], f"{name}: {kind}") for kind, stack in stacks.items()]
            rows.append(PictureRow(name, _score(pictures, number, index), shown))
        words = (
            f"{share} of the pixels hidden. On hidden pixels: PSNR {_mean(pictures.psnr_hidden[number])} dB, "
            f"SSIM {_mean(pictures.ssim_hidden[number], 3)}, mean of these {len(rows)} images; higher is better."
        )
        views.append(PictureSetView(share, words, rows))
    return Gallery(visible(pictures.note), order.index(0), [share.replace(" ", "\u00a0") for share in shares], views)


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1] or path


def _score(pictures: PictureSet, number: int, index: int) -> str:
    hidden, whole = pictures.psnr_hidden[number, index], pictures.psnr_whole[number, index]
    text = f"PSNR {hidden:.1f} dB on hidden pixels, {whole:.1f} dB pasted"
    similarity = pictures.ssim_hidden[number, index]
    return text if np.isnan(similarity) else f"{text}; SSIM {similarity:.3f} on hidden pixels"


def _mean(values: NDArray[np.float64], digits: int = 1) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.mean():.{digits}f}" if len(finite) else "not defined"


def _picture(pixels: NDArray[np.uint8], alt: str) -> Picture:
    image = Image.fromarray(pixels)
    if max(image.size) > LARGEST_PICTURE:
        image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE), Image.Resampling.LANCZOS)
    return Picture(picture_uri(np.asarray(image)), image.width, image.height, alt)
