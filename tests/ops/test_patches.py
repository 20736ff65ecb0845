import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halfseen.errors import ShapeError
from halfseen.ops.patches import (
    gather_tokens,
    mask_from_ids,
    patch_grid,
    patchify,
    pixel_mask,
    unpatchify,
    whole_patches,
)

ORDERS = ["channels_first", "channels_last"]


@given(
    rows=st.integers(1, 4),
    cols=st.integers(1, 4),
    patch_size=st.integers(1, 5),
    channels=st.integers(1, 4),
    order=st.sampled_from(ORDERS),
)
def test_unpatchify_is_the_inverse(rows: int, cols: int, patch_size: int, channels: int, order: str) -> None:
    images = torch.rand(2, channels, rows * patch_size, cols * patch_size)
    patches = patchify(images, patch_size, order)
    assert patches.shape == (2, rows * cols, channels * patch_size**2)
    assert torch.equal(unpatchify(patches, (rows, cols), patch_size, order), images)


@pytest.mark.parametrize(
    ("order", "position"), [("channels_first", (2 * 4 + 1) * 4 + 3), ("channels_last", (4 + 3) * 3 + 2)]
)
def test_order_inside_a_patch(order: str, position: int) -> None:
    images = torch.zeros(1, 3, 8, 12)
    images[0, 2, 4 + 1, 8 + 3] = 1.0  # blue, second row and fourth column of the last of 2 x 3 patches
    patches = patchify(images, 4, order)
    assert patches.nonzero().tolist() == [[0, 5, position]]


def test_pixel_shuffle_order_is_torchs() -> None:
    values = torch.rand(2, 3 * 16, 5, 7)
    ours = unpatchify(values.flatten(2).transpose(1, 2), (5, 7), 4, "channels_first")
    assert torch.equal(ours, torch.nn.functional.pixel_shuffle(values, 4))


def test_sides_that_do_not_fit_are_refused_with_those_that_do() -> None:
    with pytest.raises(ShapeError, match=r"30x32.*multiples.*Sides near 30 that fit: 28, 32"):
        patch_grid(30, 32, 4)
    with pytest.raises(ShapeError, match="must be 6 patches"):
        unpatchify(torch.zeros(1, 5, 48), (2, 3), 4)


def test_masks_of_pixels_and_gathered_tokens() -> None:
    ids = torch.tensor([[3, 0], [1, 2]])
    mask = mask_from_ids(ids, 6)
    assert mask.tolist() == [[True, False, False, True, False, False], [False, True, True, False, False, False]]
    pixels = pixel_mask(mask, (2, 3), 2)
    assert pixels.shape == (2, 1, 4, 6)
    assert pixels[0, 0, :2, :2].all() and pixels[0, 0, 2:, :2].all() and int(pixels[0].sum()) == 8
    tokens = torch.arange(24.0).reshape(2, 6, 2)
    assert gather_tokens(tokens, ids)[0].tolist() == [[6.0, 7.0], [0.0, 1.0]]


@given(height=st.integers(3, 20), width=st.integers(3, 20))
def test_whole_patches_cut_the_border_on_the_right_and_below(height: int, width: int) -> None:
    images = torch.rand(2, 1, height, width)
    cut = whole_patches(images, 3)
    assert cut.shape[-2:] == (height - height % 3, width - width % 3)
    assert torch.equal(cut, images[..., : cut.shape[-2], : cut.shape[-1]])


def test_a_picture_smaller_than_a_patch_has_no_whole_patches() -> None:
    with pytest.raises(ShapeError, match="6x4 pixels holds no patch of 5"):
        whole_patches(torch.zeros(1, 3, 6, 4), 5)
