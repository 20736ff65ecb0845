"""Class scores of pixels, predicted patch by patch: layouts, the loss of ViNy's segmentation, class maps, and metrics.

A head's output for a patch is (class, row, column), unlike both orders of pixel patches (see `ops.patches`).
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, Integer
from torch import Tensor

from halfseen.ops.patches import patch_grid

ClassSoftmax = Literal["over_pixels", "plain"]

IGNORED = 255
"""Label of pixels that belong to no class: they are neither trained on nor counted."""


def pixel_scores(
    outputs: Float[Tensor, "B N P"], num_classes: int, class_softmax: ClassSoftmax = "over_pixels"
) -> Float[Tensor, "B K N p p"]:
    """Scores of each pixel for each class, from one vector of K * p * p values per patch.

    "over_pixels" is the original: each class's scores are shifted by their log-sum-exp over *all pixels of the image*,
    a log-softmax over the wrong axis that the published tables were made with. "plain" leaves them as they are.

    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862 (official code).
    """
    B, N, P = outputs.shape
    side = math.isqrt(P // num_classes)
    scores = outputs.float().reshape(B, N, num_classes, side, side).transpose(1, 2)
    if class_softmax == "plain":
        return scores
    return scores - scores.flatten(2).logsumexp(dim=2)[:, :, None, None, None]


def pixel_labels(target: Int64[Tensor, "B 1 H W"], patch_size: int) -> Int64[Tensor, "B N p2"]:
    """Labels of the pixels, patch by patch in row-major order."""
    B, _, H, W = target.shape
    rows, cols = patch_grid(H, W, patch_size)
    cut = target.reshape(B, rows, patch_size, cols, patch_size).transpose(2, 3)
    return cut.reshape(B, rows * cols, patch_size**2)


def segmentation_loss(scores: Float[Tensor, "B K *pixels"], labels: Int64[Tensor, "B *same"]) -> Float[Tensor, ""]:
    """Cross-entropy over the classes, the mean over all pixels but `IGNORED` ones: no class weights.

    Args:
        labels: one for each score of a class, in the same order, whatever the axes are.
    """
    B, K = scores.shape[:2]
    flat = labels.reshape(B, -1)
    total = torch.nn.functional.cross_entropy(scores.reshape(B, K, -1), flat, ignore_index=IGNORED, reduction="sum")
    return total / (flat != IGNORED).sum().clamp(min=1)


def class_map(scores: Float[Tensor, "B K N p p"], grid: tuple[int, int]) -> Int64[Tensor, "B H W"]:
    """The class of highest score at each pixel, as a picture of `grid` patches."""
    rows, cols = grid
    B, _, _, side, _ = scores.shape
    winners = scores.argmax(dim=1).reshape(B, rows, cols, side, side).transpose(2, 3)
    return winners.reshape(B, rows * side, cols * side)


def pixel_confusion(
    predictions: Integer[Tensor, "B H W"], targets: Integer[Tensor, "B H W"], num_classes: int
) -> Int64[Tensor, "B K K"]:
    """Pixels of each image by class: row = target, column = prediction; `IGNORED` ones are left out.

    Args:
        predictions: 0 to K - 1.
        targets: 0 to K - 1, or `IGNORED`.
    """
    B, cells = len(targets), num_classes**2
    pairs = targets.long() * num_classes + predictions.long()
    pairs = torch.where(targets == IGNORED, cells, pairs)  # A bin of their own.
    first = torch.arange(B, device=targets.device)[:, None] * (cells + 1)
    counts = torch.bincount((first + pairs.flatten(1)).flatten(), minlength=B * (cells + 1))
    return counts.reshape(B, cells + 1)[:, :cells].reshape(B, num_classes, num_classes)


class ImageScores(NamedTuple):
    """How well the pixels of each image are classified.

    Attributes:
        accuracy: float64 [n], share of right pixels.
        class_iou: float64 [n, K], intersection over union; NaN where a class is in neither map.
    """

    accuracy: Float64[Tensor, " n"]
    class_iou: Float64[Tensor, "n K"]

    @property
    def miou(self) -> Float64[Tensor, " n"]:
        """Mean over all K classes; one that is in neither map counts as 0, as in ViNy's original.

        Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862 (official code).
        """
        return self.class_iou.nan_to_num(0.0).mean(dim=1)

    @property
    def miou_present(self) -> Float64[Tensor, " n"]:
        """Mean over the classes that are in either map."""
        return self.class_iou.nanmean(dim=1)


def image_scores(confusion: Int64[Tensor, "n K K"]) -> ImageScores:
    """Scores of each image from `pixel_confusion`; NaN for an image without a counted pixel."""
    counts = confusion.double()
    return ImageScores(counts.diagonal(dim1=1, dim2=2).sum(dim=1) / counts.sum(dim=(1, 2)), _iou(counts))


def dataset_class_iou(confusion: Int64[Tensor, "n K K"]) -> Float64[Tensor, " K"]:
    """Intersection over union of each class over the pixels of all images; NaN for a class that is nowhere."""
    return _iou(confusion.double().sum(dim=0))


def _iou(counts: Float64[Tensor, "*n K K"]) -> Float64[Tensor, "*n K"]:
    both = counts.diagonal(dim1=-2, dim2=-1)
    return both / (counts.sum(dim=-1) + counts.sum(dim=-2) - both)
