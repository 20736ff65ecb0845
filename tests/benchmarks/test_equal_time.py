"""The comparison at equal time: how long to train follows from a trial, and the table says what the files say."""

import json
from pathlib import Path

import pytest
from benchmarks.equal_time import METHODS, commands, epochs_that_take, result_in, table


def write_log(run_dir: Path, lines: list[dict[str, float]]) -> None:
    """A run's log, and the page that says that the run is done."""
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (run_dir / "report.html").write_text("", encoding="utf-8")


def test_epochs_fill_the_time_and_slow_first_steps_do_not_count(tmp_path: Path) -> None:
    log = [(1, 30.0), (20, 40.0), (40, 50.0), (60, 60.0)]
    write_log(tmp_path / "MAE", [{"step": step, "epoch": step / 100, "seconds": seconds} for step, seconds in log])
    assert epochs_that_take(120, METHODS["MAE"], tmp_path / "MAE") == 2.4


def test_each_seed_begins_with_another_method(tmp_path: Path) -> None:
    names = ["MAE", "MSN"]
    found = commands(names, {"MAE": 2.0, "MSN": 1.5}, seeds=2, folder=tmp_path)
    assert [run_dir.name for run_dir, _ in found] == ["MAE-seed0", "MSN-seed0", "MSN-seed1", "MAE-seed1"]
    assert "train.epochs=1.5" in found[1][1] and "seed=1" in found[2][1]


def test_the_table_has_mean_and_spread_of_encoder_and_untrained_network(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((70.0, 72.0)):
        write_log(tmp_path / f"MAE-seed{seed}", [{"step": 9, "seconds": 100.0 + seed}])
        out = tmp_path / "knn" / f"MAE-seed{seed}"
        out.mkdir(parents=True)
        baselines = {"random_init": {"top1": 60.0}, "raw_pixels": {"top1": 80.0 + seed}}
        (out / "ibot-knn.json").write_text(json.dumps({"metrics": {"top1": accuracy}, "baselines": baselines}))
    lines = table(tmp_path, ["MAE"], ["knn"], seeds=2).splitlines()
    assert lines[-2] == "| MAE | 100.50 +- 0.71 s | 71.00 +- 1.41 (60.00 +- 0.00) |"
    assert lines[-1] == "| raw pixels | | 80.50 +- 0.71 |"


def test_a_fine_tuning_is_found_in_its_run(tmp_path: Path) -> None:
    write_log(tmp_path / "run", [{"step": 1, "seconds": 1.0}])
    (tmp_path / "run" / "data.json").write_text("{}", encoding="utf-8")
    assert result_in(tmp_path / "none") is None
    (tmp_path / "run" / "evaluations").mkdir()
    (tmp_path / "run" / "evaluations" / "finetune.json").write_text("{}", encoding="utf-8")
    assert result_in(tmp_path / "run") == tmp_path / "run" / "evaluations" / "finetune.json"


def test_what_is_not_measured_is_a_dash(tmp_path: Path) -> None:
    write_log(tmp_path / "MAE-seed0", [{"step": 9, "seconds": 100.0}])
    assert table(tmp_path, ["MAE"], ["linear"], seeds=1).splitlines()[-2] == "| MAE | 100.00 +- 0.00 s | - |"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_recipe_that_exists(name: str) -> None:
    from halfseen.config.recipes import recipe_layer

    assert METHODS[name][0] == "--recipe" and recipe_layer(METHODS[name][1]).values
