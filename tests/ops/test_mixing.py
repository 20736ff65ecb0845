"""MixUp and CutMix: labels follow the pixels."""

import pytest
import torch

from halfseen.ops.mixing import mix_or_cut, mix_up, mixup_share


@pytest.fixture
def batch():
    """Each image is filled with its own number, so that pixels tell whose they are."""
    images = torch.arange(1.0, 5.0).view(4, 1, 1, 1).expand(4, 3, 20, 30).contiguous()
    return images, torch.eye(4)


def test_labels_are_the_shares_of_the_pixels(batch):
    images, labels = batch
    kinds = []
    for seed in range(60):
        mixed = mix_or_cut(images, labels, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(mixed.labels.sum(dim=1), torch.ones(4))
        numbers = torch.arange(1.0, 5.0)
        torch.testing.assert_close(mixed.images.mean(dim=(1, 2, 3)), mixed.labels @ numbers, rtol=1e-4, atol=1e-5)
        values = set(mixed.images[1].unique().tolist())
        kinds.append(values <= {1.0, 2.0})
        assert mixed.labels[1, 2:].sum() == 0
    assert 15 < sum(kinds) < 45
    assert torch.equal(images[1].unique(), torch.tensor([2.0]))


def test_the_kept_share_is_uniform(batch):
    images, labels = batch
    mixed = [mix_or_cut(images, labels, torch.Generator().manual_seed(seed)) for seed in range(400)]
    blended = torch.stack([each.labels[0, 0] for each in mixed if len(each.images[1].unique()) == 1])
    assert 0.45 < float(blended.mean()) < 0.55
    assert float(blended.std()) == pytest.approx(12**-0.5, abs=0.05)


def test_mixup_keeps_a_share_of_each_image_and_label(batch):
    images, labels = batch
    mixed = mix_up(images, labels, 0.75)
    torch.testing.assert_close(mixed.images[:, 0, 0, 0], torch.tensor([1.75, 1.75, 2.75, 3.75]))
    assert mixed.labels[0].tolist() == [0.75, 0.0, 0.0, 0.25]
    torch.testing.assert_close(mixed.images.mean(dim=(1, 2, 3)), mixed.labels @ torch.arange(1.0, 5.0))
    assert torch.equal(mix_up(images, labels, 1.0).images, images)


def test_shares_of_mixup_follow_their_distribution():
    shares = torch.tensor([mixup_share(0.1, 3, "mixup", step) for step in range(2000)])
    assert mixup_share(0.1, 3, "mixup", 7) == pytest.approx(float(shares[7]))
    assert float(shares.min()) >= 0.0 and float(shares.max()) <= 1.0
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(1 / (4 * 1.2), abs=0.01)  # of Beta(a, a): 1 / (4 (2 a + 1))
