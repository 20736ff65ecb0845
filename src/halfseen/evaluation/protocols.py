"""Evaluations as the literature names them: an encoder measured together with its baselines.

Each protocol exists once. It computes the features of the trained encoder, of the same network at random initialisation
and of raw pixels in one pass over the data, and says in words what was trained on what.
"""

import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfseen.backbones.base import Encoder
from halfseen.data.sources import Source
from halfseen.errors import DataError
from halfseen.evaluation.features import (
    FEATURE_SENTENCES,
    EncoderFeatures,
    Extractor,
    FeatureSet,
    Precision,
    RawPixels,
    draw_subset,
    extract_features,
)
from halfseen.evaluation.knn import KnnScore, check_vote, weighted_knn
from halfseen.evaluation.metrics import confusion_matrix, wilson_interval
from halfseen.evaluation.results import ClassResult, EvaluateConfig, Result, SplitUsed

HEADLINE_K = 20
HEADLINE_TEMPERATURE = 0.07
RAW_PIXEL_SIDE = 32
CONFUSION_CLASSES = 50
"""Up to this many classes a result carries its confusion counts."""


class Split(NamedTuple):
    """A source and the name of the split it is."""

    source: Source
    name: str


def knn_protocol(
    encoder: Encoder,
    random_encoder: Callable[[], Encoder] | None,
    train: Split,
    test: Split | None,
    config: EvaluateConfig,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    role: str = "student",
    others: Mapping[str, Encoder] | None = None,
    origin: str,
    pretrained_on: str | None = None,
    seed: int = 0,
    image_size: int | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    workers: int = 0,
    strict_k: bool = False,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Result:
    """Weighted k-NN of a frozen encoder, of the same network at random initialisation, and of raw pixels.

    Args:
        random_encoder: builds the same network with fresh weights; None leaves this baseline out, with a note.
        train: images that vote.
        test: images that are classified; None, or the very same images as `train`: leave-one-out on `train`.
        mean, std: the normalisation the encoder expects.
        role: which of a run's encoders this is, "student" or "teacher".
        others: the run's other encoders by role; each is measured beside the baselines, under its role's name.
        origin: where the encoder comes from, for the record.
        pretrained_on: fingerprint of the images the encoder was pre-trained on, where known.
        seed: draws the subsets of `max_train` and `max_test`.
        image_size: side of the views; None = the encoder's own.
        strict_k: a k larger than the number of voting images is an error rather than left out with a note.
        on_progress: called with (what is being done, done, all).
    Raises:
        DataError: no labels, one class only, classes that differ between the splits.
    Source: DINO, arXiv 2104.14294; iBOT, arXiv 2111.07832.
    """
    started = time.monotonic()
    notes: list[str] = []
    if test is not None and test.source.fingerprint() == train.source.fingerprint():
        test = None
    leave_one_out = test is None
    if leave_one_out:
        notes.append("There is one split only: every image is classified by all others (leave-one-out).")
    class_names = _class_names(train.source, None if test is None else test.source)
    size = encoder.image_size if image_size is None else image_size

    def choose(split: Split, most: int | None) -> NDArray[np.int64]:
        return draw_subset(len(split.source), most, seed, "evaluate", split.name)

    train_rows = choose(train, config.max_train)
    votes = torch.from_numpy(np.asarray(train.source.labels, dtype=np.int64)[train_rows])
    check_vote(votes, config.k if strict_k else (1,), config.temperature, leave_one_out)

    def features_of(measured: Encoder) -> Extractor:
        return EncoderFeatures(measured, mean, std, feature=config.feature, device=device, precision=precision)

    extractors: dict[str, Extractor] = {"encoder": features_of(encoder)}
    extractors |= {other: features_of(measured) for other, measured in (others or {}).items()}
    if random_encoder is None:
        notes.append("Without the random-initialisation baseline: this network can't be built anew.")
    else:
        extractors["random_init"] = features_of(random_encoder())
    extractors["raw_pixels"] = RawPixels(RAW_PIXEL_SIDE)

    def extract(split: Split, rows: NDArray[np.int64]) -> dict[str, FeatureSet]:
        def report(done: int, of: int) -> None:
            if on_progress is not None:
                on_progress(f"features of {split.name}", done, of)

        return extract_features(
            extractors,
            split.source,
            rows,
            image_size=size,
            resize=config.resize,
            crop_ratio=config.crop_ratio,
            batch_size=config.batch_size,
            workers=workers,
            on_progress=report,
        )

    train_sets = extract(train, train_rows)
    test_sets = None if test is None else extract(test, choose(test, config.max_test))
    voters = next(iter(train_sets.values()))
    queries = voters if test_sets is None else next(iter(test_sets.values()))
    labels = queries.labels
    if test is not None:
        labels = _as_classes_of(train.source, test.source, labels)
    sizes, dropped = _usable(config.k, int((voters.labels >= 0).sum()) - leave_one_out, strict_k)
    if dropped:
        notes.append(f"k = {', '.join(map(str, dropped))} left out: only {len(voters.labels)} images can vote.")

    scores = {
        name: weighted_knn(
            found.features,
            found.labels,
            None if test_sets is None else test_sets[name].features,
            None if test_sets is None else labels,
            k=sizes,
            temperature=config.temperature,
            num_classes=len(class_names),
        )
        for name, found in train_sets.items()
    }
    headline = _headline(sizes, config.temperature)
    best = {name: _pick(each, headline) for name, each in scores.items()}
    metrics = {name: _metrics(each, headline, config.temperature, len(class_names)) for name, each in scores.items()}
    labels = labels[labels >= 0]
    names = [name for name in scores if name != "encoder"]
    unlabelled = len(queries.labels) - len(labels)
    if unlabelled:
        notes.append(f"{unlabelled} images without a label were left out.")
    notes += _comparison(best)
    notes += _what_was_seen(train, test, pretrained_on)
    return Result(
        protocol="knn",
        protocol_text=(
            "Weighted k-nearest-neighbour vote exp(cosine/T) on frozen, L2-normalised features; nothing is trained. "
            "k and T are fixed beforehand, not chosen on the test images."
        ),
        settings={
            "k": list(sizes),
            "temperature": list(config.temperature),
            "feature": config.feature,
            "image_size": size,
            "resize": config.resize,
            "crop_ratio": config.crop_ratio,
            "raw_pixels_side": min(size, RAW_PIXEL_SIDE),
            "precision": precision,
            "leave_one_out": leave_one_out,
        },
        headline={"k": headline[0], "temperature": headline[1]},
        features=FEATURE_SENTENCES[config.feature],
        feature_dim=voters.features.shape[1],
        role=role,
        encoder=origin,
        data={
            "train": _used(train, voters),
            "test": _used(train if test is None else test, queries),
        },
        split=f"{train.name} (leave-one-out)" if test is None else test.name,
        seed=seed,
        n=len(labels),
        n_train=int((voters.labels >= 0).sum()),
        num_classes=len(class_names),
        metrics=metrics["encoder"],
        baselines={name: metrics[name] for name in names},
        confidence_interval={
            name: wilson_interval(int((score.rank == 0).sum()), len(score.rank)) for name, score in best.items()
        },
        confidence_text="95 % Wilson interval of top1 over the test images; it does not cover other seeds of training.",
        per_class=_per_class(class_names, labels, best),
        confusion=_confusion(labels, best["encoder"], len(class_names)),
        notes=notes,
        seconds=round(time.monotonic() - started, 2),
        halfseen_version=importlib.metadata.version("halfseen"),
    )


def _usable(k: Sequence[int], available: int, strict: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The k that can be used, and those left out; with `strict` all of them go on, and the largest may be refused."""
    if strict or available < 1:
        return tuple(k), ()
    fitting = tuple(size for size in k if size <= available)
    return (fitting or (available,)), tuple(size for size in k if size > available)


def _headline(sizes: Sequence[int], temperatures: Sequence[float]) -> tuple[int, float]:
    k = HEADLINE_K if HEADLINE_K in sizes else min(sizes, key=lambda size: abs(size - HEADLINE_K))
    return k, HEADLINE_TEMPERATURE if HEADLINE_TEMPERATURE in temperatures else temperatures[0]


def _pick(scores: Sequence[KnnScore], headline: tuple[int, float]) -> KnnScore:
    return next(score for score in scores if (score.k, score.temperature) == headline)


def _metrics(
    scores: Sequence[KnnScore], headline: tuple[int, float], temperatures: Sequence[float], num_classes: int
) -> dict[str, float]:
    found: dict[str, float] = {}
    depths = (1, 5) if num_classes > 5 else (1,)
    for depth in depths:
        found[f"top{depth}"] = round(_pick(scores, headline).top(depth), 4)
    for score in scores:
        suffix = "" if score.temperature == temperatures[0] else f"_T{score.temperature}"
        for depth in depths:
            found[f"top{depth}_k{score.k}{suffix}"] = round(score.top(depth), 4)
    return found


def _comparison(scores: Mapping[str, KnnScore]) -> list[str]:
    """Plain sentences on who wins at the headline setting, and whether the test images are enough to say so.

    Both classified the same images, so what counts is on how many only one of them is right (McNemar's test).
    """
    own = scores["encoder"].rank == 0
    sentences = []
    for name, words in (
        ("student", "the student of the same run"),
        ("random_init", "the same network at random initialisation"),
        ("raw_pixels", "raw pixels"),
    ):
        if name not in scores:
            continue
        other = scores[name].rank == 0
        won, lost = int((own & ~other).sum()), int((other & ~own).sum())
        gap = 100 * (won - lost) / len(own)
        if won == lost:
            sentences.append(f"The encoder is as good as {words}.")
            continue
        doubt = (
            "" if abs(won - lost) > 1.96 * (won + lost) ** 0.5 else f"; {len(own)} images are too few to be sure of it"
        )
        sentences.append(
            f"The encoder is {abs(gap):.1f} points {'better' if gap > 0 else 'worse'} than {words}{doubt}."
        )
    return sentences


def _what_was_seen(train: Split, test: Split | None, pretrained_on: str | None) -> list[str]:
    """Sentences on leaks between the images that were trained on, that vote and that are classified."""
    sentences = []
    queried = train if test is None else test
    if pretrained_on is None:
        sentences.append("What the encoder was pre-trained on is not known here.")
    elif pretrained_on == queried.source.fingerprint():
        sentences.append("The classified images were seen in pre-training, without their labels.")
    else:
        sentences.append("Pre-training used another set of images than the classified ones, and no labels.")
    if test is not None:
        voting = _files(train.source)
        shared = sum(path in voting for path in _files(test.source))
        if shared:
            sentences.append(f"Careful: {shared} of the classified images also vote, so the accuracy is too high.")
    return sentences


def _files(source: Source) -> set[str]:
    """The files of a source; empty where its images aren't files of their own."""
    if not len(source) or not Path(source.path(0)).is_file():
        return set()
    return {str(Path(source.path(index)).absolute()) for index in range(len(source))}


def _class_names(train: Source, test: Source | None) -> list[str]:
    """Names of all classes in the order of the training labels."""
    names = list(train.class_names)
    if test is not None:
        unknown = sorted(set(test.class_names) - set(names))
        if unknown and names:
            raise DataError(
                f"'{test.name}' has classes that '{train.name}' has not: {', '.join(map(repr, unknown[:5]))}"
                f"{' ...' if len(unknown) > 5 else ''}. Give both splits the same class names."
            )
    if not names and len(train.labels):
        names = [str(label) for label in range(int(train.labels.max()) + 1)]
    return names


def _as_classes_of(train: Source, test: Source, labels: Tensor) -> Tensor:
    """Labels of `test` in the numbering of `train`: a split that lacks a class counts the others differently."""
    if tuple(train.class_names) == tuple(test.class_names):
        return labels
    place = {name: index for index, name in enumerate(train.class_names)}
    table = torch.tensor([place[name] for name in test.class_names] + [-1], dtype=torch.int64)
    return table[labels]


def _per_class(names: Sequence[str], labels: Tensor, scores: Mapping[str, KnnScore]) -> list[ClassResult]:
    counts = torch.bincount(labels, minlength=len(names))
    right = {
        name: torch.bincount(labels[score.rank == 0], minlength=len(names)).double() * 100 / counts.clamp(min=1)
        for name, score in scores.items()
    }
    return [
        ClassResult(
            name=class_name,
            n=int(counts[index]),
            encoder=round(float(right["encoder"][index]), 2),
            baselines={name: round(float(each[index]), 2) for name, each in right.items() if name != "encoder"},
        )
        for index, class_name in enumerate(names)
        if counts[index] > 0
    ]


def _confusion(labels: Tensor, score: KnnScore, num_classes: int) -> list[list[int]] | None:
    if num_classes > CONFUSION_CLASSES:
        return None
    counts = confusion_matrix(labels.numpy(), score.predictions.numpy(), num_classes)
    return [[int(count) for count in row] for row in counts]


def _used(split: Split, found: FeatureSet) -> SplitUsed:
    return SplitUsed(
        source=split.source.name,
        split=split.name,
        n=len(found.labels),
        labelled=int((found.labels >= 0).sum()),
        fingerprint=split.source.fingerprint(),
        skipped=len(found.skipped),
    )
