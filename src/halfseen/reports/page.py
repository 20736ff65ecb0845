"""The report: one self-contained HTML file for a run, or for several side by side.

Reads the files of the runs, computes nothing that a run has not measured, needs no network: style, script and pictures
are inside, and a content policy in the page forbids loading anything else. All text goes through jinja2's escaping.
"""

import importlib.metadata
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from halfseen.errors import DataError
from halfseen.reports.analysis_files import read_analysis
from halfseen.reports.curves import FROM_ZERO, build_charts
from halfseen.reports.gallery import Gallery, build_gallery
from halfseen.reports.inside.looked_at import Inside, gather
from halfseen.reports.inside.view import view_inside
from halfseen.reports.runfiles import Finding, Json, RunFiles, SkippedEntry, read_run
from halfseen.reports.scores import (
    Card,
    EvaluationView,
    accuracy_text,
    headline_cards,
    headline_of,
    overview,
    primary_words,
    view_evaluation,
)
from halfseen.reports.segmentation import SegmentationView, view_segmentation
from halfseen.reports.tables import duration_words, subject, visible

MOST_SKIPPED = 500


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
    findings: list[Finding]
    problems: list[str]
    gallery: Gallery | None
    segmentations: list[SegmentationView]
    evaluations: list[EvaluationView]
    skipped: list[SkippedEntry]
    skipped_count: int
    command: str
    config_text: str
    environment: list[KeyValue]
    data: list[KeyValue]


def write_report(run_dir: Path | Sequence[Path], out: Path | None = None, analysis: Path | None = None) -> Path:
    """Write the report of one run, or one that compares several.

    Args:
        out: the file to write; None = `report.html` in the (first) run's folder, `comparison.html` for several.
        analysis: the folder of an analysis to show; None = those that lie in the runs' own folders.
    Returns:
        The written file.
    Raises:
        DataError: if a folder isn't a run.
        CheckpointError: if `analysis` was given and can't be read.
    """
    folders = [run_dir] if isinstance(run_dir, Path) else list(run_dir)
    if not folders:
        raise DataError("report: no run was given. Give at least one folder that `halfseen pretrain` wrote.")
    runs = [read_run(folder) for folder in folders]
    if analysis is not None:
        read_analysis(analysis, [])
    names = _distinct_names(runs)
    looked_at = gather([(name, run.folder) for name, run in zip(names, runs, strict=True)], analysis)
    page = render(runs, looked_at)
    if out is None:
        out = folders[0] / ("report.html" if len(folders) == 1 else "comparison.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(out.name + ".part")
    beside.write_text(page, encoding="utf-8")
    beside.replace(out)
    return out


def render(runs: Sequence[RunFiles], looked_at: Inside) -> str:
    """The page as text."""
    loader = PackageLoader("halfseen.reports", "templates")
    jinja = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    names = _distinct_names(runs)
    charts = build_charts(runs, names)
    views = [_view(run, name) for run, name in zip(runs, names, strict=True)]
    return jinja.get_template("report.html").render(
        title=visible(names[0] if len(runs) == 1 else " / ".join(names)),
        runs=views,
        charts=charts,
        overview=overview(
            [(name, result) for run, name in zip(runs, names, strict=True) for result in run.evaluations]
        ),
        inside=view_inside(looked_at),
        curves={
            chart.key: {
                "x": "epoch",
                "smooth": chart.smooth,
                "zero": chart.key in FROM_ZERO,
                "series": [each._asdict() for each in chart.series],
            }
            for chart in charts
        },
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
    headline = headline_of(run.evaluations)
    skipped = run.skipped
    return RunView(
        name=visible(name),
        story=_story(run),
        headline=[] if headline is None else headline_cards(headline),
        notes=[] if headline is None else headline.notes,
        findings=run.findings,
        problems=run.problems,
        gallery=None if run.pictures is None else build_gallery(run.pictures),
        segmentations=[view_segmentation(name, examples) for name, examples in run.segmentations.items()],
        evaluations=[view_evaluation(result) for result in run.evaluations],
        skipped=[SkippedEntry(visible(entry.path), visible(entry.reason)) for entry in skipped[:MOST_SKIPPED]],
        skipped_count=len(skipped),
        command=_command(run),
        config_text=run.config_text or "config.yaml is missing.",
        environment=_flat(run.environment),
        data=_flat({key: value for key, value in run.data.items() if key not in ("skipped", "left_out")}),
    )


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
    speeds = [record["images_per_second"] for record in run.records if "images_per_second" in record]
    if speeds:
        parts.append(f"at {median(speeds):,.0f} images per second")
    return f"{sentence}{': ' if parts else ''}{' '.join(parts)}. No labels were used in training."


def _or(value: Json, otherwise: str) -> str:
    return otherwise if value is None else visible(value)


def _compare(runs: Sequence[RunFiles], names: Sequence[str]) -> Comparison:
    found = [headline_of(run.evaluations) for run in runs]
    # Numbers of one column must be of one kind: a run whose first result is another measure has an empty cell.
    first = next((result for result in found if result is not None), None)
    results = [result if result and first and result.primary == first.primary else None for result in found]
    subjects = list(dict.fromkeys(name for result in results if result for name in ("encoder", *result.baselines)))
    measure = "" if first is None else primary_words(first)
    columns = [
        "method",
        "model",
        "epochs",
        "time",
        "last loss",
        *(f"{measure}: {subject(name)}" for name in subjects),
        "n",
    ]
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
        cells += ["" if result is None else accuracy_text(result, each) for each in subjects]
        cells.append("" if result is None else f"{result.n:,}")
        rows.append(ComparisonRow(visible(name), cells))
    return Comparison(columns, rows)


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
        return shlex.join(str(word) for word in command)
    if isinstance(command, str) and command:
        # As the interpreter names a program that was started by `python -m halfseen`.
        program, _, words = command.partition(" ")
        return f"halfseen {words}" if program == "__main__.py" else command
    return f"halfseen pretrain --config {visible(run.folder / 'config.yaml')} run_dir=runs/again"
