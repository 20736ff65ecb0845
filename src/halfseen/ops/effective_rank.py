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


def alpha_req(features: Float[Tensor, "n D"], first: int = 11, last: int = 50) -> float:
    """Alpha-ReQ: how steeply the eigenvalues of the features' covariance fall, lambda_i ~ i^-alpha.

    A least-squares line through log lambda over log i, ranks `first` to `last`; where there are fewer ranks, over all
    that are above rounding. About 1 is said to go with good features; much more means few directions carry everything.

    Args:
        features: one row per image.
        first, last: ranks of the line's ends, from 1; the paper's.
    Returns:
        alpha; NaN where fewer than three eigenvalues are left.
    Raises:
        ShapeError: fewer than two rows.
    Source: alpha-ReQ, arXiv 2208.05977 (NeurIPS 2022).
    """
    if features.ndim != 2 or len(features) < 2:
        raise ShapeError(f"features: got shape {tuple(features.shape)}, expected [n, D] with at least two rows.")
    wide = features.detach().float().cpu().double()
    values = torch.linalg.svdvals(wide - wide.mean(dim=0)).square() / (len(wide) - 1)
    values = values[values > values.max() * 1e-10]
    if len(values) < last:
        first, last = 1, len(values)
    if last - first < 2:
        return float("nan")
    ranks = torch.arange(first, last + 1, dtype=torch.float64).log()
    logs = values[first - 1 : last].log()
    centred = ranks - ranks.mean()
    return float(-(centred * logs).sum() / centred.square().sum())


def lidar(features: Float[Tensor, "n q D"], delta: float = 1e-4) -> float:
    """LiDAR: the effective rank of what tells images apart, relative to how far views of one image are apart.

    Each image is a class, its q views are the samples of a linear discriminant analysis: exp of the entropy of the
    normalised eigenvalues of W^-1/2 B W^-1/2, B the covariance of the class means, W that of the views within, plus
    delta times the identity.

    Args:
        features: one row per image and view.
    Returns:
        between 1 and min(n - 1, D): the number of images bounds it, so compare values of the same n and q only.
    Raises:
        ShapeError: fewer than two images or two views.
    Source: LiDAR, arXiv 2312.04000.
    """
    if features.ndim != 3 or features.shape[0] < 2 or features.shape[1] < 2:
        raise ShapeError(
            f"features: got shape {tuple(features.shape)}, expected [n, q, D] with at least two images and two views."
        )
    wide = features.detach().float().cpu().double()
    means = wide.mean(dim=1)
    apart = means - means.mean(dim=0)
    inside = (wide - means[:, None]).flatten(0, 1)
    n, q, D = wide.shape
    within = inside.T @ inside / (n * (q - 1)) + delta * torch.eye(D, dtype=torch.float64)
    between = apart / (n - 1) ** 0.5
    # The eigenvalues of W^-1/2 B W^-1/2 are those of A W^-1 A^T with B = A^T A: as small as the number of images.
    small = between @ torch.linalg.solve(within, between.T)
    values = torch.linalg.eigvalsh((small + small.T) / 2).clamp(min=0)
    total = values.sum()
    if total == 0:
        return 1.0
    shares = values / total + 1e-15
    return float(torch.exp(-(shares * shares.log()).sum()))
