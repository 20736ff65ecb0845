"""Attention distance, mutual information and maps: corner cases, other grids, and what is refused."""

import math

import pytest
import torch

from halfseen.analysis.attention import (
    attention_distance,
    attention_information,
    patch_distances,
    query_maps,
    uniform_distance,
)
from halfseen.errors import ShapeError


def test_distances_of_a_grid_that_is_not_square() -> None:
    distances = patch_distances((2, 3), 10)
    assert distances[0].tolist() == pytest.approx([0, 10, 20, 10, math.hypot(10, 10), math.hypot(20, 10)])
    assert torch.equal(distances, distances.T)


def test_uniform_attention_is_as_far_as_the_published_line() -> None:
    assert uniform_distance((12, 12), 16) == pytest.approx(99.753, abs=5e-4)


def test_distance_does_not_depend_on_how_rows_are_scaled(generator: torch.Generator) -> None:
    """The class token's column has been dropped, so rows don't sum to 1."""
    attention = torch.rand(2, 3, 6, 6, generator=generator)
    distances = patch_distances((2, 3), 8)
    scale = torch.rand(2, 3, 6, 1, generator=generator) + 0.1
    ours = attention_distance(attention, distances)
    torch.testing.assert_close(attention_distance(attention * scale, distances), ours)
    rows = attention / attention.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(ours, (rows.double() * distances).sum(dim=-1).mean(dim=-1), rtol=1e-6, atol=0)


def test_information_is_what_the_formula_says(generator: torch.Generator) -> None:
    attention = torch.rand(2, 3, 6, 6, generator=generator).double().pow(4).float()
    rows = attention.double() + 1e-8
    rows = rows / rows.sum(dim=-1, keepdim=True)
    marginal = rows.mean(dim=2, keepdim=True)
    information = (rows * (rows / marginal).log()).sum(dim=-1).mean(dim=-1)
    entropy = -(marginal * marginal.log()).sum(dim=-1).squeeze(2)
    plain = information / (entropy * math.log(6)).sqrt()
    torch.testing.assert_close(attention_information(attention).double(), plain, rtol=0, atol=1e-6)


def test_a_query_map_is_its_row_as_a_picture() -> None:
    attention = torch.arange(1.0, 37).reshape(1, 1, 6, 6)
    picture = query_maps(attention, (1, 2), (2, 3))
    assert picture.shape == (1, 1, 2, 3)
    torch.testing.assert_close(picture[0, 0].flatten(), attention[0, 0, 5] / attention[0, 0, 5].sum())


def test_what_does_not_go_together_is_refused() -> None:
    attention = torch.ones(1, 1, 6, 6)
    with pytest.raises(ShapeError, match="got 6 patches, expected 4"):
        attention_distance(attention, patch_distances((2, 2), 8))
    with pytest.raises(ShapeError, match="query: got row 2, column 0"):
        query_maps(attention, (2, 0), (2, 3))
    with pytest.raises(ShapeError, match="got 1 patches"):
        attention_information(torch.ones(1, 1, 1, 1))
