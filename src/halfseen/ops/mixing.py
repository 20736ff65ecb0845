"""MixUp and CutMix: images and labels of a batch blended with those of its neighbours."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from halfseen.ops.randomness import numpy_generator


class Mixed(NamedTuple):
    """A blended batch.

    Attributes:
        images: float32 [B, 3, H, W].
        labels: float32 [B, C], shares of the classes.
    """

    images: Float[Tensor, "B 3 H W"]
    labels: Float[Tensor, "B C"]


def mix_or_cut(images: Float[Tensor, "B 3 H W"], labels: Float[Tensor, "B C"], generator: torch.Generator) -> Mixed:
    """MixUp or CutMix, with equal probability, of every image with the one before it in the batch.

    The share that is kept is uniform in [0, 1] (alpha = 1) and the same for the whole batch, as is CutMix's rectangle,
    whose area outside is that share; where it sticks out of the image, the labels follow what is really covered.

    Args:
        labels: one-hot, or shares that sum to 1.
        generator: on the CPU.
    Source: MixUp, arXiv 1710.09412; CutMix, arXiv 1905.04899, in the form of torchvision.
    """
    cuts, kept, across, down = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    others = images.roll(1, 0)
    if cuts < 0.5:
        return Mixed(images * kept + others * (1 - kept), labels * kept + labels.roll(1, 0) * (1 - kept))
    H, W = images.shape[-2:]
    x, y = int(across * W), int(down * H)
    half = 0.5 * (1 - kept) ** 0.5
    left, right = max(0, x - int(half * W)), min(W, x + int(half * W))
    top, bottom = max(0, y - int(half * H)), min(H, y + int(half * H))
    pasted = images.clone()
    pasted[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    share = (right - left) * (bottom - top) / (H * W)
    return Mixed(pasted, labels * (1 - share) + labels.roll(1, 0) * share)


def mix_up(images: Float[Tensor, "B 3 H W"], labels: Float[Tensor, "B C"], kept: float) -> Mixed:
    """MixUp of every image with the one before it in the batch: `kept` of itself, 1 - `kept` of the other.

    Args:
        labels: one-hot, or shares that sum to 1.
        kept: share in [0, 1], the same for the whole batch; see `mixup_share`.
    Source: MixUp, arXiv 1710.09412, in the form of ViNy's code, arXiv 2512.03862.
    """
    return Mixed(
        images * kept + images.roll(1, 0) * (1 - kept),
        labels * kept + labels.roll(1, 0) * (1 - kept),
    )


def mixup_share(alpha: float, *key: int | str) -> float:
    """The share that MixUp keeps of an image: a draw from Beta(alpha, alpha), a fixed function of the key."""
    return float(numpy_generator(*key).beta(alpha, alpha))
