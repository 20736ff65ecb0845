"""Tables and sentences: a result for the terminal, numbers and durations in words."""

import unicodedata
from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from halfseen.reports.runfiles import Evaluation

SPREAD = "_std"
"""Ending of the standard deviation over several draws that goes with a metric."""
SUBJECTS: dict[str, str] = {
    "encoder": "this encoder",
    "student": "the student",
    "teacher": "the teacher",
    "random_init": "same network, random initialisation",
    "raw_pixels": "raw pixels",
}


WORDS: dict[str, str] = {
    "train": "labelled images",
    "all": "all labels",
    "miou": "mean IoU",
    "present": "classes that are there",
    "dataset": "all pixels pooled",
    "accuracy": "pixel accuracy",
    "nmi": "NMI",
    "ari": "ARI",
    "fmi": "Fowlkes-Mallows index",
    "acc": "accuracy of the best one-to-one map",
}
"""Parts of a metric's name."""


def subject(name: str) -> str:
    """What a row of a result is about, in words."""
    return SUBJECTS.get(name, name.replace("_", " "))


def metric_words(key: str) -> str:
    """`top1_k20_T0.5` -> `top-1, k = 20, T = 0.5`; `top1_5shot_lambda0.1` -> `top-1, 5 per class, lambda = 0.1`."""
    words = []
    for part in key.split("_"):
        if part.startswith("top") and part[3:].isdigit():
            words.append(f"top-{part[3:]}")
        elif part[:1] in "kT" and part[1:].replace(".", "", 1).isdigit():
            words.append(f"{part[0]} = {part[1:]}")
        elif part.startswith("lambda"):
            words.append(f"lambda = {part.removeprefix('lambda')}")
        elif part.endswith("shot"):
            words.append(f"{part.removesuffix('shot')} per class")
        elif part.endswith("percent"):
            words.append(f"{part.removesuffix('percent')} % of the labels")
        else:
            words.append(WORDS.get(part, part))
    return ", ".join(words)


def detail_keys(metrics: Mapping[str, float]) -> list[str]:
    """The metrics to list: without a headline that stands there once more, as the one of its k and T."""
    means = [key for key in metrics if not key.endswith(SPREAD)]
    settings = {key.partition("_")[0] for key in means if "_" in key and not key.endswith("_train")}
    return [key for key in means if not (key.startswith("top") and key in settings)]


def metric_text(metrics: Mapping[str, float], key: str, digits: int = 2) -> str:
    """A metric with its standard deviation where there is one; empty where there is no such metric."""
    if key not in metrics:
        return ""
    spread = f" ± {metrics[key + SPREAD]:.{digits}f}" if key + SPREAD in metrics else ""
    return f"{metrics[key]:.{digits}f}{spread}"


def result_table(result: Evaluation) -> Table:
    """A result as it is printed: one row per metric, the encoder beside its baselines."""
    title = f"{result.protocol}: n = {result.n:,}"
    if result.n_train:
        title += f" classified by {result.n_train:,} labelled images"
    # Text objects: names come from files and folders, and square brackets in them are no mark-up.
    table = Table(title=Text(title), title_justify="left", caption=Text(result.confidence_text), caption_justify="left")
    names = ["encoder", *result.baselines]
    table.add_column("accuracy in %" if result.primary.startswith("top") else "in %")
    for name in names:
        table.add_column(Text(subject(name)), justify="right")
    columns = [result.metrics, *result.baselines.values()]
    for key in detail_keys(result.metrics):
        table.add_row(metric_words(key), *(metric_text(each, key) for each in columns))
    if result.confidence_interval:
        setting = next(
            (f" ({name} = {result.headline[name]:g})" for name in ("k", "lambda") if name in result.headline), ""
        )
        intervals = [result.confidence_interval.get(name) for name in names]
        table.add_section()
        table.add_row(
            f"95 % interval of {metric_words(result.primary)}{setting}",
            *(f"{pair[0]:.1f} - {pair[1]:.1f}" if pair else "" for pair in intervals),
        )
    return table


def duration_words(seconds: float) -> str:
    """`95` -> `1 min 35 s`."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def visible(text: object) -> str:
    """Text with control, format and line-breaking characters spelled out.

    A right-to-left override or a newline in a file name could otherwise make a line read as something it isn't.
    """
    return "".join(
        character if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else _escape(character)
        for character in str(text)
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
