"""The bundled data set: 10,000 training and 2,000 test images of Fashion-MNIST, 28 x 28 grey, 10 classes in balance.

Fashion-MNIST is by Zalando SE (arXiv 1708.07747), MIT licence; its text lies beside the data. Made by
`scripts/make_bundled_data.py`.
"""

import functools
import io
from importlib import resources
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from halfseen.data.sources import ArraySource, Split
from halfseen.errors import DataError

SIDE = 28
CLASS_NAMES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


class Fashion(NamedTuple):
    """One split.

    Attributes:
        images: uint8 [n, 28, 28], 0 = background.
        labels: int64 [n].
    """

    images: UInt8[np.ndarray, "n 28 28"]
    labels: Int[np.ndarray, " n"]


def open_fashion(split: Split) -> ArraySource:
    """The source 'bundled:fashion'; the grey images are read as RGB with equal channels."""
    fashion = load_fashion(split)
    return ArraySource(f"bundled:fashion/{split}", fashion.images, fashion.labels, CLASS_NAMES)


def load_fashion(split: Split) -> Fashion:
    """One split, read-only; unpacked once per process, in about 0.1 s."""
    return _unpack()[split]


@functools.cache
def _unpack() -> dict[str, Fashion]:
    asset = resources.files("halfseen.data") / "assets" / "fashion.npz"
    try:
        content = np.load(io.BytesIO(asset.read_bytes()), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"the bundled data is missing or broken ({error}). Install halfseen again.") from None
    mosaic = cv2.imdecode(content["mosaic"], cv2.IMREAD_GRAYSCALE)
    if mosaic is None:
        raise DataError("the bundled data is broken (its picture can't be decoded). Install halfseen again.")
    rows, columns = mosaic.shape[0] // SIDE, mosaic.shape[1] // SIDE
    images = mosaic.reshape(rows, SIDE, columns, SIDE).transpose(0, 2, 1, 3).reshape(-1, SIDE, SIDE)
    images.flags.writeable = False
    train_labels = content["train_labels"].astype(np.int64)
    return {
        "train": Fashion(images[: len(train_labels)], train_labels),
        "test": Fashion(images[len(train_labels) :], content["test_labels"].astype(np.int64)),
    }
