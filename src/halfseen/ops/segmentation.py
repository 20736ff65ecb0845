"""Class scores of pixels, predicted patch by patch: layouts, the loss of ViNy's segmentation, and the class map.

A head's output for a patch is (class, row, column), unlike both orders of pixel patches (see `ops.patches`).
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from halfseen.ops.patches import patch_grid

ClassSoftmax = Literal["over_pixels", "plain"]


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


def segmentation_loss(scores: Float[Tensor, "B K N p p"], labels: Int64[Tensor, "B N p2"]) -> Float[Tensor, ""]:
    """Cross-entropy over the classes, the mean over all pixels: no class weights, no label left out."""
    B, K = scores.shape[:2]
    return torch.nn.functional.cross_entropy(scores.reshape(B, K, -1), labels.reshape(B, -1))


def class_map(scores: Float[Tensor, "B K N p p"], grid: tuple[int, int]) -> Int64[Tensor, "B H W"]:
    """The class of highest score at each pixel, as a picture of `grid` patches."""
    rows, cols = grid
    B, _, _, side, _ = scores.shape
    winners = scores.argmax(dim=1).reshape(B, rows, cols, side, side).transpose(2, 3)
    return winners.reshape(B, rows * side, cols * side)
