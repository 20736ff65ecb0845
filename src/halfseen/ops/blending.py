"""MixUp and CutMix of pairs, by timm's rules: every image may have a draw of its own, or share one with others."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from halfseen.errors import ShapeError


class Blends(NamedTuple):
    """How images are blended with their partners, one entry each.

    Attributes:
        kept: float64 [n], share of the own label, in [0, 1]; 1 = not blended.
        boxes: int64 [n, 4], top, bottom, left and right of the part that CutMix takes from the partner, ends
            excluded; all 0 where MixUp adds the partner to the whole image.
    """

    kept: Float[np.ndarray, " n"]
    boxes: Int64[np.ndarray, "n 4"]

    def take(self, rows: Int64[np.ndarray, " B"]) -> "Blends":
        """The entries of these rows, which may repeat."""
        return Blends(self.kept[rows], self.boxes[rows])


def draw_blends(
    count: int,
    height: int,
    width: int,
    generator: np.random.Generator,
    *,
    mixup: float,
    cutmix: float,
    probability: float = 1.0,
    switch: float = 0.5,
) -> Blends:
    """`count` independent draws of MixUp or CutMix, by timm's rules.

    Args:
        height, width: of the images.
        mixup, cutmix: alpha of each one's Beta(alpha, alpha) distribution of the kept share; 0 = never.
        probability: that anything is blended.
        switch: probability of CutMix where both are possible.
    Source: MixUp, arXiv 1710.09412; CutMix, arXiv 1905.04899, in the form of timm's `Mixup`, as MAE, SimMIM and
        LocalMIM use it (the timm of their time cut boxes of an odd side one pixel smaller).
    """
    blended, cut, down, across = generator.random((4, count))
    cuts = (cut < switch) if mixup > 0 and cutmix > 0 else np.full(count, cutmix > 0)
    kept = np.ones(count)
    for chosen, alpha in ((cuts, cutmix), (~cuts, mixup)):
        if alpha > 0:
            kept = np.where(chosen, generator.beta(alpha, alpha, count), kept)
    side = np.sqrt(1.0 - kept)
    high, wide = (height * side).astype(np.int64), (width * side).astype(np.int64)
    y, x = (down * height).astype(np.int64), (across * width).astype(np.int64)
    boxes = np.stack(
        [
            np.clip(y - high // 2, 0, height),
            np.clip(y + (high + 1) // 2, 0, height),
            np.clip(x - wide // 2, 0, width),
            np.clip(x + (wide + 1) // 2, 0, width),
        ],
        axis=1,
    )
    boxes[~cuts] = 0
    inside = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    kept = np.where(cuts, 1.0 - inside / (height * width), kept)
    idle = blended >= probability
    kept[idle], boxes[idle] = 1.0, 0
    return Blends(kept, boxes)


def blend_neighbours(
    images: Float[Tensor, "B C H W"],
    labels: Int64[Tensor, " B"],
    blends: Blends,
    num_classes: int,
    smoothing: float = 0.0,
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
    """Every image blended with the other one of its pair: rows 0 and 1, 2 and 3 and so on.

    Neighbours rather than first and last, second and last but one (timm): in shuffled rows that is the same, and a
    pair stays together however the rows are shared out.

    Args:
        blends: one entry per row, the same for both of a pair.
        smoothing: share of each label that is spread over all classes, in [0, 1).
    Returns:
        images, and float32 [B, K] shares of the classes, rows sum to 1.
    Raises:
        ShapeError: an odd number of rows.
    """
    if len(images) % 2:
        raise ShapeError(f"mixup and cutmix blend pairs of images, but got {len(images)}. Give an even number.")
    H, W = images.shape[-2:]
    others = _swapped(images)
    by_box = blends.boxes.any(axis=1)
    own = np.where(by_box, 1.0, blends.kept)
    weight, rest = (_column(values, images.device) for values in (own, 1.0 - own))
    mixed = images * weight + others * rest
    if by_box.any():
        mixed = torch.where(box_mask(blends.boxes, H, W, images.device), others, mixed)
    off = smoothing / num_classes
    shares = F.one_hot(labels, num_classes) * (1.0 - smoothing) + off  # [B, K]
    partners = _swapped(shares)
    kept, lost = (_column(values, images.device)[:, :, 0, 0] for values in (blends.kept, 1.0 - blends.kept))
    return mixed, shares * kept + partners * lost


def box_mask(boxes: Int64[np.ndarray, "B 4"], height: int, width: int, device: torch.device) -> Bool[Tensor, "B 1 H W"]:
    """bool [B, 1, H, W]: True inside each image's box (top, bottom, left, right, ends excluded)."""
    edges = torch.from_numpy(boxes).to(device, non_blocking=True)[:, :, None]  # [B, 4, 1]
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    inside_rows = (rows >= edges[:, 0]) & (rows < edges[:, 1])  # [B, H]
    inside_columns = (columns >= edges[:, 2]) & (columns < edges[:, 3])  # [B, W]
    return (inside_rows[:, :, None] & inside_columns[:, None, :]).unsqueeze(1)


def _swapped(rows: Tensor) -> Tensor:
    """Rows 0 and 1 changed over, 2 and 3, and so on."""
    return rows.reshape(-1, 2, *rows.shape[1:]).flip(1).reshape(rows.shape)


def _column(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device, non_blocking=True).view(-1, 1, 1, 1)
