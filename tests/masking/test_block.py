"""Block and random masks for any grid and share."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from halfseen.masking.block import BlockMask, RandomMask, block_mask, draw_mask, scattered_mask

GRIDS = st.tuples(st.integers(1, 16), st.integers(1, 16))


@given(grid=GRIDS, ratio=st.floats(0, 1), seed=st.integers(0, 999))
def test_blocks_never_hide_more_than_asked_for(grid: tuple[int, int], ratio: float, seed: int) -> None:
    most = ratio * grid[0] * grid[1]
    mask = block_mask(grid, most, random.Random(seed))
    assert mask.shape == grid and mask.dtype == bool
    assert mask.sum() <= most


def union_of_rectangles(grid: tuple[int, int], most: float, seed: int) -> np.ndarray:
    """The algorithm written out patch by patch, with sets."""
    rows, cols = grid
    generator, hidden = random.Random(seed), set()
    while len(hidden) < most:
        for _ in range(10):
            missing = most - len(hidden)
            area = generator.uniform((min(grid) // 3) ** 2, missing)
            aspect = np.exp(generator.uniform(np.log(0.3), np.log(1 / 0.3)))
            height, width = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
            if height >= rows or width >= cols:
                continue
            top, left = generator.randint(0, rows - height), generator.randint(0, cols - width)
            block = {(row, col) for row in range(top, top + height) for col in range(left, left + width)}
            if 0 < len(block - hidden) <= missing:
                hidden |= block
                break
        else:
            break
    mask = np.zeros(grid, dtype=bool)
    for place in hidden:
        mask[place] = True
    return mask


@given(grid=GRIDS, ratio=st.floats(0, 1), seed=st.integers(0, 999))
def test_blocks_equal_the_plain_algorithm(grid: tuple[int, int], ratio: float, seed: int) -> None:
    most = ratio * grid[0] * grid[1]
    np.testing.assert_array_equal(block_mask(grid, most, random.Random(seed)), union_of_rectangles(grid, most, seed))


@given(grid=GRIDS, share=st.floats(0, 1), seed=st.integers(0, 999))
def test_scattered_masks_hide_an_exact_number(grid: tuple[int, int], share: float, seed: int) -> None:
    count = int(share * grid[0] * grid[1])
    mask = scattered_mask(grid, count, np.random.default_rng(seed))
    assert mask.shape == grid and mask.sum() == count


def test_each_patch_of_a_random_mask_is_equally_likely() -> None:
    config, generator = RandomMask(pred_ratio=0.5, pred_ratio_var=0.0), np.random.default_rng(0)
    masks = [draw_mask(config, (4, 4), random.Random(0), generator) for _ in range(4000)]
    # Four standard deviations of a mean over 4,000 draws with p = 1/2.
    assert np.abs(np.mean(masks, axis=0) - 0.5).max() < 4 * 0.5 / 4000**0.5


def test_defaults_are_those_of_the_original_command_line() -> None:
    assert BlockMask() == BlockMask(kind="block", pred_ratio=0.3, pred_ratio_var=0.0)
    for config in (BlockMask(pred_ratio=(0.0, 0.3), pred_ratio_var=(0.0, 0.2)), RandomMask()):
        assert type(config).model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="must lie within 0 and 1"):
        BlockMask(pred_ratio=0.1, pred_ratio_var=0.2)
    with pytest.raises(ValidationError, match="less than 1"):
        RandomMask(pred_ratio=1.0)
