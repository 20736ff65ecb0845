"""Arrays and pictures as text in the page: quantised bytes in base64, small pictures as data URIs, within a budget."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LOSSLESS_SIDE = 64
"""Pictures of at most so many pixels a side are kept exactly."""
JPEG_QUALITY = 86


class Packed(NamedTuple):
    """Bytes as text, for a block of the page that is decoded when its section is first seen."""

    key: str
    text: str


class Plan(NamedTuple):
    """What of an array goes into the page.

    Attributes:
        layers: places of the layers that are kept, rising, for each encoder.
        images: how many images, from the first.
    """

    layers: list[list[int]]
    images: int


def plan_layers(counts: Sequence[int], images: int, sizes: Sequence[int], budget: int, fewest: int = 3) -> Plan | None:
    """The most layers, then the most images, that fit into a budget.

    Args:
        counts: layers that each encoder has.
        images: images that there are.
        sizes: bytes of one layer of one image, for each encoder.
        budget: characters of base64 for all together.
        fewest: layers below which images are given up first.
    Returns:
        Evenly spaced layers with the last among them; None where not even one of one image fits.
    """
    most = max(counts, default=0)
    for kept, shown in [
        *((kept, images) for kept in range(most, min(fewest, most) - 1, -1)),
        *((min(fewest, most), shown) for shown in range(images - 1, 0, -1)),
        *((kept, 1) for kept in range(min(fewest, most) - 1, 0, -1)),
    ]:
        cost = sum(base64_length(min(kept, count) * shown * size) for count, size in zip(counts, sizes, strict=True))
        if cost <= budget:
            return Plan([evenly(count, kept) for count in counts], shown)
    return None


def evenly(count: int, wanted: int) -> list[int]:
    """Places among `count`, `wanted` of them, evenly spaced, the first and the last among them; of one the last."""
    if wanted >= count:
        return list(range(count))
    if wanted == 1:
        return [count - 1]
    return [round(place * (count - 1) / (wanted - 1)) for place in range(wanted)]


def base64_length(size: int) -> int:
    """Characters of so many bytes in base64."""
    return -(-size // 3) * 4


def as_base64(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


class Triangles(NamedTuple):
    """Upper triangles as bytes, 0 for `low` and 255 for `high`."""

    values: NDArray[np.uint8]
    low: float
    high: float


def quantise_pairs(pairs: NDArray[np.generic]) -> Triangles:
    """Symmetric [..., N, N] as upper triangles [..., N (N + 1) / 2], row by row with the diagonal.

    The bytes span what is there: similarities that all lie between 0.98 and 1 keep their differences.
    """
    rows, columns = np.triu_indices(pairs.shape[-1])
    values = np.nan_to_num(np.asarray(pairs[..., rows, columns], dtype=np.float32)).clip(-1, 1)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / max(high - low, 1e-6)
    return Triangles(np.rint(scaled * 255).astype(np.uint8), round(low, 5), round(high, 5))


def picture_uri(pixels: NDArray[np.generic]) -> str:
    """uint8 [H, W, 3] as a data URI: exact where it is small, otherwise JPEG."""
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    if max(image.size) <= LOSSLESS_SIDE:
        return encoded(image, "PNG")
    return encoded(image, "JPEG")


def encoded(image: Image.Image, form: str) -> str:
    """A picture as a data URI."""
    file = io.BytesIO()
    if form == "JPEG":
        image.save(file, format=form, quality=JPEG_QUALITY, optimize=True)
    else:
        image.save(file, format=form, optimize=True)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


class Sheet(NamedTuple):
    """Many thumbnails in one picture, row by row."""

    uri: str
    columns: int
    rows: int
    side: int


def thumbnail_sheet(thumbnails: NDArray[np.generic]) -> Sheet:
    """uint8 [n, t, t, 3] as one picture, about square; PNG or JPEG, whichever is smaller."""
    n, side = thumbnails.shape[:2]
    columns = max(1, int(np.ceil(np.sqrt(n))))
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, side, side, 3), np.uint8)
    sheet[:n] = thumbnails
    pixels = sheet.reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, columns * side, 3)
    image = Image.fromarray(pixels)
    return Sheet(min((encoded(image, form) for form in ("PNG", "JPEG")), key=len), columns, rows, side)
