"""What the analyses keep of one shared forward pass: the contract.

Each watcher sees every block of every batch once, while the block's tensors exist, reduces them there and then, and at
the end gives plain arrays from which its figures can be drawn without the model. All states are patch tokens; prefix
tokens are left out.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from halfseen.backbones.base import BlockView, Features

Arrays = dict[str, NDArray[np.generic]]
ImageFeature = Literal["mean", "cls"]


HELD_OUT = 5
"""One image of so many is kept from the patch probe, to measure it by."""


class Place(NamedTuple):
    """Where a batch stands among the images that are analysed: its first image's number, and the count of all."""

    first: int
    total: int


class Rows:
    """Rows of all images by name, each name's in one block that is there from the first batch on.

    Small pieces kept batch by batch would lie between the large tensors of the passes and leave holes that nothing
    large fits into: two gigabytes of them after five hundred images of a ViT-B.
    """

    def __init__(self) -> None:
        self._blocks: dict[Hashable, Tensor] = {}
        self._counts: dict[Hashable, int] = {}

    def put(self, name: Hashable, rows: Tensor, place: Place, most: int | None = None) -> None:
        """Take a batch's rows, one or more axes each; `most` images at most will ever come."""
        if name not in self._blocks:
            length = place.total if most is None else min(most, place.total)
            self._blocks[name] = torch.empty(length, *rows.shape[1:], dtype=rows.dtype)
        end = place.first + len(rows)
        self._blocks[name][place.first : end] = rows
        self._counts[name] = end

    def __getitem__(self, name: Hashable) -> Tensor:
        """All rows of a name so far, on the CPU."""
        return self._blocks[name][: self._counts[name]]

    def all(self) -> list[Tensor]:
        """The rows of every name, in the order in which they came."""
        return [self[name] for name in self._blocks]


class Found(NamedTuple):
    """What a watcher gives at the end.

    Attributes:
        arrays: what its figures are drawn from.
        numbers: the few that stand for all.
        notes: what couldn't be measured, in sentences.
    """

    arrays: Arrays
    numbers: Mapping[str, float]
    notes: tuple[str, ...] = ()


class Watcher(ABC):
    """Gathers one analysis over the shared pass."""

    @abstractmethod
    def block(self, view: BlockView, place: Place) -> None:
        """One block of one batch; blocks come in order, 0 first.

        Raises:
            ShapeError: what this analysis isn't defined for.
        """

    def output(self, features: Features, place: Place) -> None:  # noqa: B027 - most look at blocks only.
        """The batch's tokens after the final norm."""

    @abstractmethod
    def result(self) -> Found:
        """What all batches amount to.

        Raises:
            ShapeError: too few images for it.
        """


def image_feature(features: Features, kind: ImageFeature) -> Float[Tensor, "B D"]:
    """One float32 vector per image: the mean patch token or the class token, after the final norm."""
    return features.patches.float().mean(dim=1) if kind == "mean" else features.prefix[:, 0].float()


def padded(curves: Sequence[Tensor]) -> NDArray[np.generic]:
    """Curves of different lengths as one float64 array, NaN behind their ends."""
    table = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = curve.numpy()
    return table
