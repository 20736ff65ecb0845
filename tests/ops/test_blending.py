"""MixUp and CutMix of pairs against timm's, and how they are drawn."""

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup

from halfseen.errors import ShapeError
from halfseen.ops.blending import Blends, blend_neighbours, draw_blends

H, W, K = 12, 10, 5


def batch(rows: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(rows, 3, H, W), torch.arange(rows) % K


def drawn_by_timm(seed: int) -> tuple[float, np.ndarray]:
    """What timm's Mixup draws under a seed, in its order: switch, share, centre of the box."""
    random = np.random.RandomState(seed)
    random.rand()
    cuts = random.rand() < 0.5
    kept = float(random.beta(1.0, 1.0) if cuts else random.beta(0.8, 0.8))
    if not cuts:
        return kept, np.zeros(4, np.int64)
    high, wide = int(H * np.sqrt(1 - kept)), int(W * np.sqrt(1 - kept))
    y, x = random.randint(0, H), random.randint(0, W)
    box = np.array([y - high // 2, y + (high + 1) // 2, x - wide // 2, x + (wide + 1) // 2])
    box = np.clip(box, 0, [H, H, W, W])
    return 1 - (box[1] - box[0]) * (box[3] - box[2]) / (H * W), box


@pytest.mark.parametrize("seed", range(8))
def test_pairs_are_blended_as_timm_blends_them(seed: int) -> None:
    images, labels = batch()
    np.random.seed(seed)  # noqa: NPY002
    timm = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=K)
    theirs, targets = timm(images.clone(), labels)
    kept, box = drawn_by_timm(seed)
    pairs = [0, 7, 1, 6, 2, 5, 3, 4]  # timm blends the first with the last; here partners are neighbours.
    blends = Blends(np.full(8, kept), np.tile(box, (8, 1)))
    mixed, shares = blend_neighbours(images[pairs], labels[pairs], blends, K, smoothing=0.1)
    torch.testing.assert_close(mixed, theirs[pairs], rtol=0, atol=1e-7)
    torch.testing.assert_close(shares, targets[pairs], rtol=0, atol=1e-6)


def test_draws_have_timms_distributions() -> None:
    drawn = draw_blends(20_000, 32, 32, np.random.default_rng(0), mixup=0.8, cutmix=1.0)
    cut = drawn.boxes.any(axis=1)
    assert cut.mean() == pytest.approx(0.5, abs=0.02)
    assert drawn.kept[~cut].std() == pytest.approx((1 / 4 / (2 * 0.8 + 1)) ** 0.5, abs=0.01)
    inside = (drawn.boxes[:, 1] - drawn.boxes[:, 0]) * (drawn.boxes[:, 3] - drawn.boxes[:, 2])
    np.testing.assert_allclose(drawn.kept[cut], 1 - inside[cut] / 32**2, rtol=1e-12)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_one_of_both_alone(mixup: float, cutmix: float) -> None:
    drawn = draw_blends(200, 32, 32, np.random.default_rng(0), mixup=mixup, cutmix=cutmix, switch=0.5)
    assert bool(drawn.boxes.any()) == (cutmix > 0)


def test_probability_leaves_images_alone() -> None:
    drawn = draw_blends(4000, 32, 32, np.random.default_rng(0), mixup=1.0, cutmix=1.0, probability=0.25)
    idle = drawn.kept == 1.0
    assert idle.mean() == pytest.approx(0.75, abs=0.03)
    assert not drawn.boxes[idle].any()
    images, labels = batch()
    untouched = Blends(np.ones(8), np.zeros((8, 4), np.int64))
    mixed, shares = blend_neighbours(images, labels, untouched, K)
    assert torch.equal(mixed, images) and torch.equal(shares, torch.eye(K)[labels])


def test_the_parts_of_a_batch_make_the_whole() -> None:
    images, labels = batch()
    blends = draw_blends(2, H, W, np.random.default_rng(1), mixup=0.8, cutmix=1.0).take(np.arange(8) // 4)
    whole = blend_neighbours(images, labels, blends, K, 0.1)
    for rows in (slice(0, 2), slice(2, 8)):
        part = blend_neighbours(images[rows], labels[rows], blends.take(np.arange(8)[rows]), K, 0.1)
        assert all(torch.equal(ours, all_[rows]) for ours, all_ in zip(part, whole, strict=True))
    torch.testing.assert_close(whole[1].sum(1), torch.ones(8))


def test_an_odd_number_is_refused() -> None:
    images, labels = batch(7)
    with pytest.raises(ShapeError, match=r"got 7\. Give an even number"):
        blend_neighbours(images, labels, Blends(np.ones(7), np.zeros((7, 4), np.int64)), K)
