"""MixUp and CutMix: labels follow the pixels."""

import pytest
import torch

from halfseen.ops.mixing import mix_or_cut


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
