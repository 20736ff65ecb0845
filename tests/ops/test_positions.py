import math

import numpy as np
import pytest
import torch

from halfseen.errors import ShapeError
from halfseen.ops.positions import (
    resize_positions,
    resize_positions_scale,
    resize_positions_scale_offset,
    resize_positions_to_size,
    sincos_positions,
)


def test_sincos_against_the_formula_written_out() -> None:
    rows, columns, dim = 3, 5, 8
    table = sincos_positions(dim, rows, columns, num_prefix_tokens=2)
    assert table.dtype == torch.float64 and not table[:2].any()
    row, column = 2, 3
    expected = []
    for coordinate in (column, row):  # the first half is the column
        angles = [coordinate * 10000.0 ** (-k / 2) for k in range(2)]
        expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    np.testing.assert_allclose(table[2 + row * columns + column].numpy(), expected, atol=1e-14)


def test_sincos_needs_a_width_divisible_by_four() -> None:
    with pytest.raises(ShapeError, match="divisible by 4"):
        sincos_positions(30, 4, 4)


@pytest.mark.parametrize("rule", ["size", "scale_offset", "scale"])
def test_a_fitting_grid_is_left_alone_and_prefix_rows_are_kept(rule: str) -> None:
    positions = torch.randn(1, 1 + 36, 4)
    assert resize_positions(positions, 6, 6, 1, rule) is positions
    larger = resize_positions(positions, 9, 9, 1, rule)
    assert larger.shape == (1, 82, 4)
    assert torch.equal(larger[:, 0], positions[:, 0])


def test_the_three_rules_are_the_three_calls_of_their_sources() -> None:
    positions = torch.randn(1, 1 + 49, 3)
    picture = positions[:, 1:].reshape(1, 7, 7, 3).permute(0, 3, 1, 2)

    def flat(resized: torch.Tensor) -> torch.Tensor:
        return resized.permute(0, 2, 3, 1).reshape(1, -1, 3)

    by_size = torch.nn.functional.interpolate(picture, size=(5, 4), mode="bicubic", align_corners=False)
    assert torch.equal(resize_positions_to_size(positions, 5, 4, 1)[:, 1:], flat(by_size))
    offset = torch.nn.functional.interpolate(picture, scale_factor=(5.1 / 7, 4.1 / 7), mode="bicubic")
    assert torch.equal(resize_positions_scale_offset(positions, 5, 4, 1)[:, 1:], flat(offset))
    scale = torch.nn.functional.interpolate(picture, scale_factor=math.sqrt(25 / 49), mode="bicubic")
    assert torch.equal(resize_positions_scale(positions, 5, 5, 1)[:, 1:], flat(scale))
    assert not torch.allclose(flat(scale), resize_positions_scale_offset(positions, 5, 5, 1)[:, 1:], atol=1e-4)


def test_grids_that_are_not_square_are_refused_where_a_rule_needs_squares() -> None:
    with pytest.raises(ShapeError, match="square grid"):
        resize_positions_scale(torch.randn(1, 17, 2), 3, 4, 1)
    with pytest.raises(ShapeError, match="do not form a square"):
        resize_positions_to_size(torch.randn(1, 16, 2), 3, 3, 1)


@pytest.mark.parametrize("side", range(2, 60))
def test_mses_scale_factor_always_reaches_the_wanted_side(side: int) -> None:
    assert resize_positions_scale(torch.randn(1, 1 + 14 * 14, 1), side, side, 1).shape[1] == 1 + side * side
