"""Losses of masked image modelling, on patch vectors: only what is hidden is compared.

Predictions and targets are patch vectors [B, n, P] of the tokens that enter the loss, so a decoder may run on hidden
tokens alone. Weights come at the granularity of square cells inside a patch; no picture-sized products are formed.
All sums are float32, whatever the autocast of the caller.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from halfseen.errors import ShapeError
from halfseen.ops.patches import PixelOrder, repeat_cells


def cell_sums(
    values: Float[Tensor, "B n P"], cells_per_side: int, order: PixelOrder, channels: int = 3
) -> Float[Tensor, "B n k k"]:
    """Sum patch vectors over colours and over the pixels of each of the k x k square cells of a patch.

    Raises:
        ShapeError: patches whose side the cells don't divide.
    """
    B, n, P = values.shape
    side = math.isqrt(P // channels)
    pixels, rest = divmod(side, cells_per_side)
    if side * side * channels != P or rest:
        raise ShapeError(f"patches of {P} values can't be summed over {cells_per_side}x{cells_per_side} cells.")
    k = cells_per_side
    if order == "channels_first":
        return values.reshape(B, n, channels, k, pixels, k, pixels).sum((2, 4, 6))
    return values.reshape(B, n, k, pixels, k, pixels, channels).sum((3, 5, 6))


def patch_weights(cells: Float[Tensor, "B h w"], cell_size: int, patch_size: int) -> Float[Tensor, "B N k k"]:
    """Bring weights given per `cell_size` px cell to the patches of `patch_size` px, row-major.

    A patch gets k x k entries, k = patch_size / gcd(cell_size, patch_size): cells larger than a patch give each of
    their patches the same weight, smaller ones several weights per patch.

    Raises:
        ShapeError: cells whose picture is not made of whole patches.
    """
    unit = math.gcd(cell_size, patch_size)
    k = patch_size // unit
    fine = repeat_cells(cells, cell_size // unit)
    B, rows, cols = fine.shape
    if rows % k or cols % k:
        raise ShapeError(
            f"weights of {tuple(cells.shape[1:])} cells of {cell_size} px don't cover whole patches of {patch_size} px."
        )
    cut = fine.reshape(B, rows // k, k, cols // k, k).transpose(2, 3)
    return cut.reshape(B, (rows // k) * (cols // k), k, k)


def join_weights(
    first: Float[Tensor, "B n k k"] | None, second: Float[Tensor, "B n l l"] | None
) -> Float[Tensor, "B n m m"] | None:
    """The product of two sets of weights, on cells that both of theirs are made of; None stands for all ones."""
    if first is None or second is None:
        return second if first is None else first
    fine = math.lcm(first.shape[-1], second.shape[-1])
    return _refine(first, fine) * _refine(second, fine)


def _refine(weights: Tensor, cells_per_side: int) -> Tensor:
    return repeat_cells(weights, cells_per_side // weights.shape[-1])


def masked_l1(
    prediction: Float[Tensor, "B n P"],
    target: Float[Tensor, "B n P"],
    *,
    num_hidden_pixels: int | Float[Tensor, ""],
    weights: Float[Tensor, "B n k k"] | None = None,
    order: PixelOrder = "channels_first",
    channels: int = 3,
) -> Float[Tensor, ""]:
    """Mean absolute error over hidden pixels and colours, as SimMIM divides it.

    sum(weights * |prediction - target|) / (num_hidden_pixels + 1e-5) / channels. A hidden pixel counts once in the
    denominator, not once per colour, and the denominator knows nothing of the weights: this is KAMIM's loss when
    they come from keypoints, and exactly SimMIM's when they are None (or 1).

    Args:
        prediction: any float dtype; the tokens that enter the loss.
        target: normalised pixels in the same order.
        num_hidden_pixels: hidden pixels of the whole micro-batch.
        weights: per cell of a patch, 0 where a token was decoded that is not hidden.
        order: order of the values inside a patch; matters only with weights.
        channels: colours of a pixel.

    Source: SimMIM, arXiv 2111.09886; KAMIM, arXiv 2407.13873.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        error = (prediction.float() - target.float()).abs()
        if weights is None:
            total = error.sum()
        else:
            total = (cell_sums(error, weights.shape[-1], order, channels) * weights).sum()
        return total / (num_hidden_pixels + 1e-5) / channels


def masked_mse(
    prediction: Float[Tensor, "B n P"],
    target: Float[Tensor, "B n P"],
    *,
    weights: Float[Tensor, "B n k k"] | None = None,
    order: PixelOrder = "channels_last",
    channels: int = 3,
) -> Float[Tensor, ""]:
    """Mean squared error over the hidden patches: one mean over the batch, each patch a mean over its P values.

    With weights, each squared error is multiplied by the weight of its cell; the denominator stays the same.

    Args:
        prediction: any float dtype; hidden patches only, the same number in each row.
        target: in the same order.
        weights: per cell of a patch.
        order: order of the values inside a patch; matters only with weights.
        channels: colours of a pixel.

    Source: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        error = (prediction.float() - target.float()).square()
        if weights is None:
            return error.mean()
        return (cell_sums(error, weights.shape[-1], order, channels) * weights).sum() / error.numel()


def cell_mse(
    prediction: Float[Tensor, "B n P"], target: Float[Tensor, "B n P"], weights: Float[Tensor, "#B n"] | None = None
) -> Float[Tensor, ""]:
    """Mean squared error over hidden cells: sum(weights e) / sum(weights), where e is a cell's mean over its P values.

    Args:
        prediction: any float dtype.
        target: in the same order.
        weights: how much of each cell is hidden, in [0, 1], not all 0; None where it is all of each.

    Source: Masked Image Modeling with Local Multi-Scale Reconstruction, arXiv 2303.05251.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        error = (prediction.float() - target.float()).square()
        if weights is None:
            return error.mean()
        weights = weights.expand(error.shape[:2])
        return (error.mean(dim=-1) * weights).sum() / weights.sum()
