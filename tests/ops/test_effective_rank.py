"""Effective rank and spread where they are known."""

import pytest
import torch

from halfseen.errors import ShapeError
from halfseen.ops.effective_rank import feature_std, rankme


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
