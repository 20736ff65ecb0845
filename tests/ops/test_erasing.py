"""Random erasing: sizes and shares of the rectangles, and noise that doesn't depend on how a batch is cut."""

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing

from halfseen.ops.erasing import draw_erasures, erase


def shares(boxes: np.ndarray, side: int) -> np.ndarray:
    return (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / side**2


def test_rectangles_are_distributed_as_timms() -> None:
    boxes = draw_erasures(4000, 64, 64, np.random.default_rng(0), 0.25)
    ours = shares(boxes, 64)
    timm = RandomErasing(probability=0.25, mode="pixel", max_count=1, device="cpu")
    theirs = np.array([float((timm(torch.zeros(3, 64, 64))[0] != 0).float().mean()) for _ in range(4000)])
    assert (ours > 0).mean() == pytest.approx((theirs > 0).mean(), abs=0.03)
    wanted = [0.1, 0.5, 0.9]
    np.testing.assert_allclose(np.quantile(ours[ours > 0], wanted), np.quantile(theirs[theirs > 0], wanted), atol=0.03)
    assert boxes.min() >= 0 and boxes.max() <= 64


def test_noise_fills_the_rectangles_alone() -> None:
    boxes = draw_erasures(64, 16, 16, np.random.default_rng(1), 0.5)
    images = torch.full((64, 3, 16, 16), 7.0)
    erased = erase(images, boxes, 3, "noise")
    changed = (erased != images).all(dim=1)
    np.testing.assert_allclose(changed.float().mean((1, 2)).numpy(), shares(boxes, 16), atol=1e-6)
    noise = erased[erased != 7.0]
    assert abs(float(noise.mean())) < 0.05 and float(noise.std()) == pytest.approx(1.0, abs=0.05)


def test_the_noise_of_a_row_is_its_own() -> None:
    boxes = draw_erasures(20, 16, 16, np.random.default_rng(1), 0.5)
    images = torch.zeros(20, 3, 16, 16)
    whole = erase(images, boxes, 3, "noise")
    late = erase(images[12:], boxes[12:], 3, "noise", first_row=12)
    assert torch.equal(whole[12:], late)
    assert not torch.equal(whole, erase(images, boxes, 4, "noise"))


def test_nothing_to_erase() -> None:
    images = torch.zeros(4, 3, 8, 8)
    assert erase(images, draw_erasures(4, 8, 8, np.random.default_rng(0), 0.0), 0) is images
