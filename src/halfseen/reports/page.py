"""The report: one self-contained HTML file for a run, or for several side by side.

Reads the files of the runs, computes nothing that a run has not measured, needs no network: style, script and pictures
are inside, and a content policy in the page forbids loading anything else. All text goes through jinja2's escaping.
"""

import base64
import importlib.metadata
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from halfseen.errors import DataError
from halfseen.reports.runfiles import Evaluation, Json, PictureSet, RunFiles, SkippedEntry, read_run
from halfseen.reports.tables import detail_keys, duration_words, metric_words, subject, visible

MOST_POINTS = 1500
"""A curve is thinned to this many points: more can't be told apart on a screen."""
MOST_SKIPPED = 500
LARGEST_PICTURE = 128
"""Pictures are embedded with at most this many pixels a side, so that a report stays small enough for an e-mail."""
MOST_CONFUSION = 25

CHARTS: dict[str, tuple[str, bool, bool]] = {
    "loss": ("Loss", True, True),
    "lr": ("Learning rate", True, False),
    "images_per_second": ("Images per second", False, False),
    "data_wait_share": ("Share of the time spent waiting for data", False, False),
    "grad_norm": ("Gradient norm", True, True),
    "rankme": ("Effective rank of the features (RankMe)", False, False),
    "feature_std": ("Spread of the features", False, False),
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
    """A figure of curves over the epochs; `words` says the same in a sentence."""

    key: str
    title: str
    words: str
    switch: bool
    smooth: bool
    series: list[Series]


class Card(NamedTuple):
    """A headline number."""

    label: str
    value: str
    fine: str


class Bar(NamedTuple):
    """A bar of 0 to 100 % with its interval."""

    label: str
    kind: str
    value: float
    low: float | None
    width: float
    text: str


class Cell(NamedTuple):
    """A table cell with a number, perhaps the best of its row."""

    text: str
    best: bool
    value: float
    kind: str


class Row(NamedTuple):
    """A named row of cells."""

    name: str
    cells: list[Cell]
    n: int = 0


class ConfusionCell(NamedTuple):
    """A number of images, and its share of the row's."""

    images: int
    share: float


class ConfusionRow(NamedTuple):
    """What the images of one class are taken for."""

    name: str
    cells: list[ConfusionCell]


class EvaluationView(NamedTuple):
    """A result, ready for the page."""

    protocol: str
    setup: str
    n: int
    columns: list[str]
    rows: list[Row]
    bars: list[Bar]
    bars_title: str
    bars_words: str
    confidence_text: str
    notes: list[str]
    class_columns: list[str]
    per_class: list[Row]
    per_class_setting: str
    confusion: list[ConfusionRow]
    confusion_names: list[str]


class Picture(NamedTuple):
    """A PNG in base64."""

    png: str
    width: int
    height: int
    alt: str


class PictureRow(NamedTuple):
    """One image's original, masked, predicted and pasted pictures."""

    name: str
    score: str
    pictures: list[Picture]


class PictureSetView(NamedTuple):
    """All images at one mask ratio."""

    share: str
    words: str
    rows: list[PictureRow]


class Gallery(NamedTuple):
    """A run's reconstructions; `start` is the set that is shown first."""

    note: str
    start: int
    shares: list[str]
    sets: list[PictureSetView]


class KeyValue(NamedTuple):
    """A line of a settings table."""

    key: str
    value: str


class Comparison(NamedTuple):
    """The table of several runs."""

    columns: list[str]
    rows: list["ComparisonRow"]


class ComparisonRow(NamedTuple):
    """One run of the table."""

    name: str
    cells: list[str]


class Difference(NamedTuple):
    """A key whose value is not the same in all runs."""

    key: str
    cells: list[str]


class RunView(NamedTuple):
    """A run, ready for the page."""

    name: str
    story: str
    headline: list[Card]
    notes: list[str]
    findings: Sequence[NamedTuple]
    problems: list[str]
    gallery: Gallery | None
    evaluations: list[EvaluationView]
    skipped: list[SkippedEntry]
    skipped_count: int
    command: str
    config_text: str
    environment: list[KeyValue]
    data: list[KeyValue]


def write_report(run_dir: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or one that compares several.

    Args:
        out: the file to write; None = `report.html` in the (first) run's folder, `comparison.html` for several.
    Returns:
        The written file.
    Raises:
        DataError: if a folder isn't a run.
    """
    folders = [run_dir] if isinstance(run_dir, Path) else list(run_dir)
    if not folders:
        raise DataError("report: no run was given. Give at least one folder that `halfseen pretrain` wrote.")
    page = render([read_run(folder) for folder in folders])
    if out is None:
        out = folders[0] / ("report.html" if len(folders) == 1 else "comparison.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(out.name + ".part")
    beside.write_text(page, encoding="utf-8")
    beside.replace(out)
    return out


def render(runs: Sequence[RunFiles]) -> str:
    """The page as text."""
    loader = PackageLoader("halfseen.reports", "templates")
    jinja = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    names = _distinct_names(runs)
    charts = _charts(runs, names)
    return jinja.get_template("report.html").render(
        title=visible(names[0] if len(runs) == 1 else " / ".join(names)),
        runs=[_view(run, name) for run, name in zip(runs, names, strict=True)],
        charts=charts,
        curves=[
            {
                "x": "epoch",
                "smooth": chart.smooth,
                "zero": chart.key in FROM_ZERO,
                "series": [s._asdict() for s in chart.series],
            }
            for chart in charts
        ],
        comparison=_compare(runs, names) if len(runs) > 1 else None,
        differences=_differences(runs) if len(runs) > 1 else [],
        version=importlib.metadata.version("halfseen"),
    )


def _shown(value: object) -> object:
    """What the template prints: plain text gets its control characters spelled out, then jinja2 escapes it."""
    return _visible_lines(value) if type(value) is str else value


def _visible_lines(text: str) -> str:
    return "\n".join(visible(line) for line in text.split("\n"))


def _distinct_names(runs: Sequence[RunFiles]) -> list[str]:
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def _view(run: RunFiles, name: str) -> RunView:
    headline = _headline(run.evaluations)
    skipped = run.skipped
    return RunView(
        name=visible(name),
        story=_story(run),
        headline=[] if headline is None else _cards(headline),
        notes=[] if headline is None else headline.notes,
        findings=run.findings,
        problems=run.problems,
        gallery=None if run.pictures is None else _gallery(run.pictures),
        evaluations=[_evaluation(result) for result in run.evaluations],
        skipped=[SkippedEntry(visible(entry.path), visible(entry.reason)) for entry in skipped[:MOST_SKIPPED]],
        skipped_count=len(skipped),
        command=_command(run),
        config_text=run.config_text or "config.yaml is missing.",
        environment=_flat(run.environment),
        data=_flat({key: value for key, value in run.data.items() if key not in ("skipped", "left_out")}),
    )


def _headline(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The k-NN result of the student where there is one, otherwise the first."""
    knn = [result for result in evaluations if result.protocol == "knn"]
    return next(iter(knn or evaluations), None)


def _story(run: RunFiles) -> str:
    """What was trained on what, and how long, in one or two sentences."""
    method, model = run.setting("method.name"), run.setting("model.name")
    source, size = run.setting("data.source"), run.setting("data.image_size")
    count = next((run.data[key] for key in ("n", "num_images", "images") if isinstance(run.data.get(key), int)), None)
    sentence = f"{_or(method, 'A method')} trained {_or(model, 'an encoder')}"
    if source is not None:
        images = f"{count:,} images" if isinstance(count, int) else "images"
        sentence += f" on {images} of {visible(source)}"
    if size is not None:
        sentence += f" at {size} x {size} pixels"
    parts = []
    epoch, step, seconds = run.last("epoch"), run.last("step"), run.last("seconds")
    if epoch is not None and step is not None:
        parts.append(f"{epoch:.4g} epochs ({step:,.0f} steps)")
    if seconds is not None:
        parts.append(f"in {duration_words(seconds)}")
    speed = _median([record["images_per_second"] for record in run.records if "images_per_second" in record])
    if speed is not None:
        parts.append(f"at {speed:,.0f} images per second")
    return f"{sentence}{': ' if parts else ''}{' '.join(parts)}. No labels were used in training."


def _or(value: Json, otherwise: str) -> str:
    return otherwise if value is None else visible(value)


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _cards(result: Evaluation) -> list[Card]:
    setting = _setting_words(result)
    cards = []
    for name, metrics in {"encoder": result.metrics, **result.baselines}.items():
        if "top1" not in metrics:
            continue
        interval = result.confidence_interval.get(name)
        fine = f"95 % interval {interval[0]:.1f} to {interval[1]:.1f}" if interval else ""
        label = f"{result.protocol}{setting}: {subject(name)}" if name == "encoder" else subject(name)
        cards.append(Card(visible(label), f"{metrics['top1']:.1f}", fine))
    return cards


def _setting_words(result: Evaluation) -> str:
    return f", k = {result.headline['k']:g}" if "k" in result.headline else ""


def _evaluation(result: Evaluation) -> EvaluationView:
    names = ["encoder", *result.baselines]
    values = [result.metrics, *result.baselines.values()]
    bars = [
        _bar(name, metrics["top1"], result.confidence_interval.get(name))
        for name, metrics in zip(names, values, strict=True)
        if "top1" in metrics
    ]
    class_names = [row.name for row in result.per_class]
    confusion = result.confusion if result.confusion and len(result.confusion) <= MOST_CONFUSION else None
    if confusion is not None and len(class_names) != len(confusion):
        confusion = None
    return EvaluationView(
        protocol=visible(result.protocol),
        setup=_setup(result),
        n=result.n,
        columns=[subject(name) for name in names],
        rows=[
            _row(metric_words(key), [each.get(key) for each in values], names) for key in detail_keys(result.metrics)
        ],
        bars=bars,
        bars_title=f"Top-1 accuracy in percent{_setting_words(result)}, n = {result.n:,}",
        bars_words="; ".join(f"{bar.label}: {bar.text}" for bar in bars),
        confidence_text=result.confidence_text,
        notes=result.notes,
        class_columns=[subject(name) for name in names],
        per_class=[
            _row(row.name, [row.encoder, *(row.baselines.get(name) for name in names[1:])], names, row.n)
            for row in result.per_class
        ],
        per_class_setting=_setting_words(result),
        confusion=[] if confusion is None else _confusion(class_names, confusion),
        confusion_names=[visible(name) for name in class_names],
    )


def _setup(result: Evaluation) -> str:
    """Protocol, features and data of a result in sentences."""
    sentences = [result.protocol_text] if result.protocol_text else []
    if result.features:
        width = f", {result.feature_dim} numbers per image" if result.feature_dim else ""
        sentences.append(f"Features: {result.features}{width} ({result.role}).")
    train, test = result.data.get("train"), result.data.get("test")
    if train is not None and test is not None:
        sentences.append(
            f"{visible(train.source)} ({visible(train.split)}, {train.n:,} images) classifies "
            f"{visible(test.source)} ({visible(result.split or test.split)}, {test.n:,} images). Seed {result.seed}."
        )
    return " ".join(sentences)


def _bar(name: str, value: float, interval: tuple[float, float] | None) -> Bar:
    low, high = interval if interval is not None else (None, None)
    text = f"{value:.1f} %" if low is None or high is None else f"{value:.1f} % ({low:.1f} - {high:.1f})"
    width = 0.0 if low is None or high is None else round(high - low, 3)
    return Bar(subject(name), _kind(name), value, low, width, text)


def _kind(name: str) -> str:
    return name if name in ("encoder", "random_init", "raw_pixels") else "other"


def _row(name: str, values: Sequence[float | None], kinds: Sequence[str], n: int = 0) -> Row:
    known = [value for value in values if value is not None]
    cells = [
        Cell("", False, 0.0, _kind(kind))
        if value is None
        else Cell(f"{value:.1f}", value == max(known), max(0.0, min(100.0, value)), _kind(kind))
        for value, kind in zip(values, kinds, strict=True)
    ]
    return Row(visible(name), cells, n)


def _confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[ConfusionRow]:
    return [
        ConfusionRow(visible(name), [ConfusionCell(count, round(count / max(1, sum(row)), 3)) for count in row])
        for name, row in zip(names, counts, strict=True)
    ]


def _gallery(pictures: PictureSet) -> Gallery:
    shares = [f"{100 * share:.0f} %" for share in pictures.hidden_share]
    views = []
    for number, share in enumerate(shares):
        stacks = {
            "original": pictures.original,
            "masked, hidden parts grey": pictures.masked[number],
            "predicted": pictures.predicted[number],
            "prediction pasted into the original": pictures.pasted[number],
        }
        rows = []
        for index in range(len(pictures.original)):
            name = visible(_file_name(str(pictures.paths[index])))
            shown = [_picture(stack[index], f"{name}: {kind}") for kind, stack in stacks.items()]
            rows.append(PictureRow(name, _score(pictures, number, index), shown))
        words = (
            f"{share} of the pixels hidden. On hidden pixels: PSNR {_mean(pictures.psnr_hidden[number])} dB, "
            f"SSIM {_mean(pictures.ssim_hidden[number], 3)}, mean of these {len(rows)} images; higher is better."
        )
        views.append(PictureSetView(share, words, rows))
    return Gallery(visible(pictures.note), 0, [share.replace(" ", "\u00a0") for share in shares], views)


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1] or path


def _score(pictures: PictureSet, number: int, index: int) -> str:
    hidden, whole = pictures.psnr_hidden[number, index], pictures.psnr_whole[number, index]
    text = f"PSNR {hidden:.1f} dB on hidden pixels, {whole:.1f} dB pasted"
    similarity = pictures.ssim_hidden[number, index]
    return text if np.isnan(similarity) else f"{text}; SSIM {similarity:.3f} on hidden pixels"


def _mean(values: NDArray[np.float64], digits: int = 1) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.mean():.{digits}f}" if len(finite) else "not defined"


def _picture(pixels: NDArray[np.uint8], alt: str) -> Picture:
    image = Image.fromarray(pixels)
    if max(image.size) > LARGEST_PICTURE:
        image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return Picture(base64.b64encode(file.getvalue()).decode("ascii"), image.width, image.height, alt)


def _charts(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Chart]:
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
        charts.append(Chart(key, title, words, switch, smooth, series))
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


def _compare(runs: Sequence[RunFiles], names: Sequence[str]) -> Comparison:
    results = [_headline(run.evaluations) for run in runs]
    subjects = list(dict.fromkeys(name for result in results if result for name in ("encoder", *result.baselines)))
    columns = ["method", "model", "epochs", "time", "last loss", *(f"top-1: {subject(name)}" for name in subjects), "n"]
    rows = []
    for run, name, result in zip(runs, names, results, strict=True):
        epoch, seconds, loss = run.last("epoch"), run.last("seconds"), run.last("loss")
        cells = [
            _or(run.setting("method.name"), ""),
            _or(run.setting("model.name"), ""),
            "" if epoch is None else f"{epoch:.4g}",
            "" if seconds is None else duration_words(seconds),
            "" if loss is None else f"{loss:.4g}",
        ]
        cells += ["" if result is None else _accuracy(result, each) for each in subjects]
        cells.append("" if result is None else f"{result.n:,}")
        rows.append(ComparisonRow(visible(name), cells))
    return Comparison(columns, rows)


def _accuracy(result: Evaluation, name: str) -> str:
    metrics = result.metrics if name == "encoder" else result.baselines.get(name, {})
    if "top1" not in metrics:
        return ""
    interval = result.confidence_interval.get(name)
    return f"{metrics['top1']:.1f}" + (f" ({interval[0]:.1f} - {interval[1]:.1f})" if interval else "")


def _differences(runs: Sequence[RunFiles]) -> list[Difference]:
    tables = [dict(_flat(run.config)) for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [Difference(key, [table.get(key, "") for table in tables]) for key in keys]
    return [row for row in rows if len(set(row.cells)) > 1]


def _flat(value: Json, prefix: str = "") -> list[KeyValue]:
    """A nested mapping as dotted keys."""
    if isinstance(value, dict) and value:
        return [row for key, item in value.items() for row in _flat(item, f"{prefix}.{key}" if prefix else str(key))]
    if not prefix:
        return []
    text = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return [KeyValue(visible(prefix), visible(text))]


def _command(run: RunFiles) -> str:
    """The command line that was used; without a record of it, one that reads the run's own configuration."""
    command = run.environment.get("command")
    if isinstance(command, list):
        import shlex

        return shlex.join(str(word) for word in command)
    if isinstance(command, str) and command:
        return command
    return f"halfseen pretrain --config {visible(run.folder / 'config.yaml')} run_dir=runs/again"
