"""Freeze times, stages and the saving that they promise."""

import pytest

from halfseen.ops.freezing import FreezeSchedule


def schedule(**changes) -> FreezeSchedule:
    settings = {"last_unit": 12, "epochs": 100, "warmup_epochs": 10, "micro_batches_per_epoch": 625}
    return FreezeSchedule(**{**settings, **changes})


@pytest.mark.parametrize(
    ("scale", "t0", "mean_frozen"),
    [
        ("linear", 0.5, 0.2292),
        ("linear", 0.9, 0.0458),
        ("squared", 0.6, 0.3198),
        ("squared", 0.8, 0.1716),
        ("cubic", 0.5, 0.4941),
        ("cubic", 0.8, 0.2415),
        ("cubic", 0.9, 0.1289),
    ],
)
def test_blocks_rest_for_the_specified_share_of_the_time(scale, t0, mean_frozen):
    shares = schedule(scale=scale, t0=t0, warmup_epochs=0).shares[1:]
    assert sum(1 - share for share in shares) / len(shares) == pytest.approx(mean_frozen, abs=5e-5)


def test_the_last_unit_learns_to_the_end_however_ragged_the_epochs():
    ragged = FreezeSchedule(last_unit=4, t0=0.5, epochs=0.9, micro_batches_per_epoch=17, accumulation=16)
    assert max(ragged.frozen(micro_batch) for micro_batch in range(40)) == 4
    assert ragged.rate(4, 32, 1.0) == pytest.approx(0.0, abs=1e-12)  # Past its end the cosine doesn't rise again.


def test_freeze_epochs_are_the_published_ones():
    published = [56.08, 59.02, 62.08, 65.27, 68.59, 72.03, 75.61, 79.32, 83.17, 87.16, 91.30, 95.57]
    moments = schedule().freezing_micro_batches
    assert moments[-1] is None
    assert [moment / 625 for moment in moments[:-1]] == pytest.approx(published, abs=0.007)


def test_a_share_of_one_never_freezes():
    assert set(schedule(t0=1.0).freezing_micro_batches) == {None}


def test_units_rest_only_from_the_beginning_of_an_update_on():
    accumulating = schedule(micro_batches_per_epoch=30, accumulation=4)
    for moment in accumulating.freezing_micro_batches[:-1]:
        assert moment % 30 % 4 == 0
        assert accumulating.frozen(moment) > accumulating.frozen(moment - 1)
        assert {accumulating.frozen(moment + later) for later in range(min(4, 30 - moment % 30))} == {
            accumulating.frozen(moment)
        }


def test_two_branches_that_expire_together_leave_one_after_the_other():
    short = FreezeSchedule(last_unit=4, t0=0.5, scale="linear", epochs=4, micro_batches_per_epoch=8, accumulation=8)
    moment = short.freezing_micro_batches[1]
    assert short.freezing_micro_batches[0] == moment  # Both times lie between the same two updates.
    gone = [short.branches_gone([0, 1, 4], micro_batch) for micro_batch in range(moment - 1, moment + 3)]
    assert gone == [0, 1, 2, 2]


def test_stages_cover_the_run_and_agree_with_the_micro_batches():
    plan = schedule(micro_batches_per_epoch=30, accumulation=3)
    stages = list(plan.stages(1000, 10, taps=(2, 4, 10, 12)))
    assert sum(stage.steps for stage in stages) == 1000
    assert [stage.frozen for stage in stages] == list(range(13))
    assert [stage.branches_gone for stage in stages] == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3]
    for stage in stages:
        for step in (stage.first_step, stage.first_step + stage.steps - 1):
            assert plan.frozen(plan.first_micro_batch(step, 10)) == stage.frozen


def test_every_unit_travels_the_same_distance_when_rates_are_scaled():
    plan = schedule(warmup_epochs=0, epochs=10)
    for unit in range(12):
        travelled = sum(plan.rate(unit, step, 1.0) for step in range(int(plan.ends[unit]) + 1))
        assert travelled == pytest.approx(0.5 * 10 * 625, rel=2e-3)
