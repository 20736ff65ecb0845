"""AvgDist against its definition."""

import numpy as np
import pytest
import torch

from halfseen.errors import ShapeError
from halfseen.ops.mask_distance import average_distance


def by_definition(hidden: np.ndarray) -> float:
    seen = np.argwhere(~hidden)
    return float(np.mean([np.sqrt(((seen - pixel) ** 2).sum(1)).min() for pixel in np.argwhere(hidden)]))


def test_it_is_its_definition() -> None:
    mask = torch.rand(24, 36, generator=torch.Generator().manual_seed(0)) < 0.9
    assert average_distance(mask[None, None]) == pytest.approx(by_definition(mask.numpy()), rel=1e-5)


def test_a_batch_weighs_hidden_pixels_alike() -> None:
    masks = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    masks[0, 0, 4, 4] = True  # One pixel at distance 1,
    masks[1, 0, :, 1:] = True  # and 8 times distances 1 to 7.
    assert average_distance(masks) == pytest.approx((1 + 8 * 28) / 57)


@pytest.mark.parametrize("hidden", [True, False])
def test_masks_without_hidden_or_visible_pixels_are_refused(hidden: bool) -> None:
    with pytest.raises(ShapeError, match="hidden and visible"):
        average_distance(torch.full((1, 1, 4, 4), hidden))
