"""Effective rank and spread where they are known."""

import math

import pytest
import torch

from halfseen.errors import ShapeError
from halfseen.ops.effective_rank import alpha_req, feature_std, lidar, rankme


@pytest.mark.parametrize("rank", [1, 2, 7, 16])
def test_equal_directions_count_fully(rank: int) -> None:
    basis = torch.linalg.qr(torch.randn(64, 64))[0]
    features = 3 * basis[:, :rank] @ torch.linalg.qr(torch.randn(16, 16))[0][:rank]
    assert rankme(features) == pytest.approx(rank, rel=1e-3)


def test_unequal_directions_count_less() -> None:
    """Singular values 3 and 1: exp(H(3/4, 1/4)) = 1.7548."""
    assert rankme(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(1.7548, abs=1e-3)


def test_zero_features_have_no_rank() -> None:
    assert rankme(torch.zeros(4, 3)) == 0.0


def test_spread_is_one_on_the_sphere_and_zero_on_a_ray() -> None:
    assert feature_std(torch.randn(4000, 32)) == pytest.approx(1.0, abs=0.01)
    assert feature_std(torch.rand(10, 1) * torch.ones(1, 32) + 0.1) == pytest.approx(0.0, abs=1e-6)


def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError):
        rankme(torch.zeros(0, 3))
    with pytest.raises(ShapeError):
        feature_std(torch.zeros(1, 3))


def test_alpha_is_the_power_of_the_eigenvalues() -> None:
    ranks = torch.arange(1, 65, dtype=torch.float64)
    directions = torch.linalg.qr(torch.randn(200, 64, dtype=torch.float64)).Q
    directions = torch.linalg.qr(directions - directions.mean(dim=0)).Q
    for alpha in (0.5, 1.5):
        assert alpha_req(directions * ranks ** (-alpha / 2)) == pytest.approx(alpha, abs=1e-3)
        assert alpha_req(directions[:, :20] * ranks[:20] ** (-alpha / 2)) == pytest.approx(alpha, abs=1e-3)
    assert math.isnan(alpha_req(torch.tensor([[1.0, 0.0], [0.0, 1.0]])))
    with pytest.raises(ShapeError, match="at least two rows"):
        alpha_req(torch.ones(1, 3))


def test_lidar_counts_the_directions_that_tell_images_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(40, 1, 8)
    images[:, 0, :3] = torch.randn(40, 3, generator=generator)
    views = images + 0.01 * torch.randn(40, 4, 8, generator=generator)
    assert 2.5 < lidar(views) < 3.5
    blurred = images + torch.randn(40, 4, 8, generator=generator) * 3
    assert lidar(blurred) > 5  # Nothing tells them apart: all directions alike.
    # The plain formula, with the inverse root of the within-class scatter.
    wide = views.double()
    means = wide.mean(dim=1)
    inside = (wide - means[:, None]).flatten(0, 1)
    within = inside.T @ inside / (40 * 3) + 1e-4 * torch.eye(8)
    values, vectors = torch.linalg.eigh(within)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    shares = torch.linalg.eigvalsh(root @ means.T.cov() @ root).clamp(min=0)
    shares = shares / shares.sum() + 1e-15
    assert lidar(views) == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-6)
    with pytest.raises(ShapeError, match="two images and two views"):
        lidar(torch.ones(3, 1, 4))
