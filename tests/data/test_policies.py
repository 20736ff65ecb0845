"""torchvision's policies as functions of the sample's own generator."""

import numpy as np
import torch

from halfseen.data.policies import trivial_augment_and_erase


def test_it_is_a_function_of_the_generator_and_leaves_the_global_state_alone():
    view = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    before, state = view.copy(), torch.get_rng_state()
    found = [trivial_augment_and_erase(view, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(found[0], found[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(view, before)
    assert all(each.dtype == np.uint8 and each.shape == view.shape for each in found)


def test_half_of_the_views_lose_a_rectangle():
    view = np.full((32, 32, 3), 128, dtype=np.uint8)
    changed = [trivial_augment_and_erase(view, np.random.default_rng(seed)) for seed in range(300)]
    black = np.array([np.mean((each == 0).all(axis=2)) for each in changed])
    erased = (black > 0.015) & (black < 0.36)
    assert 0.35 < erased.mean() < 0.65
    assert len({each.tobytes() for each in changed}) > 150
