"""A study's table and figures, from its `study.json`: what pre-training and intermediate stages do to segmentation."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from halfseen.errors import CheckpointError
from halfseen.reports.tables import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which colour-blind readers tell apart, by condition; line and marker tell the stage besides."""
LINES = {"none": "-", "classification": "--", "patchwise": ":"}
MARKERS = {"none": "o", "classification": "s", "patchwise": "^"}
FORMATS = (".png", ".svg")


class StudyCell(BaseModel):
    """One segmentation; percent."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    pretrain: int
    intermediate: str
    finetune: int
    seed: int
    miou: float
    accuracy: float
    miou_dataset: float


class StudyFile(BaseModel):
    """What of `study.json` is shown."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    data: str
    planned: int
    cells: list[StudyCell]


class Mean(NamedTuple):
    """Mean over seeds; the sample standard deviation is None for one seed."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


class Series(NamedTuple):
    """A line of a figure: a mean for each fine-tuning size that is there."""

    pretrain: int
    intermediate: str
    sizes: list[int]
    means: list[Mean]


def read_study(path: Path) -> StudyFile:
    """The content of a `study.json`.

    Raises:
        CheckpointError: it can't be read.
    """
    try:
        return StudyFile.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise CheckpointError(
            f"'{path}' holds no study ({type(error).__name__}). Run `halfseen study` again."
        ) from None


def condition_words(pretrain: int, intermediate: str) -> str:
    """`pre-trained on 10,000 images, then classification`."""
    if pretrain == 0:
        return "from scratch"
    after = "" if intermediate == "none" else f", then {intermediate}"
    return f"pre-trained on {pretrain:,} images{after}"


def study_series(study: StudyFile, metric: str = "miou") -> list[Series]:
    """Mean and spread over seeds for each condition, in the order of the grid."""
    found = []
    for pretrain, intermediate in dict.fromkeys((cell.pretrain, cell.intermediate) for cell in study.cells):
        own = [cell for cell in study.cells if (cell.pretrain, cell.intermediate) == (pretrain, intermediate)]
        sizes = sorted({cell.finetune for cell in own})
        means = [_mean(getattr(cell, metric) for cell in own if cell.finetune == size) for size in sizes]
        found.append(Series(pretrain, intermediate, sizes, means))
    return found


def change_series(study: StudyFile, metric: str = "miou") -> list[Series]:
    """What each intermediate stage changes, seed by seed beside the same encoder without it; points of percent."""
    found = []
    for series in study_series(study, metric):
        if series.intermediate != "none":
            own = series.pretrain, series.intermediate
            changes = _differences(study, own, (series.pretrain, "none"), metric)
            found.append(Series(*own, list(changes), list(changes.values())))
    return [series for series in found if series.sizes]


def study_sentences(study: StudyFile) -> list[str]:
    """What the study says of the questions it was made for, with the spread over seeds."""
    series = {(each.pretrain, each.intermediate): each for each in study_series(study)}
    plain = [each for each in series.values() if each.intermediate == "none"]
    scratch = next((each for each in plain if each.pretrain == 0), None)
    sentences = []
    for each in plain:
        if scratch is not None and each.pretrain:
            gains = _differences(study, (each.pretrain, "none"), (0, "none"))
            sentences.append(_sentence(f"Pre-training on {each.pretrain:,} images instead of none", gains))
    pretrained = [each for each in plain if each.pretrain]
    for less, more in pairwise(pretrained):
        gains = _differences(study, (more.pretrain, "none"), (less.pretrain, "none"))
        sentences.append(_sentence(f"Pre-training on {more.pretrain:,} instead of {less.pretrain:,} images", gains))
    for change in change_series(study):
        words = f"The intermediate stage {change.intermediate} after pre-training on {change.pretrain:,} images"
        sentences.append(_sentence(words, dict(zip(change.sizes, change.means, strict=True))))
    return sentences


def study_markdown(study: StudyFile) -> str:
    """The table, percent, mean and standard deviation over seeds, and the sentences."""
    columns = [study_series(study, metric) for metric in ("accuracy", "miou", "miou_dataset")]
    sizes = sorted({cell.finetune for cell in study.cells})
    seeds = len({cell.seed for cell in study.cells})
    lines = [
        f"# Study: {visible(study.name)} on {visible(study.data)}",
        "",
        "Pixel accuracy / mIoU / mIoU over the pixels of all test images together, in percent, mean ± standard "
        f"deviation over {seeds} seed{'s' * (seeds != 1)}"
        + (f"; {len(study.cells)} of {study.planned} cells are finished." if len(study.cells) < study.planned else "."),
        "",
        "| encoder | " + " | ".join(f"{size:,} images" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for rows in zip(*columns, strict=True):
        own = rows[0]
        texts = [" / ".join(map(str, means)) for means in zip(*(row.means for row in rows), strict=True)]
        cells = dict(zip(own.sizes, texts, strict=True))
        row = [condition_words(own.pretrain, own.intermediate), *(cells.get(size, "") for size in sizes)]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in study_sentences(study)), ""])


def draw_study(path: Path) -> list[Path]:
    """Draw both figures beside `study.json`, as PNG and SVG.

    `miou_by_finetune_size`: a line per encoder. `change_by_intermediate`: what the intermediate stages add or take, a
    line per stage; left out where there is none.

    Raises:
        CheckpointError: the file can't be read.
    """
    study = read_study(path)
    series = study_series(study)
    if not series:
        return []
    colours = {(each.pretrain, each.intermediate): COLOURS[number % len(COLOURS)] for number, each in enumerate(series)}
    drawn = _draw(
        series,
        colours,
        path.with_name("miou_by_finetune_size"),
        "mIoU on test images, %",
        "Segmentation after pre-training",
        zero=False,
    )
    changes = change_series(study)
    if changes:
        drawn += _draw(
            changes,
            colours,
            path.with_name("change_by_intermediate"),
            "change of mIoU by the intermediate stage, points",
            "What the intermediate stage changes",
            zero=True,
        )
    return drawn


def _draw(
    series: Sequence[Series], colours: Mapping[tuple[int, str], str], stem: Path, label: str, title: str, zero: bool
) -> list[Path]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    if zero:
        axis.axhline(0.0, color="#888888", linewidth=0.8)
    for each in series:
        axis.errorbar(
            each.sizes,
            [mean.mean for mean in each.means],
            yerr=[mean.std or 0.0 for mean in each.means],
            color=colours[each.pretrain, each.intermediate],
            linestyle=LINES.get(each.intermediate, "-."),
            marker=MARKERS.get(each.intermediate, "D"),
            markersize=5,
            capsize=3,
            label=condition_words(each.pretrain, each.intermediate),
        )
    _label_sizes(axis, sorted({size for each in series for size in each.sizes}))
    n = max(mean.n for each in series for mean in each.means)
    axis.set(xlabel="images that segmentation learns from", ylabel=label)
    axis.set_title(f"{title} (mean and standard deviation of {n} seeds)" if n > 1 else title, fontsize=10)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.legend(fontsize=8, frameon=False)
    paths = [stem.with_suffix(suffix) for suffix in FORMATS]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _label_sizes(axis: "Axes", sizes: list[int]) -> None:
    """A logarithmic axis whose ticks are the sizes themselves."""
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.minorticks_off()


def _mean(values: Iterable[float]) -> Mean:
    found = list(values)
    return Mean(fmean(found), stdev(found) if len(found) > 1 else None, len(found))


def _differences(study: StudyFile, of: tuple[int, str], than: tuple[int, str], metric: str = "miou") -> dict[int, Mean]:
    """A metric of one condition less that of another, by fine-tuning size, seed by seed."""
    values = {
        ((cell.pretrain, cell.intermediate), cell.finetune, cell.seed): float(getattr(cell, metric))
        for cell in study.cells
    }
    sizes = sorted({cell.finetune for cell in study.cells})
    found = {}
    for size in sizes:
        pairs = [
            value - values[than, size, seed]
            for (condition, finetune, seed), value in values.items()
            if (condition, finetune) == (of, size) and (than, size, seed) in values
        ]
        if pairs:
            found[size] = _mean(pairs)
    return found


def _sentence(words: str, gains: dict[int, Mean]) -> str:
    parts = [
        f"{gain.mean:+.2f}{'' if gain.std is None else f' ± {gain.std:.2f}'} at {size:,} images"
        for size, gain in gains.items()
    ]
    return f"{words} changes mIoU by {', '.join(parts)} (points, seed by seed)."
