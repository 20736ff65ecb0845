"""Position embeddings: the fixed 2-D sine-cosine table, and the resizing rules of the different sources.

The three resizing rules differ in the sampling coordinates of one and the same bicubic filter; a checkpoint must be
resized by the rule of the code that made it.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from halfseen.errors import ShapeError

PositionRule = Literal["size", "scale_offset", "scale"]
"""How learned positions are resized: "size" (MAE), "scale_offset" (iBOT, DINO), "scale" (MSN)."""


def sincos_positions(embed_dim: int, rows: int, columns: int, num_prefix_tokens: int = 0) -> Float[Tensor, "T D"]:
    """The fixed 2-D sine-cosine table of MAE.

    The first half of each vector encodes the column, the second half the row, each as [sin(x w), cos(x w)] with
    w_k = 10000^(-k/q), q = embed_dim / 4.

    Args:
        embed_dim: width D, divisible by 4.
        rows, columns: sides of the patch grid.
        num_prefix_tokens: rows of zeros put in front.
    Returns:
        float64 [num_prefix_tokens + rows * columns, D], patches row-major.
    Raises:
        ShapeError: if D is not divisible by 4.
    Source: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377, official code.
    """
    if embed_dim % 4:
        raise ShapeError(f"embed_dim: got {embed_dim}, sine-cosine positions need a width divisible by 4.")
    quarter = embed_dim // 4
    frequencies = 1.0 / 10000.0 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    along_row = torch.arange(columns, dtype=torch.float64).repeat(rows)
    along_column = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column_angles, row_angles = along_row[:, None] * frequencies, along_column[:, None] * frequencies
    parts = [column_angles.sin(), column_angles.cos(), row_angles.sin(), row_angles.cos()]
    table = torch.cat(parts, dim=1)
    return torch.cat([torch.zeros(num_prefix_tokens, embed_dim, dtype=torch.float64), table])


def _square_side(count: int) -> int:
    side = math.isqrt(count)
    if side * side != count:
        raise ShapeError(f"position embedding: {count} patch positions do not form a square grid.")
    return side


def resize_positions_to_size(
    positions: Float[Tensor, "1 T D"], rows: int, columns: int, num_prefix_tokens: int
) -> Float[Tensor, "1 T2 D"]:
    """MAE's rule: bicubic to the size of the new grid, corners not aligned, no antialiasing.

    Args:
        positions: float [1, num_prefix_tokens + side^2, D], a square grid.
        rows, columns: the new grid.
        num_prefix_tokens: leading rows that are kept as they are.
    """
    return _resize(positions, rows, columns, num_prefix_tokens, lambda side: {"size": (rows, columns)})


def resize_positions_scale_offset(
    positions: Float[Tensor, "1 T D"], rows: int, columns: int, num_prefix_tokens: int
) -> Float[Tensor, "1 T2 D"]:
    """The rule of DINO and iBOT: bicubic with the scale factors (rows + 0.1) / side and (columns + 0.1) / side.

    The sampling coordinates follow the scale factor, not the ratio of the sizes. Arguments as in
    `resize_positions_to_size`.
    """
    return _resize(
        positions,
        rows,
        columns,
        num_prefix_tokens,
        lambda side: {"scale_factor": ((rows + 0.1) / side, (columns + 0.1) / side)},
    )


def resize_positions_scale(
    positions: Float[Tensor, "1 T D"], rows: int, columns: int, num_prefix_tokens: int
) -> Float[Tensor, "1 T2 D"]:
    """MSN's rule: bicubic with the one scale factor sqrt(new patches / old patches).

    Arguments as in `resize_positions_to_size`; the new grid must be square, as in the original.
    """
    if rows != columns:
        raise ShapeError(f"position embedding: MSN's rule needs a square grid, got {rows} x {columns}.")
    return _resize(
        positions, rows, columns, num_prefix_tokens, lambda side: {"scale_factor": _scale_that_reaches(rows, side)}
    )


def _scale_that_reaches(new_side: int, side: int) -> float:
    """sqrt(new patches / old patches), nudged where rounding would lose the last row (the original fails there)."""
    scale = math.sqrt(new_side**2 / side**2)
    while math.floor(side * scale) < new_side:
        scale = math.nextafter(scale, math.inf)
    return scale


def resize_positions(
    positions: Float[Tensor, "1 T D"],
    rows: int,
    columns: int,
    num_prefix_tokens: int,
    rule: PositionRule = "size",
) -> Float[Tensor, "1 T2 D"]:
    """Learned positions for another grid by the named rule; unchanged if the (square) grid already fits."""
    if rows == columns and rows * columns == positions.shape[1] - num_prefix_tokens:
        return positions
    return _RULES[rule](positions, rows, columns, num_prefix_tokens)


def _resize(
    positions: Tensor,
    rows: int,
    columns: int,
    num_prefix_tokens: int,
    target: Callable[[int], dict[str, tuple[int, int] | tuple[float, float] | float]],
) -> Tensor:
    prefix, patches = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
    side = _square_side(patches.shape[1])
    picture = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    resized = F.interpolate(picture, mode="bicubic", align_corners=False, **target(side))  # type: ignore[arg-type]
    if tuple(resized.shape[-2:]) != (rows, columns):
        raise ShapeError(
            f"position embedding: the rule's scale factor gives {tuple(resized.shape[-2:])}, not {(rows, columns)}."
        )
    flat = resized.permute(0, 2, 3, 1).reshape(1, rows * columns, -1).to(positions.dtype)
    return torch.cat([prefix, flat], dim=1)


_RULES: dict[PositionRule, Callable[[Tensor, int, int, int], Tensor]] = {
    "size": resize_positions_to_size,
    "scale_offset": resize_positions_scale_offset,
    "scale": resize_positions_scale,
}
