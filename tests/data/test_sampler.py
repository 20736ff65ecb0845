"""Which images a step sees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfseen.data.sampler import StepSampler
from halfseen.errors import ConfigError, DataError


def whole_epoch(sampler: StepSampler, epoch: int) -> np.ndarray:
    first = epoch * sampler.steps_per_epoch
    return np.concatenate([sampler.indices(step) for step in range(first, first + sampler.steps_per_epoch)])


@given(
    num_images=st.integers(1, 200),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 5),
    drop_last=st.booleans(),
)
def test_an_epoch_sees_each_image_at_most_once(
    num_images: int, batch_size: int, seed: int, epoch: int, drop_last: bool
) -> None:
    batch_size = min(batch_size, num_images)
    sampler = StepSampler(num_images, batch_size, seed, drop_last=drop_last)
    seen = whole_epoch(sampler, epoch)
    assert len(set(seen.tolist())) == len(seen)
    assert set(seen.tolist()) <= set(range(num_images))
    assert len(seen) == (num_images // batch_size * batch_size if drop_last else num_images)
    assert seen.dtype == np.int64
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    assert sampler.smallest_batch == min(len(sampler.indices(step)) for step in steps)


@given(
    batches=st.integers(1, 4),
    rest=st.integers(0, 11),
    share=st.sampled_from([4, 6, 12]),
    world_size=st.integers(1, 4),
    divisor=st.sampled_from([1, 2]),
    step=st.integers(0, 30),
)
def test_processes_and_micro_batches_share_the_same_global_batch(
    batches: int, rest: int, share: int, world_size: int, divisor: int, step: int
) -> None:
    batch_size = share * world_size
    num_images = batches * batch_size + rest
    alone = StepSampler(num_images, batch_size, seed=3)
    rows: list[int] = []
    for rank in range(world_size):
        sampler = StepSampler(
            num_images, batch_size, seed=3, rank=rank, world_size=world_size, micro_batch_size=share // divisor
        )
        assert sampler.rows(step) == (rank * share, (rank + 1) * share)
        micro = sampler.micro_batches(step)
        assert [len(piece) for piece in micro] == [share // divisor] * divisor
        np.testing.assert_array_equal(np.concatenate(micro), sampler.indices(step))
        rows += sampler.indices(step).tolist()
    assert rows == alone.indices(step).tolist()


def test_an_incomplete_last_batch_is_shared_out_without_loss() -> None:
    alone = StepSampler(23, 8, seed=0, drop_last=False)
    assert alone.steps_per_epoch == 3
    parts = [StepSampler(23, 8, seed=0, drop_last=False, rank=rank, world_size=4) for rank in range(4)]
    for step in (2, 5):
        shares = [part.indices(step) for part in parts]
        assert [len(share) for share in shares] == [1, 2, 2, 2]
        assert np.concatenate(shares).tolist() == alone.indices(step).tolist()
        assert [part.rows(step)[0] for part in parts] == [0, 1, 3, 5]


def test_any_step_can_be_asked_for_first() -> None:
    walked = StepSampler(50, 8, seed=1)
    in_order = [walked.indices(step).tolist() for step in range(30)]
    for step in (29, 3, 17):
        assert StepSampler(50, 8, seed=1).indices(step).tolist() == in_order[step]


def test_order_depends_on_seed_and_epoch() -> None:
    sampler = StepSampler(100, 10, seed=0)
    assert whole_epoch(sampler, 0).tolist() != whole_epoch(sampler, 1).tolist()
    assert whole_epoch(sampler, 0).tolist() != whole_epoch(StepSampler(100, 10, seed=1), 0).tolist()
    assert whole_epoch(sampler, 0).tolist() != sorted(whole_epoch(sampler, 0).tolist())
    assert [sampler.epoch(step) for step in (0, 9, 10, 25)] == [0, 0, 1, 2]


@pytest.mark.parametrize("drop_last", [True, False])
def test_fewer_images_than_a_batch_is_an_error_that_names_the_key(drop_last: bool) -> None:
    with pytest.raises(DataError, match=r"train\.batch_size: got 64, but there are only 40 images.*at most.*=40"):
        StepSampler(40, 64, seed=0, drop_last=drop_last)


def test_no_images_is_an_error() -> None:
    with pytest.raises(DataError, match="got 0 images"):
        StepSampler(0, 4, seed=0)


def test_sizes_that_do_not_divide_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size: got 10, which 4 processes.*multiple of 4"):
        StepSampler(100, 10, seed=0, world_size=4)
    with pytest.raises(ConfigError, match=r"train\.micro_batch_size: got 3, expected a divisor of 4"):
        StepSampler(100, 8, seed=0, world_size=2, micro_batch_size=3)
    with pytest.raises(ConfigError, match=r"train\.drop_last: got false, but the last batch.* holds 1 of 9"):
        StepSampler(9, 8, seed=0, drop_last=False, world_size=2)
