"""How far attention looks and how much it depends on who looks: distance, mutual information, maps of single queries.

Pure functions of attention among patch tokens, float [B, heads, N, N] without the prefix tokens' rows and columns; rows
are queries and need not sum to 1 any more: both measures normalise them again, each with its own small constant.
"""

import math

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from halfseen.errors import ShapeError

DISTANCE_EPS = 1e-32
INFORMATION_EPS = 1e-8


def patch_distances(grid: tuple[int, int], patch_size: int) -> Float64[Tensor, "N N"]:
    """Euclidean distances in pixels between the centres of all patches of a grid, row-major."""
    rows, columns = grid
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    return patch_size * torch.hypot(row[:, None] - row, column[:, None] - column)


def uniform_distance(grid: tuple[int, int], patch_size: int) -> float:
    """Attention distance in pixels of a head that looks at all patches alike: the line to compare others with."""
    return float(patch_distances(grid, patch_size).mean())


def attention_distance(
    attention: Float[Tensor, "B heads N N"], distances: Float[Tensor, "M M"]
) -> Float64[Tensor, "B heads"]:
    """Mean distance from a query to what it attends to, weighted by attention, over all queries.

    Args:
        attention: rows are normalised anew after adding 1e-32.
        distances: from `patch_distances`.
    Returns:
        in the unit of `distances`.
    Raises:
        ShapeError: attention of another number of patches.
    Source: Dosovitskiy et al., arXiv 2010.11929; constants of What Do Self-Supervised Vision Transformers Learn?,
        arXiv 2305.00729, official code.
    """
    _check(attention, len(distances))
    near = distances.to(attention.device, attention.dtype)
    exact = distances.cpu().double()
    # The constant is added to the sums: to the entries it would be one more pass over all pairs.
    weighted = (attention * near).sum(dim=-1).cpu().double() + DISTANCE_EPS * exact.sum(dim=-1)
    total = attention.sum(dim=-1).cpu().double() + DISTANCE_EPS * len(exact)
    return (weighted / total).mean(dim=-1)


def attention_information(attention: Float[Tensor, "B heads N N"]) -> Float32[Tensor, "B heads"]:
    """Normalised mutual information between query and key: whether tokens look at places of their own.

    I / sqrt(H(query) H(key)) with all queries equally likely. Not the score of clusterings of that name.

    Args:
        attention: rows are normalised anew after adding 1e-8.
    Returns:
        about 0 where all queries have the same map (attention has collapsed), 1 where each looks at one place of its
        own; rounding can put it 1e-8 below 0.
    Raises:
        ShapeError: fewer than two patches.
    Source: What Do Self-Supervised Vision Transformers Learn?, arXiv 2305.00729, official code.
    """
    patches = attention.shape[-1]
    _check(attention, max(patches, 2))
    weights = attention.float() + INFORMATION_EPS
    total = weights.sum(dim=-1)
    # sum_k p log p of normalised rows p = w / total, without normalising all pairs first. The constant keeps the
    # logarithm finite, and plain products are twice as fast as `xlogy` or `entr`.
    terms = torch.linalg.vecdot(weights, weights.log())
    wide_terms, wide_total = terms.cpu().double(), total.cpu().double()
    own = (wide_terms / wide_total - wide_total.log()).mean(dim=-1)
    marginal = ((1 / (patches * total)).unsqueeze(-2) @ weights).squeeze(-2).cpu().double()
    entropy = torch.special.entr(marginal).sum(dim=-1)
    information: Tensor = (own + entropy) / (entropy * math.log(patches)).sqrt()
    return information.float()


def query_maps(
    attention: Float[Tensor, "B heads N N"], query: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "B heads rows columns"]:
    """What one patch attends to, as pictures of the grid; each sums to 1.

    Args:
        query: (row, column) of the patch that looks.
    Raises:
        ShapeError: a patch outside the grid, or attention of another grid.
    """
    rows, columns = grid
    _check(attention, rows * columns)
    row, column = query
    if not (0 <= row < rows and 0 <= column < columns):
        raise ShapeError(f"query: got row {row}, column {column}, but the grid has {rows} rows and {columns} columns.")
    looked = attention[:, :, row * columns + column]
    maps: Tensor = looked / looked.sum(dim=-1, keepdim=True)
    return maps.reshape(*maps.shape[:2], *grid)


def _check(attention: Tensor, patches: int) -> None:
    if attention.shape[-1] != patches:
        raise ShapeError(f"attention: got {attention.shape[-1]} patches, expected {patches}.")
