import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfseen.errors import ShapeError
from halfseen.ops.losses import cell_mse, cell_sums, masked_l1, masked_mse, patch_weights
from halfseen.ops.patches import gather_tokens, mask_from_ids, patchify, pixel_mask, repeat_cells

ORDERS = ["channels_first", "channels_last"]


def picture_l1(
    images: torch.Tensor, prediction: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The definition written out on whole pictures, in float64."""
    error = (images.double() * weights.double() - prediction.double() * weights.double()).abs()
    return (error * mask).sum() / (mask.sum() + 1e-5) / 3


@given(
    grid=st.integers(1, 4),
    patch_size=st.sampled_from([2, 4, 6]),
    cell_size=st.sampled_from([1, 2, 3, 4, 8, 12]),
    order=st.sampled_from(ORDERS),
    data=st.data(),
)
def test_weighted_l1_is_its_definition_on_pictures(
    grid: int, patch_size: int, cell_size: int, order: str, data: st.DataObject
) -> None:
    side = grid * patch_size * cell_size  # fits both patches and cells
    patches = side // patch_size
    num_hidden = data.draw(st.integers(1, patches**2))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    images, prediction = torch.randn(2, 2, 3, side, side, generator=generator)
    cells = 1 + torch.rand(2, side // cell_size, side // cell_size, generator=generator)
    ids = torch.rand(2, patches**2, generator=generator).topk(num_hidden).indices
    weights = patch_weights(cells, cell_size, patch_size)[torch.arange(2)[:, None], ids]
    loss = masked_l1(
        gather_tokens(patchify(prediction, patch_size, order), ids),
        gather_tokens(patchify(images, patch_size, order), ids),
        num_hidden_pixels=ids.numel() * patch_size**2,
        weights=weights,
        order=order,
    )
    mask = pixel_mask(mask_from_ids(ids, patches**2), (patches, patches), patch_size)
    wanted = picture_l1(images, prediction, mask, repeat_cells(cells, cell_size).unsqueeze(1))
    torch.testing.assert_close(loss.double(), wanted, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("order", ORDERS)
def test_weights_of_one_change_nothing(order: str, generator: torch.Generator) -> None:
    prediction, target = torch.randn(2, 3, 5, 48, generator=generator)
    ones = torch.ones(3, 5, 2, 2)
    plain = masked_l1(prediction, target, num_hidden_pixels=240)
    assert masked_l1(prediction, target, num_hidden_pixels=240, weights=ones, order=order) == pytest.approx(plain)
    squared = masked_mse(prediction, target)
    assert masked_mse(prediction, target, weights=ones, order=order) == pytest.approx(squared)
    assert masked_mse(prediction, target, weights=3 * ones, order=order) == pytest.approx(3 * squared)


def test_weights_fall_on_the_right_pixels() -> None:
    cells = torch.arange(1.0, 17.0).reshape(1, 4, 4)  # 2-pixel cells of an 8-pixel picture
    weights = patch_weights(cells, 2, 4)
    assert weights[0, 1].tolist() == [[3.0, 4.0], [7.0, 8.0]]
    assert patch_weights(cells[:, :2, :2], 4, 2)[0, :, 0, 0].tolist() == [
        1, 1, 2, 2, 1, 1, 2, 2, 5, 5, 6, 6, 5, 5, 6, 6,
    ]  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_cell_sums_find_one_pixel(order: str) -> None:
    picture = torch.zeros(1, 3, 4, 4)
    picture[0, 1, 3, 0] = 2.0
    sums = cell_sums(patchify(picture, 4, order), 2, order)
    assert sums[0, 0].tolist() == [[0.0, 0.0], [2.0, 0.0]]


def test_losses_are_float32_under_autocast() -> None:
    prediction = torch.full((1, 2, 12), 1.0, dtype=torch.bfloat16)
    target = torch.full((1, 2, 12), 1.0 + 2**-10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = masked_l1(prediction, target, num_hidden_pixels=8)
        squared = masked_mse(prediction, target)
    assert loss.dtype == squared.dtype == torch.float32
    assert loss.item() == pytest.approx(2**-10, rel=1e-4)
    assert squared.item() == pytest.approx(2**-20, rel=1e-4)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="3x3 cells"):
        cell_sums(torch.zeros(1, 1, 48), 3, "channels_first")
    with pytest.raises(ShapeError, match="whole patches of 16 px"):
        patch_weights(torch.ones(1, 3, 3), 8, 16)


def test_cells_count_by_how_much_of_them_is_hidden() -> None:
    prediction, target = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    weights = torch.tensor([[1.0, 0.75, 0.0, 0.25], [0.5, 0.5, 0.0, 1.0]])
    errors = (prediction - target).square().mean(-1)
    torch.testing.assert_close(cell_mse(prediction, target, weights), (errors * weights).sum() / weights.sum())
    torch.testing.assert_close(cell_mse(prediction, target, torch.ones(2, 4)), cell_mse(prediction, target))
    changed = target.clone()
    changed[:, 2] += 1.0
    assert torch.equal(cell_mse(prediction, changed, weights), cell_mse(prediction, target, weights))
    # One row of weights for all images, as a Swin's shared mask gives.
    torch.testing.assert_close(
        cell_mse(prediction, target, weights[:1]), cell_mse(prediction, target, weights[:1].expand(2, -1))
    )
    assert cell_mse(prediction.bfloat16(), target).dtype == torch.float32
