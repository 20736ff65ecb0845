"""torchvision's and timm's policies as functions of the sample's own generator."""

import pickle
import random

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform

from halfseen.data.policies import RandAugment, trivial_augment_and_erase


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


def test_rand_augment_is_that_of_timms_training_transform():
    policy = "rand-m9-mstd0.5-inc1"
    theirs = create_transform(48, is_training=True, auto_augment=policy, interpolation="bicubic").transforms[2]
    ours = RandAugment(policy, 48, (124, 116, 104))
    view = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    for seed in range(12):
        state = int(np.random.default_rng(seed).integers(2**32))
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002
        expected = np.asarray(theirs(Image.fromarray(view)))
        assert np.array_equal(ours(view, np.random.default_rng(seed)), expected)


def test_rand_augment_leaves_the_global_states_alone_and_travels():
    ours = pickle.loads(pickle.dumps(RandAugment("rand-m5-n3", 16, (0, 0, 0))))
    view = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    ours(view, np.random.default_rng(3))
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002
