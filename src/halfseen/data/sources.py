"""Where images come from: folders, manifests, torchvision's data sets and the bundled ones, behind one small interface."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from halfseen.data.config import DataConfig
from halfseen.data.decode import BadImage

__all__ = ["BadImage", "LeftOut", "Source", "Split", "has_split", "open_source"]

Split = Literal["train", "test"]


class LeftOut(NamedTuple):
    """A file that is not part of a source although it looks like an image, and why."""

    path: str
    reason: str


class Source(ABC):
    """A fixed, ordered set of images.

    Attributes:
        name: what the user wrote, for messages.
        class_names: names of the classes, in the order of their labels; empty where there are none.
        labels: int64 [n], class of each image or -1 where it has none.
        left_out: files known to be bad (a skip list) or unreachable, which have no index here.
    """

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    left_out: tuple[LeftOut, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def path(self, index: int) -> str:
        """Where the image comes from, for messages and lists."""

    @abstractmethod
    def read(self, index: int, shrink_to: int | None = None) -> np.ndarray:
        """The image: uint8 [H, W, 3], RGB, upright.

        Args:
            index: position in this source.
            shrink_to: the decoder may shrink the picture while it decodes (JPEG), as long as the shorter side stays
                at least this many pixels; None decodes at full size.
        Raises:
            BadImage: if there is no picture to be had from it.
        """

    def read_mask(self, index: int) -> np.ndarray | None:
        """uint8 [H, W], class of each pixel (0 = background), or None where there are no masks."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256, in hex, of names, sizes and labels: two runs with the same fingerprint saw the same data."""

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Source":
        """The images at `indices`, in that order."""
        raise TypeError(type(self).__name__)


def open_source(source: str, split: Split = "train", *, config: DataConfig | None = None) -> Source:
    """The images that `source` names.

    Raises:
        DataError: if there is nothing there, or not that split; the message says what to mend.
    """
    raise TypeError(source)


def has_split(source: str, split: Split) -> bool:
    """Whether `open_source(source, split)` would find such a split."""
    raise TypeError(source)
