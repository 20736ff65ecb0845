"""Pixels as the target: patches of the normalised picture, standardised one by one if asked for."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from halfseen.ops.patches import PixelOrder, patchify

_VARIANCE_FLOOR = 1e-6


class PixelConfig(BaseModel):
    """The pixels themselves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["pixels"] = Field("pixels", description="the target: pixels = those of the normalised picture")


class PatchStatistics(NamedTuple):
    """Mean and standard deviation of each patch: float32 [B, n, 1]."""

    mean: Tensor
    std: Tensor


def pixel_target(
    images: Float[Tensor, "B C H W"],
    patch_size: int,
    *,
    ids: Tensor | None = None,
    order: PixelOrder = "channels_last",
    standardise: bool = False,
) -> Float[Tensor, "B n P"]:
    """What a decoder of pixels must predict, float32.

    Args:
        images: normalised with the data's mean and std.
        patch_size: side of a target patch in pixels.
        ids: int64 [B, n], the wanted patches in the wanted order; None for all.
        order: order of the values inside a patch.
        standardise: give each patch zero mean and unit variance (MAE's norm_pix_loss).
    """
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        patches = patchify(images.float(), patch_size, order)
        if ids is not None:
            # Whole rows by index: half the time of a gather, and there is no gradient to scatter back.
            patches = patches[torch.arange(len(ids), device=ids.device)[:, None], ids]
        return standardise_patches(patches)[0] if standardise else patches


def standardise_patches(patches: Float[Tensor, "B n P"]) -> tuple[Float[Tensor, "B n P"], PatchStatistics]:
    """(x - mean) / sqrt(var + 1e-6) over the values of each patch, with the unbiased variance; and mean and that root.

    float32 in and out: in half precision flat patches overflow.

    Source: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377 (official code).
    """
    # Two passes, which is also half the time of torch.var_mean along the last axis on a CPU.
    mean = patches.mean(dim=-1, keepdim=True)
    centred = patches - mean
    variance = centred.square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)
    std = (variance + _VARIANCE_FLOOR).sqrt()
    return centred / std, PatchStatistics(mean, std)


def restore_patches(patches: Float[Tensor, "B n P"], statistics: PatchStatistics) -> Float[Tensor, "B n P"]:
    """Turn standardised patches back into pixels with the statistics of the true ones."""
    return patches * statistics.std + statistics.mean
