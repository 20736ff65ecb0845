"""Whether two layers, of one model or of two, hold the same things: centred kernel alignment."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from halfseen.errors import ShapeError


def linear_cka(first: Sequence[Float[Tensor, "n _"]], second: Sequence[Float[Tensor, "m _"]]) -> Float64[Tensor, "F S"]:
    """Linear CKA of every representation of `first` with every one of `second`, in [0, 1].

    |X^T Y|^2 / (|X^T X| |Y^T Y|), Frobenius norms of columns that are centred over the rows. With few rows for many
    columns it comes out too high: compare values from the same number of rows only.

    Args:
        first, second: matrices of the same n rows (tokens, or images), in the same order; any widths.
    Returns:
        NaN where a representation doesn't vary at all.
    Raises:
        ShapeError: other numbers of rows.
    Source: Similarity of Neural Network Representations Revisited, arXiv 1905.00414.
    """
    counts = {len(matrix) for matrix in (*first, *second)}
    if len(counts) > 1:
        raise ShapeError(f"CKA: got matrices of {sorted(counts)} rows, expected the same rows in all of them.")
    ours = [_centred(matrix) for matrix in first]
    theirs = ours if first is second else [_centred(matrix) for matrix in second]
    scale_first = torch.stack([_product(x, x) for x in ours]).sqrt()
    scale_second = scale_first if first is second else torch.stack([_product(y, y) for y in theirs]).sqrt()
    rows: list[Tensor] = []
    for number, x in enumerate(ours):
        known = [row[number] for row in rows] if first is second else []
        rows.append(torch.stack([*known, *(_product(x, y) for y in theirs[len(known) :])]))
    products = torch.stack(rows)
    alignment: Tensor = products / (scale_first[:, None] * scale_second)
    return alignment


def _centred(matrix: Tensor) -> Tensor:
    """Centred columns, scaled to unit norm as a whole: then float32 products can't overflow or vanish."""
    wide = matrix.cpu().double()
    wide = wide - wide.mean(dim=0)
    unit: Tensor = (wide / wide.norm()).float()
    return unit


def _product(x: Tensor, y: Tensor) -> Tensor:
    """|X^T Y|^2."""
    size: Tensor = (x.T @ y).double().square().sum()
    return size
