"""Results in the terminal, and words for numbers."""

import pytest
from rich.console import Console

from halfseen.reports.runfiles import Evaluation
from halfseen.reports.tables import duration_words, metric_words, result_table, visible
from reports.written_run import clusters, result


def printed(table) -> str:
    console = Console(width=140, markup=False, highlight=False, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_a_result_stands_beside_its_baselines():
    text = printed(result_table(Evaluation.model_validate(result())))
    assert "n = 300 classified by 1,000 labelled images" in text
    row = next(line for line in text.splitlines() if "k = 20" in line)
    assert [number in row for number in ("71.25", "60.50", "81.12")] == [True] * 3
    assert "66.0 - 76.1" in text
    assert "same network, random initialisation" in text


def test_brackets_in_names_are_no_markup():
    changed = result() | {"protocol": "[red]knn[/red]"}
    assert "[red]knn[/red]" in printed(result_table(Evaluation.model_validate(changed)))


def test_a_mean_over_draws_carries_its_standard_deviation():
    metrics = {"top1": 62.8, "top1_std": 0.25, "top1_5shot": 62.8, "top1_5shot_std": 0.25, "train_5shot": 100.0}
    changed = result() | {
        "metrics": metrics,
        "baselines": {"raw_pixels": {"top1_5shot": 31.0}},
        "headline": {"lambda": 0.1},
    }
    text = printed(result_table(Evaluation.model_validate(changed)))
    assert "62.80 ± 0.25" in next(line for line in text.splitlines() if "top-1, 5 per class" in line)
    assert "100.00 " in next(line for line in text.splitlines() if "labelled images, 5 per class" in line)
    assert "interval of top-1 (lambda = 0.1)" in text
    assert "std" not in text


def test_a_result_of_another_measure_has_its_rows():
    text = printed(result_table(Evaluation.model_validate(clusters())))
    assert "cluster: n = 300" in text
    assert "labelled" not in text
    assert "32.50 ± 1.25" in next(line for line in text.splitlines() if "NMI" in line)
    assert "61.00 ± 0.50" in next(line for line in text.splitlines() if "NMI" in line)
    assert "36.0 - 47.6" in next(line for line in text.splitlines() if "interval of accuracy of the best" in line)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("top1", "top-1"),
        ("top1_k20", "top-1, k = 20"),
        ("top5_k200_T0.04", "top-5, k = 200, T = 0.04"),
        ("top1_5shot_lambda0.0025", "top-1, 5 per class, lambda = 0.0025"),
        ("train_1percent", "labelled images, 1 % of the labels"),
        ("top5_all", "top-5, all labels"),
        ("nmi", "NMI"),
        ("acc", "accuracy of the best one-to-one map"),
        ("miou_train", "mean IoU, labelled images"),
    ],
)
def test_metrics_in_words(key, words):
    assert metric_words(key) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.21, "3.2 s"), (42, "42 s"), (95, "1 min 35 s"), (7325, "2 h 2 min"), (59.9, "1 min 0 s")]
)
def test_durations_in_words(seconds, words):
    assert duration_words(seconds) == words


def test_invisible_characters_are_spelled_out():
    assert visible("a\nb\u202ec\x1b[0m\u2028d\ud800") == "a\\nb\\u202ec\\x1b[0m\\u2028d\\ud800"
    assert visible("naïve 猫 🐈") == "naïve 猫 🐈"
