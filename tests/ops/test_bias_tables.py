import numpy as np
import pytest
import torch

from halfseen.errors import ShapeError
from halfseen.ops.bias_tables import resize_bias_table, source_coordinates, table_side


def test_side_of_a_table() -> None:
    assert table_side(169) == 13
    assert table_side(732, class_rows=3) == 27
    for rows in (168, 144, 0):
        with pytest.raises(ShapeError, match="form no odd square"):
            table_side(rows)


@pytest.mark.parametrize(("old", "new"), [(11, 13), (13, 27), (27, 31), (7, 9)])
def test_source_coordinates_are_a_symmetric_geometric_sum_that_reaches_the_new_border(old: int, new: int) -> None:
    coordinates = source_coordinates(old, new)
    assert coordinates[old // 2] == 0.0
    np.testing.assert_allclose(coordinates, -coordinates[::-1])
    steps = np.diff(coordinates[old // 2 :])
    assert steps[0] == 1.0
    np.testing.assert_allclose(steps[1:] / steps[:-1], steps[1])
    assert coordinates[-1] == pytest.approx(new // 2, abs=1e-3)


def test_a_constant_table_stays_constant_and_class_rows_are_copied() -> None:
    table = torch.full((11 * 11 + 3, 2), 0.25)
    table[-3:] = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    resized = resize_bias_table(table, 13, class_rows=3)
    assert resized.shape == (172, 2)
    torch.testing.assert_close(resized[:-3], torch.full((169, 2), 0.25))
    assert torch.equal(resized[-3:], table[-3:])


def test_the_centre_keeps_its_value_and_near_offsets_too() -> None:
    table = torch.randn(27 * 27, 1)
    resized = resize_bias_table(table, 31).reshape(31, 31)
    square = table.reshape(27, 27)
    # Offsets -1, 0, 1 lie exactly on source entries, whose values a spline passes through.
    torch.testing.assert_close(resized[14:17, 14:17], square[12:15, 12:15], rtol=0, atol=1e-5)


def test_a_fitting_table_is_returned_as_it_is() -> None:
    table = torch.randn(49, 3)
    assert resize_bias_table(table, 7) is table


def test_shrinking_stays_inside_the_source_range() -> None:
    table = torch.randn(13 * 13, 1)
    smaller = resize_bias_table(table, 7).reshape(7, 7)
    assert torch.isfinite(smaller).all()
    torch.testing.assert_close(smaller[3, 3], table.reshape(13, 13)[6, 6], rtol=0, atol=1e-5)
