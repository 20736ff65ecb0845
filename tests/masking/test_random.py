import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfseen.errors import ConfigError, ShapeError
from halfseen.masking.random import (
    CellGrid,
    count_hidden,
    count_hidden_localmim,
    count_visible,
    hidden_by_topk,
    legacy_masks,
    mask_by_rank,
    random_visible_ids,
)
from halfseen.ops.patches import gather_tokens, mask_from_ids


@given(num_patches=st.integers(2, 400), ratio=st.floats(0.01, 0.99), rows=st.integers(1, 5), seed=st.integers(0, 1000))
def test_hidden_counts_are_exact_for_any_grid_and_ratio(num_patches: int, ratio: float, rows: int, seed: int) -> None:
    noise = torch.rand(rows, num_patches, generator=torch.Generator().manual_seed(seed))
    visible = int(num_patches * (1 - ratio))
    if not 0 < visible < num_patches:
        with pytest.raises(ConfigError, match=r"method\.mask_ratio"):
            count_visible(num_patches, ratio)
        return
    split = random_visible_ids(noise, count_visible(num_patches, ratio))
    assert (split.mask.sum(1) == num_patches - visible).all()
    assert not split.mask.gather(1, split.visible_ids).any()
    assert split.mask.gather(1, split.hidden_ids).all()
    # Restoring brings raster order back.
    shuffled = torch.cat([split.visible_ids, split.hidden_ids], dim=1)
    assert torch.equal(shuffled.gather(1, split.ids_restore), torch.arange(num_patches).expand(rows, -1))


def test_kept_patches_stay_in_the_order_of_their_noise() -> None:
    noise = torch.tensor([[0.5, 0.1, 0.9, 0.3]])
    split = random_visible_ids(noise, 3)
    assert split.visible_ids.tolist() == [[1, 3, 0]]
    assert split.hidden_ids.tolist() == [[2]]
    assert split.ids_restore.tolist() == [[2, 0, 3, 1]]
    assert hidden_by_topk(noise, 3).tolist() == [[2, 0, 3]]


@pytest.mark.parametrize(("patches", "ratio", "visible"), [(196, 0.75, 49), (25, 0.6, 10), (196, 0.9, 19)])
def test_kept_counts_truncate_the_float64_product(patches: int, ratio: float, visible: int) -> None:
    assert count_visible(patches, ratio) == visible


@pytest.mark.parametrize(("cells", "ratio", "up", "down"), [(36, 0.6, 22, 21), (49, 0.6, 30, 29), (64, 0.5, 32, 32)])
def test_hidden_counts_round_as_told(cells: int, ratio: float, up: int, down: int) -> None:
    assert count_hidden(cells, ratio, "ceil") == up
    assert count_hidden(cells, ratio, "floor") == down


@pytest.mark.parametrize(("exact", "hidden"), [(False, 37), (True, 36)])
def test_localmim_hides_one_patch_of_a_swin_more_unless_told_otherwise(exact: bool, hidden: int) -> None:
    ranks = torch.randperm(49, generator=torch.Generator().manual_seed(0))
    count = count_hidden_localmim(49, 0.75, exact)
    mask = mask_by_rank(ranks, count)
    assert int(mask.sum()) == count == hidden
    assert ranks[mask].max() < ranks[~mask].min()


@pytest.mark.parametrize(("patches", "ratio", "exact"), [(4, 0.75, False), (4, 0.2, True)])
def test_localmim_hides_neither_all_nor_none(patches: int, ratio: float, exact: bool) -> None:
    with pytest.raises(ConfigError, match=r"method\.mask_ratio"):
        count_hidden_localmim(patches, ratio, exact)


@given(
    side=st.integers(2, 8),
    patches_per_cell=st.sampled_from([1, 2, 4]),
    patch_size=st.integers(1, 6),
    ratio=st.floats(0.05, 0.95),
    rounding=st.sampled_from(["ceil", "floor"]),
)
def test_cell_masks_hide_whole_cells_and_the_same_number_everywhere(
    side: int, patches_per_cell: int, patch_size: int, ratio: float, rounding: str
) -> None:
    cell_size = patches_per_cell * patch_size
    wanted = math.ceil(side**2 * ratio) if rounding == "ceil" else math.floor(side**2 * ratio)
    if not 0 < wanted < side**2:
        with pytest.raises(ConfigError, match="must be hidden"):
            CellGrid.of(side * cell_size, cell_size, patch_size, ratio, rounding)
        return
    grid = CellGrid.of(side * cell_size, cell_size, patch_size, ratio, rounding)
    noise = torch.rand(3, grid.num_cells)
    mask = grid.patch_mask(grid.hide(noise))
    assert (mask.sum(1) == grid.num_hidden_patches).all()
    assert grid.num_hidden_patches == wanted * patches_per_cell**2
    in_cells = mask.reshape(3, side, patches_per_cell, side, patches_per_cell).float().mean((2, 4))
    assert set(in_cells.unique().tolist()) <= {0.0, 1.0}


@given(side=st.integers(2, 5), tokens_per_cell=st.sampled_from([1, 2, 3]), patches_per_token=st.sampled_from([1, 2, 8]))
def test_tokens_in_the_loss_are_those_that_the_mask_hides(
    side: int, tokens_per_cell: int, patches_per_token: int
) -> None:
    grid = CellGrid(side, tokens_per_cell * patches_per_token, side)
    hidden = grid.hide(torch.rand(2, grid.num_cells))
    tokens = grid.tokens_in_loss(hidden, patches_per_token)
    assert tokens.weights is None
    assert tokens.ids.shape == (2, grid.num_hidden * tokens_per_cell**2)
    tokens_a_side = side * tokens_per_cell
    ours = mask_from_ids(tokens.ids, tokens_a_side**2).reshape(2, tokens_a_side, tokens_a_side)
    patches = grid.patch_mask(hidden).reshape(2, side * grid.patches_per_cell, -1)
    assert torch.equal(ours, patches[:, ::patches_per_token, ::patches_per_token])


def test_tokens_larger_than_cells_are_weighted_by_their_hidden_parts() -> None:
    grid = CellGrid(side=4, patches_per_cell=2, num_hidden=1)
    tokens = grid.tokens_in_loss(torch.tensor([[6]]), patches_per_token=4)  # second row, third column of cells
    assert tokens.ids.tolist() == [[0, 1, 2, 3]]
    assert tokens.weights[0, 1].tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert float(tokens.weights.sum()) == 1.0


def test_each_cell_is_equally_likely() -> None:
    grid = CellGrid.of(48, 16, 8, 0.4)
    masks = grid.patch_mask(grid.hide(torch.rand(20_000, grid.num_cells, generator=torch.Generator().manual_seed(1))))
    share = masks.float().mean(0)
    # Four standard deviations of a mean over 20,000 draws with p = 4/9.
    assert (share - grid.num_hidden / grid.num_cells).abs().max() < 4 * math.sqrt(0.25 / 20_000)


def test_permuting_the_batch_permutes_the_masks() -> None:
    noise = torch.rand(6, 36)
    order = torch.randperm(6)
    grid = CellGrid.of(36, 6, 3, 0.5)
    assert torch.equal(grid.patch_mask(grid.hide(noise))[order], grid.patch_mask(grid.hide(noise[order])))


def test_impossible_cells_are_refused_with_those_that_fit() -> None:
    with pytest.raises(ConfigError, match=r"method.mask_cell_size: 32 px .* 28 px .*at least 2.*fit: 4\."):
        CellGrid.of(28, 32, 4, 0.5)
    with pytest.raises(ConfigError, match=r"48 px .* divide the image side \(192 px\).* fit: 32, 64, 96"):
        CellGrid.of(192, 48, 32, 0.5)
    with pytest.raises(ConfigError, match=r"0\.01 of 16 mask cells hides 0"):
        CellGrid.of(64, 16, 16, 0.01, "floor")
    with pytest.raises(ShapeError, match="expected 1 to 9"):
        hidden_by_topk(torch.rand(1, 9), 10)
    with pytest.raises(ShapeError, match="expected 1 to 9"):
        random_visible_ids(torch.rand(1, 9), 0)


def test_legacy_masks_leave_the_global_state_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    legacy_masks(CellGrid.of(192, 32, 16, 0.6), np.random.RandomState(3), 2)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_gathering_visible_tokens_matches_the_mask() -> None:
    tokens = torch.arange(10.0).reshape(1, 10, 1)
    split = random_visible_ids(torch.rand(1, 10), 4)
    seen = gather_tokens(tokens, split.visible_ids)
    assert sorted(seen.flatten().tolist()) == tokens[~split.mask].flatten().tolist()
