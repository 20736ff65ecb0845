"""Results of evaluations as cards, bars and tables of the page."""

from collections.abc import Sequence
from typing import NamedTuple

from halfseen.reports.runfiles import Evaluation
from halfseen.reports.tables import detail_keys, metric_text, metric_words, subject, visible

MOST_CONFUSION = 25


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
    table_caption: str
    bars: list[Bar]
    bars_title: str
    bars_words: str
    confidence_text: str
    notes: list[str]
    class_columns: list[str]
    per_class: list[Row]
    per_class_caption: str
    confusion: list[ConfusionRow]
    confusion_names: list[str]


class Value(NamedTuple):
    """A number and its interval as text, both empty where there is none."""

    number: str
    interval: str


class OverviewRow(NamedTuple):
    """One result on a line: what was measured on what, and what came out."""

    run: str
    protocol: str
    measure: str
    values: list[Value]
    features: str
    data: str
    n: str
    labelled: str
    seed: int


class Overview(NamedTuple):
    """All results of all runs, a row each.

    Attributes:
        subjects: headings of the values: the encoder, and every baseline that some result has.
        rows: in the order of the runs and their files.
    """

    subjects: list[str]
    rows: list[OverviewRow]


def overview(results: Sequence[tuple[str, Evaluation]]) -> Overview:
    """A table of (name of the run, result)."""
    names = list(dict.fromkeys(name for _, result in results for name in ("encoder", *result.baselines)))
    return Overview(
        [subject(name) for name in names],
        [
            OverviewRow(
                run=visible(run),
                protocol=visible(result.protocol),
                measure=f"{primary_words(result)}{_setting_words(result)}",
                values=[_value(result, name) for name in names],
                features=visible(f"{result.features} ({result.role})" if result.features else result.role),
                data=_data_words(result),
                n=f"{result.n:,}",
                labelled="" if result.n_train is None else f"{result.n_train:,}",
                seed=result.seed,
            )
            for run, result in results
        ],
    )


def headline_of(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The k-NN result of the student where there is one, otherwise the first."""
    knn = [result for result in evaluations if result.protocol == "knn"]
    return next(iter(knn or evaluations), None)


def headline_cards(result: Evaluation) -> list[Card]:
    setting = _setting_words(result)
    cards = []
    for name, metrics in {"encoder": result.metrics, **result.baselines}.items():
        if result.primary not in metrics:
            continue
        interval = result.confidence_interval.get(name)
        fine = f"95 % interval {interval[0]:.1f} to {interval[1]:.1f}" if interval else ""
        label = f"{result.protocol}{setting}: {subject(name)}" if name == "encoder" else subject(name)
        cards.append(Card(visible(label), f"{metrics[result.primary]:.1f}", fine))
    return cards


def view_evaluation(result: Evaluation) -> EvaluationView:
    names = ["encoder", *result.baselines]
    values = [result.metrics, *result.baselines.values()]
    bars = [
        _bar(name, metrics[result.primary], result.confidence_interval.get(name))
        for name, metrics in zip(names, values, strict=True)
        if result.primary in metrics
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
            _row(
                metric_words(key),
                [each.get(key) for each in values],
                names,
                texts=[metric_text(each, key, 1) for each in values],
            )
            for key in detail_keys(result.metrics)
        ],
        table_caption=f"{'Accuracy in' if result.primary.startswith('top') else 'In'} percent, n = {result.n:,}",
        bars=bars,
        bars_title=f"{primary_words(result)} in percent{_setting_words(result)}, n = {result.n:,}",
        bars_words="; ".join(f"{bar.label}: {bar.text}" for bar in bars),
        confidence_text=result.confidence_text,
        notes=result.notes,
        class_columns=[subject(name) for name in names],
        per_class=[
            _row(row.name, [row.encoder, *(row.baselines.get(name) for name in names[1:])], names, row.n)
            for row in result.per_class
        ],
        per_class_caption="Intersection over union of each class, all test pixels pooled, in percent; n images show it"
        if result.primary == "miou"
        else f"Share of each class's test images that are classified rightly, in percent{_setting_words(result)}",
        confusion=[] if confusion is None else _confusion(class_names, confusion),
        confusion_names=[visible(name) for name in class_names],
    )


def accuracy_text(result: Evaluation, name: str) -> str:
    value = _value(result, name)
    return f"{value.number} ({value.interval})" if value.interval else value.number


def _value(result: Evaluation, name: str) -> Value:
    metrics = result.metrics if name == "encoder" else result.baselines.get(name, {})
    if result.primary not in metrics:
        return Value("", "")
    interval = result.confidence_interval.get(name)
    return Value(f"{metrics[result.primary]:.1f}", f"{interval[0]:.1f} - {interval[1]:.1f}" if interval else "")


def primary_words(result: Evaluation) -> str:
    """The metric that stands for a result, in words."""
    words = metric_words(result.primary)
    return f"{words.capitalize()} accuracy" if result.primary.startswith("top") else words[:1].upper() + words[1:]


def _setting_words(result: Evaluation) -> str:
    return "".join(f", {name} = {result.headline[name]:g}" for name in ("k", "lambda") if name in result.headline)


def _setup(result: Evaluation) -> str:
    """Protocol, features and data of a result in sentences."""
    sentences = [result.protocol_text] if result.protocol_text else []
    if result.features:
        width = f", {result.feature_dim} numbers per image" if result.feature_dim else ""
        sentences.append(f"Features: {result.features}{width} ({result.role}).")
    train, test = result.data.get("train"), result.data.get("test")
    if train is None and test is not None:
        sentences.append(f"Images: {_data_words(result)}, {test.n:,} of them. Seed {result.seed}.")
    if train is not None and test is not None:
        sentences.append(
            f"{visible(train.source)} ({visible(train.split)}, {train.n:,} images) classifies "
            f"{visible(test.source)} ({visible(result.split or test.split)}, {test.n:,} images). Seed {result.seed}."
        )
    return " ".join(sentences)


def _data_words(result: Evaluation) -> str:
    test = result.data.get("test")
    if test is None:
        return visible(result.split)
    return f"{visible(test.source)} ({visible(result.split or test.split)})"


def _bar(name: str, value: float, interval: tuple[float, float] | None) -> Bar:
    low, high = interval if interval is not None else (None, None)
    text = f"{value:.1f} %" if low is None or high is None else f"{value:.1f} % ({low:.1f} - {high:.1f})"
    width = 0.0 if low is None or high is None else round(high - low, 3)
    return Bar(subject(name), _kind(name), value, low, width, text)


def _kind(name: str) -> str:
    return name if name in ("encoder", "random_init", "raw_pixels") else "other"


def _row(
    name: str,
    values: Sequence[float | None],
    kinds: Sequence[str],
    n: int = 0,
    texts: Sequence[str] | None = None,
) -> Row:
    known = [value for value in values if value is not None]
    cells = [
        Cell("", False, 0.0, _kind(kind))
        if value is None
        else Cell(text, value == max(known), max(0.0, min(100.0, value)), _kind(kind))
        for value, kind, text in zip(values, kinds, texts or [_one_digit(value) for value in values], strict=True)
    ]
    return Row(visible(name), cells, n)


def _one_digit(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[ConfusionRow]:
    return [
        ConfusionRow(visible(name), [ConfusionCell(count, round(count / max(1, sum(row)), 3)) for count in row])
        for name, row in zip(names, counts, strict=True)
    ]
