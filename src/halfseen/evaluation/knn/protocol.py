"""Evaluations as the literature names them: an encoder measured together with its baselines.

Each protocol exists once. It computes the features of the trained encoder, of the same network at random initialisation
and of raw pixels in one pass over the data, and says in words what was trained on what.
"""

import importlib.metadata
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from halfseen.evaluation.features import (
    FEATURE_SENTENCES,
    RAW_PIXEL_SIDE,
    FeatureSet,
    draw_subset,
    extract_features,
)
from halfseen.evaluation.knn.votes import KnnScore, check_vote, weighted_knn
from halfseen.evaluation.metrics import wilson_interval
from halfseen.evaluation.results import KNNConfig, Result
from halfseen.evaluation.statements import (
    Split,
    class_names_of,
    compare,
    confusion_of,
    in_classes_of,
    per_class,
    what_was_seen,
)
from halfseen.evaluation.subject import OnProgress, Subject

HEADLINE_K = 20
HEADLINE_TEMPERATURE = 0.07


def knn_protocol(
    subject: Subject,
    train: Split,
    test: Split | None,
    config: KNNConfig,
    *,
    seed: int = 0,
    strict_k: bool = False,
    on_progress: OnProgress | None = None,
) -> Result:
    """Weighted k-NN of a frozen encoder, of the same network at random initialisation, and of raw pixels.

    Args:
        subject: what is measured.
        train: images that vote.
        test: images that are classified; None, or the very same images as `train`: leave-one-out on `train`.
        seed: draws the subsets of `max_train` and `max_test`.
        strict_k: a k larger than the number of voting images is an error rather than left out with a note.
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
    class_names = class_names_of(train.source, None if test is None else test.source)
    size = subject.size

    def choose(split: Split, most: int | None) -> NDArray[np.int64]:
        return draw_subset(len(split.source), most, seed, "evaluate", split.name)

    train_rows = choose(train, config.max_train)
    votes = torch.from_numpy(np.asarray(train.source.labels, dtype=np.int64)[train_rows])
    check_vote(votes, config.k if strict_k else (1,), config.temperature, leave_one_out)

    notes += subject.notes
    extractors = subject.extractors(config.feature)

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
            workers=subject.workers,
            on_progress=report,
        )

    train_sets = extract(train, train_rows)
    test_sets = None if test is None else extract(test, choose(test, config.max_test))
    voters = next(iter(train_sets.values()))
    queries = voters if test_sets is None else next(iter(test_sets.values()))
    labels = queries.labels
    if test is not None:
        labels = in_classes_of(train.source, test.source, labels)
    available = int((voters.labels >= 0).sum()) - leave_one_out
    sizes, dropped = _usable(config.k, available, strict_k)
    if dropped:
        notes.append(f"k = {', '.join(map(str, dropped))} left out: only {available} images can vote.")

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
    right = {name: (score.rank == 0).double() for name, score in best.items()}
    notes += compare(right)
    notes += what_was_seen(train, test, subject)
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
            "precision": subject.precision,
            "leave_one_out": leave_one_out,
        },
        headline={"k": headline[0], "temperature": headline[1]},
        features=FEATURE_SENTENCES[config.feature],
        feature_dim=voters.features.shape[1],
        role=subject.role,
        encoder=subject.origin,
        data={
            "train": train.used(voters),
            "test": (train if test is None else test).used(queries),
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
        per_class=per_class(class_names, labels, right),
        confusion=confusion_of(labels, best["encoder"].predictions, len(class_names)),
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
