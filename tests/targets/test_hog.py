"""HOG targets of hand-made pictures: which bin is filled, what stays zero, and that fine cells make coarse ones."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from halfseen.errors import ConfigError, ShapeError
from halfseen.targets.hog import (
    HOGTarget,
    PatchHOG,
    PatchHOGConfig,
    gradient_magnitude,
    gradient_phase,
    orientation_bins,
    sobel_gradients,
)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def directions() -> torch.Tensor:
    """Eight right angles, as both signs of zero give them."""
    zeros = torch.tensor([0.0, -0.0])
    ones = torch.tensor([1.0, -1.0])
    across, down = torch.cartesian_prod(zeros, ones), torch.cartesian_prod(ones, zeros)
    return torch.cat([across, down]).T


def test_sobel_is_the_cross_correlation_with_a_reflected_border() -> None:
    images = noise(2, 3, 7, 9)
    kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    weight = torch.stack([kernel, kernel.T])[:, None].repeat(3, 1, 1, 1)
    expected = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), weight, groups=3)
    gradients = sobel_gradients(images)
    torch.testing.assert_close(gradients.horizontal, expected[:, 0::2], rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients.vertical, expected[:, 1::2], rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient_magnitude(gradients), torch.hypot(*gradients))


@pytest.mark.parametrize("bins", [1, 2, 3, 4, 9, 12, 18, 36, 37, 180])
def test_right_angles_have_a_bin_of_their_own(bins: int) -> None:
    """+-0 and +-pi in bin 0, +-pi / 2 in the middle one: exactly, not by how a sum is rounded."""
    phase = torch.atan2(*directions()).repeat(64)  # long enough for a vectorised atan2
    found = orientation_bins(phase, bins).view(64, 8)
    assert (found[:, :4] == 0).all()
    assert (found[:, 4:] == bins // 2).all()


@given(bins=st.integers(1, 40), tenths=st.integers(1, 9))
def test_opposite_directions_share_a_bin(bins: int, tenths: int) -> None:
    number = torch.arange(bins)
    inside = (number + tenths / 10) * math.pi / bins
    assert torch.equal(orientation_bins(inside, bins), number)
    assert torch.equal(orientation_bins(inside - math.pi, bins), number)


def test_bins_leave_the_phase_alone() -> None:
    phase = torch.tensor([1.0, -2.0])
    orientation_bins(phase, 9)
    assert phase.tolist() == [1.0, -2.0]


def test_stripes_fill_one_bin() -> None:
    """Upright stripes have horizontal gradients, phase +-pi / 2; lying ones 0 or pi; colours are apart."""
    ramp = torch.arange(16.0).div(10).sin()
    images = torch.zeros(1, 3, 16, 16)
    images[0, 0] = ramp
    images[0, 1] = ramp[:, None]
    for bins in (9, 18):
        (cells,) = HOGTarget((8,), bins)(images)
        expected = torch.zeros(3, bins)
        expected[0, bins // 2] = expected[1, 0] = 1
        torch.testing.assert_close(cells, expected.flatten().expand(1, 4, -1))


@pytest.mark.parametrize("bias", [False, True])
def test_a_flat_picture_gives_zeros_unless_biased(bias: bool) -> None:
    images = torch.tensor([-2.1179, 0.3, 1 / 3]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    for cells in HOGTarget((4, 16), bias=bias)(images):
        lengths = cells.unflatten(2, (3, 9)).norm(dim=-1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, float(bias)))


def test_equal_neighbours_make_exact_ties_at_any_offset() -> None:
    """A step of one row lies in bin 0 and nowhere else, whatever the pixels' values round to."""
    values = noise(50, 2)
    images = values[:, None, :, None].expand(-1, 3, -1, 8).repeat_interleave(4, dim=2)
    (cells,) = HOGTarget((8,), 18)(images)
    expected = torch.zeros(54)
    expected[::18] = 1
    torch.testing.assert_close(cells, expected.expand(50, 1, -1), rtol=0, atol=1e-6)
    assert (cells[..., expected == 0] == 0).all()


@pytest.mark.parametrize("bins", [9, 18])
def test_coarse_cells_from_fine_ones_equal_direct_ones(bins: int) -> None:
    images = noise(2, 3, 48, 96)
    sizes = (4, 6, 8, 24, 48)
    together = HOGTarget(sizes, bins)(images)
    for size, cells in zip(sizes, together, strict=True):
        assert cells.shape == (2, (48 // size) * (96 // size), 3 * bins) and cells.dtype == torch.float32
        (direct,) = HOGTarget((size,), bins)(images)
        torch.testing.assert_close(cells, direct, rtol=0, atol=1e-6)


def test_a_cell_holds_what_its_pixels_say() -> None:
    images = noise(2, 3, 16, 24)
    gradients = sobel_gradients(images)
    bins, lengths = orientation_bins(gradient_phase(gradients), 9), gradient_magnitude(gradients)
    (cells,) = HOGTarget((8,), 9)(images)
    for b, row, column, colour in ((0, 0, 0, 0), (1, 1, 2, 2), (1, 0, 1, 1)):
        square = (b, colour, slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        sums = torch.zeros(9).index_add(0, bins[square].flatten(), lengths[square].flatten())
        mine = cells[b, row * 3 + column, 9 * colour : 9 * colour + 9]
        torch.testing.assert_close(mine, sums / sums.norm())


def test_images_do_not_mix() -> None:
    images, order = noise(4, 3, 32, 32), torch.tensor([2, 0, 3, 1])
    target = HOGTarget((4, 8), 18, bias=True, generator=torch.Generator().manual_seed(0))
    for cells, permuted in zip(target(images), target(images[order]), strict=True):
        assert torch.equal(permuted, cells[order])


def test_the_layout_of_memory_does_not_matter() -> None:
    images = noise(2, 3, 16, 32)
    target = HOGTarget((8,))
    assert torch.equal(target(images.contiguous(memory_format=torch.channels_last))[0], target(images)[0])


def test_no_gradient_and_float32_under_autocast() -> None:
    images = noise(1, 3, 16, 16).requires_grad_()
    target = HOGTarget((4, 8))
    plain = target(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = target(images)
    for first, second in zip(plain, mixed, strict=True):
        assert not first.requires_grad and second.dtype == torch.float32
        assert torch.equal(first, second)


@pytest.mark.parametrize("bias", [False, True])
def test_in_half_precision_it_is_the_convolution_of_the_original(bias: bool) -> None:
    images = noise(2, 3, 16, 16)
    hog = HOGTarget((4, 8), bins=9, bias=bias, generator=torch.Generator().manual_seed(0), fp32=False)
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    kernel = torch.stack([across, across.T])[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        found = hog(images)
        for number, (histograms, cell) in enumerate(zip(found, hog.cells, strict=True)):
            padded = F.pad(images.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="reflect")
            gradients = F.conv2d(padded, kernel, None if hog.bias is None else hog.bias[number])
            assert gradients.dtype == torch.bfloat16
            bins = (torch.atan2(gradients[:, 0], gradients[:, 1]) / math.pi * 9).floor().long() % 9
            lengths = gradients.float().norm(dim=1)
            maps = torch.stack([lengths * (bins == each) for each in range(9)], dim=1)
            expected = F.normalize(F.avg_pool2d(maps, cell), dim=1).reshape(2, 27, -1).transpose(1, 2)
            torch.testing.assert_close(histograms, expected, rtol=0, atol=1e-6)
    assert found[0].dtype == torch.float32
    exact = HOGTarget((4, 8), bins=9, bias=bias, generator=torch.Generator().manual_seed(0))(images)
    assert not torch.equal(found[0], exact[0])
    assert torch.equal(hog(images)[0], exact[0])


def test_the_bias_is_part_of_the_state_and_of_the_generator() -> None:
    first, again, other = (
        HOGTarget((4, 8, 8), 18, bias=True, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert list(first.state_dict()) == ["bias"] and first.bias.shape == (3, 2)
    assert torch.equal(first.bias, again.bias) and not torch.equal(first.bias, other.bias)
    assert first.bias.abs().max() < 1 / 3
    assert list(first.parameters()) == []
    images = noise(1, 3, 16, 16)
    _, second, third = first(images)
    assert not torch.allclose(second, third)  # the same cells, each with its own bias
    other.load_state_dict(first.state_dict())
    for mine, theirs in zip(first(images), other(images), strict=True):
        assert torch.equal(mine, theirs)
    assert dict(HOGTarget((4,)).state_dict()) == {}


def test_without_a_bias_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    HOGTarget((4, 8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("bias", [False, True])
def test_scales_that_are_no_longer_wanted_are_left_out(bias: bool) -> None:
    images = noise(1, 3, 32, 32)
    target = HOGTarget((4, 8, 32), bias=bias)
    for whole, rest in zip(target(images)[1:], target(images, start=1), strict=True):
        torch.testing.assert_close(rest, whole, rtol=0, atol=1e-6)


def test_cells_that_do_not_divide_the_picture_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"HOG cells of 5, 16 px don't divide a picture of 24x40 pixels: both sides"):
        HOGTarget((4, 5, 8, 16))(noise(1, 3, 24, 40))
    with pytest.raises(ShapeError, match="1x8 pixels has no gradients"):
        HOGTarget((1,))(noise(1, 3, 1, 8))


def test_patches_take_their_own_cells() -> None:
    images = noise(2, 3, 32, 48)
    (cells,) = HOGTarget((8,), 9)(images)
    ids = torch.tensor([[5, 0], [1, 3]])
    patches = PatchHOG(PatchHOGConfig(), 16)(images, ids)
    assert patches.shape == (2, 2, 4 * 27)
    grid = cells.view(2, 4, 6, 27)
    for b in range(2):
        for place, number in enumerate(ids[b].tolist()):
            row, column = divmod(number, 3)
            square = grid[b, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[b, place], square.flatten())


def test_cells_hidden_in_part_count_in_part() -> None:
    """Four patches of 2 x 2 cells; the mask is drawn on 4 x 4, 2 x 2, 1 x 1 and 3 x 3 parts of them."""
    hog = PatchHOG(PatchHOGConfig(), 16)
    prediction, target = noise(1, 4, 4 * 27), torch.zeros(1, 4, 4 * 27)
    errors = prediction.view(4, 2, 2, 27).square().mean(-1)
    torch.testing.assert_close(hog.mse(prediction, target), errors.mean())
    weights = (noise(1, 4, 4, 4) > 0).float()
    shares = weights.view(4, 2, 2, 2, 2).mean((2, 4))
    torch.testing.assert_close(hog.mse(prediction, target, weights), (errors * shares).sum() / shares.sum())
    shares = (noise(1, 4, 2, 2) > 0).float()
    torch.testing.assert_close(hog.mse(prediction, target, shares), (errors * shares[0]).sum() / shares.sum())
    whole = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(hog.mse(prediction, target, whole), errors[[0, 3]].mean())
    corner = torch.zeros(1, 4, 3, 3)
    corner[0, 0, 1, 1] = 1  # the middle of a patch is a quarter of it in each cell
    torch.testing.assert_close(hog.mse(prediction, target, corner), errors[0].mean())


def test_cells_must_divide_a_patch() -> None:
    with pytest.raises(ConfigError, match=r"target\.cell_size: 6 px cells don't divide .* 16 px.*fit: 2, 4, 8, 16\."):
        PatchHOG(PatchHOGConfig(cell_size=6), 16)


def test_more_bins_cut_finer() -> None:
    images = noise(1, 3, 8, 8)
    counts = [int((HOGTarget((8,), bins)(images)[0] > 0).sum()) for bins in (1, 9, 36)]
    assert counts[0] == 3 and all(first < second for first, second in pairwise(counts))
