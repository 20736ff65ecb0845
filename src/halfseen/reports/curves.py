"""Curves over the epochs, thinned to what a screen can show."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from halfseen.reports.runfiles import RunFiles
from halfseen.reports.tables import visible

MOST_POINTS = 1500
"""A curve is thinned to this many points: more can't be told apart on a screen."""
CHARTS: dict[str, tuple[str, bool, bool]] = {
    "loss": ("Loss", True, True),
    "lr": ("Learning rate", True, False),
    "images_per_second": ("Images per second", False, False),
    "data_wait_share": ("Share of the time spent waiting for data", False, False),
    "grad_norm": ("Gradient norm", True, True),
    "frozen_units": ("Units that progressive freezing has stopped", False, False),
    "time_saved_share": ("Share of the steps' time that freezing has saved, measured", False, False),
    "knn_teacher": ("k-NN accuracy of the teacher during training, in percent", False, False),
    "knn_student": ("k-NN accuracy of the student during training, in percent", False, False),
    "rankme": ("Effective rank of the features (RankMe)", False, False),
    "rankme_cls": ("Effective rank of the class tokens (RankMe)", False, False),
    "rankme_patches": ("Effective rank of the patch tokens (RankMe)", False, False),
    "feature_std": ("Spread of the features", False, False),
    "teacher_entropy": ("Entropy of the teacher's output for an image, in nats", False, True),
    "assignment_entropy": ("Entropy of the teacher's mean output over a batch, in nats", False, True),
    "prototypes_used": ("Outputs that are some image's largest, per batch", False, True),
    "agreement": ("Share of images for which student and teacher agree", False, True),
    "center_norm": ("Norm of the teacher's centre", True, False),
}
"""Metrics with a name of their own: title, log switch, smoothed."""
FROM_ZERO = frozenset({"lr", "images_per_second", "data_wait_share"})
NOT_CHARTED = frozenset({"step", "epoch", "samples_seen", "seconds", "steps_per_second", "memory_mb"})


class Series(NamedTuple):
    """One run's curve; `x` is the epoch."""

    name: str
    colour: int
    x: list[float]
    y: list[float]
    step: list[int]


class Chart(NamedTuple):
    """A figure of curves over the epochs; `words` says the same in a sentence, `main` shows it without a click."""

    key: str
    main: bool
    title: str
    words: str
    switch: bool
    smooth: bool
    series: list[Series]


def build_charts(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Chart]:
    logged = {key: None for run in runs for record in run.records for key in record}
    keys = [key for key in CHARTS if key in logged] + [
        key for key in logged if key not in CHARTS and key not in NOT_CHARTED
    ]
    charts = []
    for key in keys:
        pairs = zip(runs, names, strict=True)
        series = [_series(run, visible(name), colour % 6, key) for colour, (run, name) in enumerate(pairs)]
        series = [each for each in series if each.x]
        title, switch, smooth = CHARTS.get(key, (visible(key.replace("_", " ")), False, False))
        words = ". ".join(map(partial(_curve_words, many=len(runs) > 1), series))
        charts.append(Chart(key, key in CHARTS, title, words, switch, smooth, series))
    return charts


def _series(run: RunFiles, name: str, colour: int, key: str) -> Series:
    records = [record for record in run.records if key in record]
    stride = max(1, -(-len(records) // MOST_POINTS))
    kept = records[::stride]
    if records and kept[-1] is not records[-1]:
        kept.append(records[-1])
    return Series(
        name,
        colour,
        [round(record.get("epoch", record["step"]), 5) for record in kept],
        [float(f"{record[key]:.6g}") for record in kept],
        [int(record["step"]) for record in kept],
    )


def _curve_words(series: Series, many: bool) -> str:
    first, last, low, high = series.y[0], series.y[-1], min(series.y), max(series.y)
    whose = f"{series.name}: " if many else ""
    return f"{whose}first {first:.4g}, last {last:.4g}, lowest {low:.4g}, highest {high:.4g}"
