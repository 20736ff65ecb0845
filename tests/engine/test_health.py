"""Each sign of illness is seen where it is, and not seen in healthy runs."""

import pytest

from halfseen.engine.finding import Finding
from halfseen.engine.health import Health, RunShape, findings_before, small_grid

LONG = RunShape(steps_per_epoch=100, last_step=2000, warmup_steps=100, grid=14)


def found_over(health: Health, losses: list[float], **metrics: float) -> set[str]:
    found: set[str] = set()
    for number, loss in enumerate(losses, start=1):
        found |= {finding.id for finding in health.check({"step": 10 * number, "loss": loss, "lr": 1e-3, **metrics})}
    return found


def test_a_healthy_run_is_left_in_peace() -> None:
    health = Health(LONG._replace(mean_loss=1.0))
    losses = [0.4 + 0.6 * 0.98**number for number in range(200)]
    assert found_over(health, losses, grad_norm=1.0, data_wait_share=0.05) == set()
    assert findings_before(LONG) == []


@pytest.mark.parametrize(
    ("shape", "id", "key"),
    [
        (LONG._replace(steps_per_epoch=19), "few_steps", "train.batch_size"),
        (LONG._replace(warmup_steps=2000), "long_warmup", "train.lr.warmup_epochs"),
        (LONG._replace(grid=3), "small_grid", "model.patch_size"),
    ],
)
def test_sizes_that_make_no_sense(shape: RunShape, id: str, key: str) -> None:
    (finding,) = findings_before(shape)
    assert finding.id == id and key in finding.sentence and finding.step == 0


def test_four_patches_per_side_are_enough() -> None:
    assert small_grid(4) == []


def test_a_gradient_spike() -> None:
    health = Health(LONG)
    assert found_over(health, [0.5] * 12, grad_norm=0.2) == set()
    (finding,) = health.check({"step": 130, "loss": 0.5, "grad_norm": 2.5})
    assert finding.id == "gradient_spike" and "train.clip_norm" in finding.sentence and finding.step == 130
    assert health.check({"step": 140, "loss": 0.5, "grad_norm": 0.3}) == []
    assert health.check({"step": 150, "loss": 0.5, "grad_norm": float("inf")}) == []


def test_waiting_for_data_must_last() -> None:
    health = Health(LONG)
    assert found_over(health, [0.5, 0.5], data_wait_share=0.9) == set()
    assert found_over(health, [0.5], data_wait_share=0.1) == set()
    assert found_over(health, [0.5] * 3, data_wait_share=0.4) == {"data_wait"}


def test_a_loss_that_never_moves_is_flat() -> None:
    assert "flat_loss" in found_over(Health(LONG), [0.7 + 1e-4 * (number % 2) for number in range(40)])


def test_a_loss_that_moved_and_settled_is_not_flat() -> None:
    falling_then_still = [0.7 - 0.01 * min(number, 30) for number in range(100)]
    assert found_over(Health(LONG), falling_then_still) == set()


def test_losses_are_not_compared_with_themselves() -> None:
    """Few lines so far, because they are far apart: the first ones are the last ones too."""
    health = Health(LONG._replace(warmup_steps=0))
    found: set[str] = set()
    for step, loss in zip(range(50, 1000, 50), [1.0 - 0.01 * number for number in range(19)], strict=True):
        found |= {finding.id for finding in health.check({"step": step, "loss": loss})}
    assert found == set()


def test_a_resumed_run_judges_as_an_unbroken_one() -> None:
    lines = [
        {"step": 10 * number, "loss": max(0.5, 1.0 - 0.02 * number), "grad_norm": None if number == 3 else 0.2}
        for number in range(1, 100)
    ]
    looks = [
        {"step": step, "loss": 0.5, "rankme": rank, "feature_std": 0.5} for step, rank in ((991, 60.0), (992, 40.0))
    ]
    health = Health(LONG)
    health.replay([*lines, *looks])
    assert {
        finding.id for step in range(1000, 1200, 10) for finding in health.check({"step": step, "loss": 0.5})
    } == set()
    assert [finding.id for finding in health.check({"step": 1200, "loss": 0.5, "grad_norm": 2.5})] == ["gradient_spike"]
    assert health.ranks == [60.0, 40.0]


def test_predicting_the_mean() -> None:
    slow = [1.2 * 0.995**number if number < 40 else 0.98 for number in range(100)]
    assert found_over(Health(LONG._replace(mean_loss=1.0)), slow) == {"predicts_mean"}
    assert found_over(Health(LONG), slow) == set()
    assert found_over(Health(LONG), slow, mean_loss=1.0) == {"predicts_mean"}
    assert found_over(Health(LONG._replace(mean_loss=1.0)), [loss - 0.2 for loss in slow]) == set()


def test_a_branch_of_the_loss_that_ends_takes_its_mean_along() -> None:
    health = Health(LONG)
    for number in range(200):
        scale = 0.5 if number >= 195 else 1.0
        record = {"step": LONG.last_step // 2 + number, "loss": 0.7 * scale, "lr": 1e-3, "mean_loss": scale}
        assert "predicts_mean" not in {finding.id for finding in health.check(record)}


def looks(health: Health, ranks: list[float], losses: list[float], spread: float = 0.5) -> list[Finding]:
    return [
        finding
        for step, (rank, loss) in enumerate(zip(ranks, losses, strict=True))
        for finding in health.check_features(step, loss, rank, spread)
    ]


def test_a_falling_rank_while_the_loss_falls() -> None:
    (finding,) = looks(Health(LONG), [50, 60, 40, 30, 20], [1.0, 0.9, 0.8, 0.7, 0.6])
    assert finding.id == "rank_falling" and "60.0 to 20.0" in finding.sentence
    assert looks(Health(LONG), [50, 60, 40, 45, 20], [1.0, 0.9, 0.8, 0.7, 0.6]) == []
    assert looks(Health(LONG), [50, 60, 40, 30, 20], [1.0, 0.9, 0.9, 0.9, 0.95]) == []


def test_features_that_become_alike() -> None:
    health = Health(LONG)
    assert health.check_features(1, 1.0, 10.0, 0.5) == []
    (finding,) = health.check_features(2, 0.9, 10.0, 0.04)
    assert finding.id == "features_alike"
