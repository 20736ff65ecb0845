"""Geometry of patch tokens: how they vary within and across images, how alike near and far ones are, what they tell.

Pure functions of features float [B, N, D] (patch tokens after the final norm, row-major). Whole data sets stream
through accumulators in float64 that need no more room than one batch and N x N numbers.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from halfseen.errors import ShapeError

NORM_EPS = 1e-12
MAP_EPS = 1e-8

PatchBatch = tuple[Tensor, Tensor]
"""Patch tokens float [B, N, D] and their labels int64 [B, N]; -1 leaves a patch out."""


class Geometry(NamedTuple):
    """What `TokenGeometry` has found.

    Attributes:
        within: mean variance over the patches of one image, averaged over features and images.
        across: variance over the images of the mean patch token, averaged over features; NaN for a single image.
        total: within + across (not the variance of all tokens).
        distances: int64 [2 (g - 1)], Manhattan distances on the g x g grid, from 1.
        cosines: float64, mean cosine similarity of all ordered pairs at each distance, over all images.
        num_images: images seen.
    """

    within: float
    across: float
    total: float
    distances: Int64[Tensor, " d"]
    cosines: Float64[Tensor, " d"]
    num_images: int


class TokenGeometry:
    """Accumulates variances and pairwise similarities of patch tokens over batches.

    The mean over images of the N x N similarities is one matrix product per batch, so no [B, N, N] is ever made.

    Args:
        grid: (rows, cols) of the patches.
    Raises:
        ShapeError: a grid that isn't square, or has one patch only.
    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862 (diagnostics).
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        rows, cols = grid
        if rows != cols or rows < 2:
            raise ShapeError(f"patch geometry needs a square grid of at least 2x2 patches, got {rows}x{cols}.")
        self.grid = grid
        self.num_images = 0
        self._within: Tensor | float = 0.0  # Sum over images of the mean variance over patches.
        self._mean: Tensor | float = 0.0  # [D]: mean over images of the mean token ...
        self._spread: Tensor | float = 0.0  # ... and sum of squared deviations from it.
        self._similarity: Tensor | float = 0.0  # [N, N]: sum over images.

    def update(self, features: Float[Tensor, "B N D"]) -> None:
        """Take one batch of patch tokens.

        Raises:
            ShapeError: another number of patches than the grid's.
        """
        B, N, _ = features.shape
        if self.grid[0] * self.grid[1] != N:
            raise ShapeError(f"features: got {N} patch tokens, but the grid has {self.grid[0]}x{self.grid[1]} patches.")
        features = features.detach()
        if features.device.type == "mps":
            features = features.cpu()  # There is no float64 on this device.
        tokens = features.double()
        self._within = self._within + tokens.var(dim=1).mean(dim=1).sum()
        # Means and squared deviations of two sets join exactly (Chan, Golub, LeVeque 1979): no cancellation.
        means = tokens.mean(dim=1)
        mean = means.mean(dim=0)
        whole = self.num_images + B
        shift = mean - self._mean
        self._spread = self._spread + (means - mean).square().sum(dim=0)
        self._spread = self._spread + shift.square() * (self.num_images * B / whole)
        self._mean = self._mean + shift * (B / whole)
        self.num_images = whole
        units = F.normalize(features.float(), dim=-1, eps=NORM_EPS).transpose(0, 1).flatten(1)  # [N, B * D]
        self._similarity = self._similarity + (units @ units.T).double()

    def result(self) -> Geometry:
        """What all batches so far amount to.

        Raises:
            ShapeError: none has come.
        """
        if not isinstance(self._similarity, Tensor) or not isinstance(self._spread, Tensor):
            raise ShapeError("patch geometry: no features were given.")
        within = float(self._within) / self.num_images
        across = float((self._spread / (self.num_images - 1)).mean()) if self.num_images > 1 else float("nan")
        apart = manhattan_distances(self.grid).flatten()
        similarity = (self._similarity / self.num_images).flatten().cpu()
        counts = torch.bincount(apart)
        means = torch.bincount(apart, weights=similarity) / counts
        distances = torch.arange(1, len(counts))
        return Geometry(within, across, within + across, distances, means[1:], self.num_images)


def manhattan_distances(grid: tuple[int, int]) -> Int64[Tensor, "N N"]:
    """Steps along rows and columns between any two patches of a grid."""
    rows, cols = grid
    row = torch.arange(rows).repeat_interleave(cols)
    col = torch.arange(cols).repeat(rows)
    return (row[:, None] - row).abs() + (col[:, None] - col).abs()


def similarity_maps(
    tokens: Float[Tensor, "N D"], references: Int64[Tensor, " R"], grid: tuple[int, int]
) -> Float[Tensor, "R rows cols"]:
    """Cosine similarity of all patch tokens of one image to some of them, as pictures of the grid; in [-1, 1].

    Raises:
        ShapeError: a number of tokens that doesn't fill the grid.
    """
    rows, cols = grid
    if rows * cols != len(tokens):
        raise ShapeError(f"tokens: got {len(tokens)}, but the grid has {rows}x{cols} patches.")
    units = F.normalize(tokens.float(), dim=-1, eps=MAP_EPS)
    return (units[references] @ units.T).reshape(-1, rows, cols)


class ProbeTrace(NamedTuple):
    """How a patch probe learned.

    Attributes:
        losses: of each epoch, the plain mean of its batches' mean losses, however short the last batch is.
        accuracies: of each epoch, the share of patches whose class is predicted before the update that sees them.
    """

    losses: list[float]
    accuracies: list[float]

    @property
    def train_accuracy(self) -> float:
        """The last epoch's: the published "patch probe". Measured on the very patches that are learned."""
        return self.accuracies[-1]


def train_patch_probe(
    probe: nn.Linear,
    epochs: Iterable[Iterable[PatchBatch]],
    lr: float = 1e-2,
) -> ProbeTrace:
    """Train a linear classifier of single patch tokens by Adam; what gave the tokens stays as it is.

    Args:
        probe: trained in place; on the tokens' device.
        epochs: the batches of each epoch; the same ones every time where tokens are computed once.
        lr: Adam's learning rate, constant.
    Raises:
        ShapeError: no epoch, or one without a batch.
    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862 (diagnostics): accuracy on the training
        images, in their order, in the last of 5 epochs; `probe_accuracy` measures others.
    """
    optimizer = torch.optim.Adam(probe.parameters(), lr=lr)
    losses: list[Tensor] = []
    accuracies: list[Tensor] = []
    for batches in epochs:
        loss_of: list[Tensor] = []
        right: list[Tensor] = []
        seen: list[Tensor] = []
        for tokens, labels in batches:
            flat = labels.flatten()
            scores = probe(tokens.detach().flatten(0, 1))
            loss = F.cross_entropy(scores, flat, ignore_index=-1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_of.append(loss.detach().double())
            right.append((scores.detach().argmax(dim=1) == flat).sum())
            seen.append((flat >= 0).sum())
        if not loss_of:
            raise ShapeError("patch probe: an epoch without a batch.")
        losses.append(torch.stack(loss_of).mean())
        accuracies.append(torch.stack(right).sum().double() / torch.stack(seen).sum())
    if not losses:
        raise ShapeError("patch probe: no epoch was given.")
    return ProbeTrace(torch.stack(losses).tolist(), torch.stack(accuracies).tolist())


@torch.no_grad()
def probe_accuracy(probe: nn.Linear, batches: Iterable[PatchBatch]) -> float:
    """Share of patches that a trained probe classifies rightly, for images that it hasn't seen.

    Raises:
        ShapeError: no patch with a label.
    """
    right: list[Tensor] = []
    seen: list[Tensor] = []
    for tokens, labels in batches:
        right.append((probe(tokens).argmax(dim=-1) == labels).sum())
        seen.append((labels >= 0).sum())
    total = int(torch.stack(seen).sum()) if seen else 0
    if total == 0:
        raise ShapeError("patch probe: no patch with a label was given.")
    return int(torch.stack(right).sum()) / total
