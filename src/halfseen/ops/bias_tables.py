"""Tables of relative position biases, and their remapping to another window or grid side.

A flat table has (2W-1)^2 rows for a window (or token grid) of side W, and 3 more at its end where a class token takes
part: class -> patch, patch -> class, class -> class.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from halfseen.errors import ShapeError


def table_side(rows: int, class_rows: int = 0) -> int:
    """Side 2W-1 of the square part of a table with `rows` rows, the last `class_rows` of them for the class token.

    Raises:
        ShapeError: if the rest is not the square of an odd number.
    """
    side = math.isqrt(max(rows - class_rows, 0))
    if side * side != rows - class_rows or side % 2 == 0:
        raise ShapeError(f"bias table: {rows} rows (of them {class_rows} for the class token) form no odd square.")
    return side


def resize_bias_table(table: Float[Tensor, "R heads"], side: int, class_rows: int = 0) -> Float[Tensor, "R2 heads"]:
    """A bias table for another window, by the bicubic remapping of the official SimMIM code.

    Source entries are placed at distances 1, 1+q, 1+q+q^2, ... from the centre, with q such that the outermost falls
    on the outermost target entry: near offsets keep their values, far ones are stretched. A bicubic spline through the
    table is evaluated at the integer target distances, clamped to the source range. A linear interpolation is off by
    O(1) on white noise.

    Args:
        table: float [side_a^2 + class_rows, heads].
        side: side 2W'-1 of the wanted square part.
        class_rows: rows at the end that are copied as they are (3 for tables with a class token, else 0).
    Returns:
        the same dtype, [side^2 + class_rows, heads]; `table` itself if the side already fits.
    Source: SimMIM, arXiv 2111.09886; scipy's removed `interp2d` is replaced by its documented successor.
    """
    old_side = table_side(table.shape[0], class_rows)
    if old_side == side:
        return table
    square = table[: table.shape[0] - class_rows].detach().double().cpu().numpy()
    source = source_coordinates(old_side, side)
    target = np.arange(-(side // 2), side // 2 + 1, dtype=np.float64)
    # Outside the source range the spline's boundary value is used, as the original interpolator did.
    inside = np.clip(target, source[0], source[-1])
    resized = np.stack(
        [
            _spline(source, square[:, head].reshape(old_side, old_side), inside).ravel()
            for head in range(table.shape[1])
        ],
        axis=1,
    )
    grown = torch.from_numpy(resized).to(dtype=table.dtype, device=table.device)
    return torch.cat([grown, table[table.shape[0] - class_rows :]])


def source_coordinates(old_side: int, side: int) -> np.ndarray:
    """Where the entries of one axis of the old table lie among the new distances: float64 [old_side], increasing."""
    half = old_side // 2
    ratio = _geometric_ratio(half, side // 2)
    distances = np.cumsum(ratio ** np.arange(half, dtype=np.float64))
    return np.concatenate([-distances[::-1], [0.0], distances])


def _geometric_ratio(terms: int, total: int) -> float:
    """q in (1.01, 1.5) with 1 + q + ... + q^(terms-1) = total, by bisection; the last midpoint that was tried."""
    left, right = 1.01, 1.5
    ratio = (left + right) / 2.0
    while right - left > 1e-6:
        ratio = (left + right) / 2.0
        reached = (1.0 - ratio**terms) / (1.0 - ratio)
        if reached > total:
            right = ratio
        else:
            left = ratio
    return ratio


def _spline(source: np.ndarray, square: np.ndarray, target: np.ndarray) -> np.ndarray:
    from scipy.interpolate import RectBivariateSpline  # Seldom needed, and slow to import.

    degree = min(3, len(source) - 1)
    spline = RectBivariateSpline(source, source, square, kx=degree, ky=degree, s=0)
    return np.asarray(spline(target, target))
