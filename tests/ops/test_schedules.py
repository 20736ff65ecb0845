import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfseen.ops.schedules import (
    constant,
    ibot_cosine,
    linear_decay,
    mae_cosine,
    msn_learning_rate,
    msn_weight_decay,
    multistep,
    rebased_cosine,
    schedule_index,
    step_decay,
    teacher_temperature,
    unshifted_cosine,
)

RATES = st.floats(1e-6, 1.0)


@given(base=RATES, share=st.floats(0, 1), warmup=st.integers(1, 50), decay=st.integers(1, 200), t=st.floats(0, 300))
def test_rebased_cosine_stays_between_its_ends_and_is_continuous(
    base: float, share: float, warmup: int, decay: int, t: float
) -> None:
    def value(at: float) -> float:
        return rebased_cosine(at, base=base, total=warmup + decay, warmup=warmup, minimum=share * base)

    assert 0 <= value(t) <= base * (1 + 1e-12)
    assert t < warmup or value(t) >= share * base * (1 - 1e-12)
    assert value(warmup) == pytest.approx(base)
    assert value(math.nextafter(warmup, 0)) == pytest.approx(base)
    assert value(math.nextafter(warmup + decay, 0)) == pytest.approx(share * base, rel=1e-6, abs=1e-12)


@given(base=RATES, warmup=st.integers(0, 20), decay=st.integers(1, 100))
def test_cosines_never_rise_after_the_warmup(base: float, warmup: int, decay: int) -> None:
    total = warmup + decay
    for curve in (rebased_cosine, unshifted_cosine):
        values = [
            curve(t, base=base, total=total, warmup=warmup, warmup_start=0.0, minimum=0.01 * base)
            for t in range(warmup, total + 5)
        ]
        assert all(later <= earlier + 1e-15 for earlier, later in itertools.pairwise(values))
        assert values[-1] == 0.01 * base


def test_the_unshifted_cosine_drops_at_the_end_of_the_warmup() -> None:
    value = unshifted_cosine(10, base=1.0, warmup_start=0.0, minimum=0.0, warmup=10, total=100)
    assert value == pytest.approx(0.5 * (1 + math.cos(math.pi / 10)))
    # The drop that KAMIM's page names, at 10 of 100 epochs.
    assert value == pytest.approx(0.9755, abs=5e-5)


def test_mae_starts_from_zero() -> None:
    assert mae_cosine(0.0, base=1e-3, minimum=1e-6, warmup_epochs=5, epochs=50) == 0.0
    assert mae_cosine(2.5, base=1e-3, minimum=1e-6, warmup_epochs=5, epochs=50) == pytest.approx(5e-4)


def test_a_milestone_counts_from_its_own_step_on() -> None:
    values = [multistep(t, base=1.0, gamma=0.1, milestones=[3, 5], warmup=1, warmup_start=0.5) for t in range(7)]
    assert values == pytest.approx([0.5, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


def test_linear_step_and_constant() -> None:
    values = [linear_decay(t, base=2.0, warmup=2, warmup_start=0.0, total=12) for t in (0, 1, 2, 7, 12, 50)]
    assert values == pytest.approx([0.0, 1.0, 2.0, 2.0 - 1.98 / 2, 0.02, 0.02])
    assert [step_decay(t, base=1.0, gamma=0.5, decay_every=3) for t in (0, 2, 3, 6)] == [1.0, 1.0, 0.5, 0.25]
    assert [constant(t, base=3.0, warmup_start=1.0, warmup=2) for t in (0, 1, 2, 9)] == [1.0, 2.0, 3.0, 3.0]


def test_no_warmup_at_all() -> None:
    assert rebased_cosine(0, base=1.0, total=10) == 1.0
    assert rebased_cosine(0, base=1.0, total=0) == 1.0
    assert unshifted_cosine(0, base=1.0, warmup_start=0.1, minimum=0.0, warmup=0, total=10) == 1.0


def test_indices_lag_and_count_micro_batches() -> None:
    assert [schedule_index(step) for step in range(4)] == [0, 1, 2, 3]
    assert [schedule_index(step, lag_steps=1) for step in range(4)] == [0, 0, 1, 2]
    # Five micro-batches per epoch in groups of two: updates follow micro-batches 1, 3 and 4.
    sizes = {"steps_per_epoch": 3, "micro_batches_per_epoch": 5, "accumulation": 2}
    assert [schedule_index(step, index="microbatch", **sizes) for step in range(6)] == [1, 3, 4, 4, 6, 7]
    whole = [schedule_index(step, index="microbatch", epoch_stride=5, **sizes) for step in range(6)]
    assert whole == [1, 3, 4, 6, 8, 9]
    assert [schedule_index(step, lag_steps=1, index="microbatch", **sizes) for step in range(4)] == [0, 1, 3, 4]


@given(step=st.integers(0, 10_000), steps=st.integers(1, 40), lag=st.sampled_from([0, 1]))
def test_without_accumulation_both_indices_agree(step: int, steps: int, lag: int) -> None:
    plain = schedule_index(step, lag_steps=lag)
    counted = schedule_index(
        step, lag_steps=lag, index="microbatch", steps_per_epoch=steps, micro_batches_per_epoch=steps, accumulation=1
    )
    assert plain == counted


def test_ibot_cosine_takes_its_base_twice_and_never_its_end() -> None:
    values = [ibot_cosine(i, base=1.0, final=0.1, total=20, warmup=5) for i in range(20)]
    assert values[:5] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert values[5] == 1.0
    assert all(late < early for early, late in itertools.pairwise(values[5:]))
    assert values[-1] > 0.1
    assert ibot_cosine(0, base=1.0, final=0.1, total=4, warmup=1) == 0.0


@pytest.mark.parametrize(
    ("warmup", "start", "expected"),
    [
        (3, 0, [0.04, 0.055, 0.07, 0.07, 0.07]),
        (0, 0, [0.07] * 5),
        (1, 0, [0.04, 0.07, 0.07, 0.07, 0.07]),
        (2, 2, [0.04, 0.04, 0.04, 0.07, 0.07]),
    ],
)
def test_the_teachers_temperature_rises_over_its_epochs(warmup: int, start: int, expected: list[float]) -> None:
    found = [
        teacher_temperature(epoch, warm=0.04, final=0.07, warmup_epochs=warmup, start_epoch=start) for epoch in range(5)
    ]
    assert found == pytest.approx(expected)


def test_msn_schedules_stay_on_their_side_of_the_end_even_beyond_the_horizon() -> None:
    rates = [msn_learning_rate(i, base=1.0, start=0.2, final=0.01, warmup_steps=4, horizon_steps=25) for i in range(60)]
    assert rates[0] == pytest.approx(0.4)
    assert rates[3] == 1.0
    assert min(rates[4:]) >= 0.01
    rising = [msn_weight_decay(i, start=0.04, final=0.4, horizon_steps=25) for i in range(60)]
    falling = [msn_weight_decay(i, start=0.4, final=0.04, horizon_steps=25) for i in range(60)]
    assert max(rising) <= 0.4 and min(falling) >= 0.04
