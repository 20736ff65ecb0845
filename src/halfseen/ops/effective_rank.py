"""How many dimensions a set of features really uses: the signs of dimensional collapse."""

import torch
from jaxtyping import Float
from torch import Tensor

from halfseen.errors import ShapeError


def rankme(features: Float[Tensor, "n D"], eps: float = 1e-7) -> float:
    """RankMe, the effective rank of a feature matrix: exp of the entropy of its normalised singular values.

    p_i = sigma_i / sum_j sigma_j + eps, result exp(-sum_i p_i log p_i). The features are taken as they are, uncentred.

    Args:
        features: one row per image.
        eps: added to each share, as in the paper.
    Returns:
        between about 1 (all features on one line) and min(n, D) (all directions used alike); 0 if all features are 0.
    Raises:
        ShapeError: if there is no row or no column.
    Source: RankMe, arXiv 2210.02885, equation 2.
    """
    if features.ndim != 2 or 0 in features.shape:
        raise ShapeError(
            f"features: got shape {tuple(features.shape)}, expected [n, D] with at least one row and column."
        )
    values = torch.linalg.svdvals(features.detach().float().cpu().double())
    total = values.sum()
    if total == 0:
        return 0.0
    shares = values / total + eps
    return float(torch.exp(-(shares * shares.log()).sum()))


def feature_std(features: Float[Tensor, "n D"]) -> float:
    """Spread of the features' directions: the standard deviation of the unit-length features times sqrt(D).

    Returns:
        0 if all features point the same way, about 1 if they are spread evenly over the sphere.
    Raises:
        ShapeError: with fewer than two rows.
    """
    if features.ndim != 2 or features.shape[0] < 2:
        raise ShapeError(f"features: got shape {tuple(features.shape)}, expected [n, D] with at least two rows.")
    directions = torch.nn.functional.normalize(features.detach().float().cpu().double(), dim=1)
    return float(directions.std(dim=0, correction=0).square().mean().sqrt() * features.shape[1] ** 0.5)
