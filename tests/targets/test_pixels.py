import pytest
import torch

from halfseen.ops.patches import patchify
from halfseen.targets.pixels import pixel_target, restore_patches, standardise_patches


def test_standardised_patches_have_zero_mean_and_unbiased_unit_variance(generator: torch.Generator) -> None:
    patches = 3.0 + 5.0 * torch.randn(2, 7, 48, generator=generator)
    standardised, _ = standardise_patches(patches)
    assert standardised.mean(-1).abs().max() < 1e-6
    torch.testing.assert_close(standardised.var(-1, unbiased=True), torch.ones(2, 7), rtol=1e-5, atol=0)


def test_restoring_is_the_inverse(generator: torch.Generator) -> None:
    patches = torch.randn(2, 7, 48, generator=generator)
    standardised, statistics = standardise_patches(patches)
    torch.testing.assert_close(restore_patches(standardised, statistics), patches, rtol=0, atol=1e-6)


def test_flat_patches_stay_finite_under_autocast() -> None:
    images = torch.full((1, 3, 8, 8), 0.7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = pixel_target(images, 4, standardise=True)
    assert target.dtype == torch.float32
    assert target.abs().max() < 1e-2


def test_wanted_patches_come_in_the_wanted_order(generator: torch.Generator) -> None:
    images = torch.randn(2, 3, 12, 12, generator=generator)
    ids = torch.tensor([[8, 0], [3, 5]])
    target = pixel_target(images, 4, ids=ids, order="channels_first")
    every = patchify(images, 4, "channels_first")
    assert torch.equal(target[1, 0], every[1, 3]) and torch.equal(target[0], every[0, [8, 0]])


@pytest.mark.parametrize("standardise", [False, True])
def test_targets_carry_no_gradient(standardise: bool) -> None:
    images = torch.randn(1, 3, 8, 8, requires_grad=True)
    assert not pixel_target(images, 4, standardise=standardise).requires_grad
