"""Low-shot evaluation as MSN publishes it: logistic regression on the frozen features of a few labelled images.

Several label splits are solved for every penalty, for the encoder, for the same network at random initialisation and
for raw pixels; splits of the same size are draws of one experiment and give a mean and a standard deviation. No test
image has a say in anything: the penalty that is the headline is fixed beforehand.
"""

import importlib.metadata
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from halfseen.data.label_splits import LabelSplit
from halfseen.data.sources import Source
from halfseen.errors import DataError
from halfseen.evaluation.features import (
    RAW_PIXEL_SIDE,
    EncoderFeatures,
    Extractor,
    FeatureSet,
    draw_subset,
    extract_features,
    feature_sentence,
)
from halfseen.evaluation.knn.votes import rank_of_class
from halfseen.evaluation.low_shot.config import FEW, FEW_LABELS_LAMBDA, MANY_LABELS_LAMBDA, LogisticConfig
from halfseen.evaluation.low_shot.logistic import LogisticFit, centre_rows, fit_elastic_net, fit_logistic, logits
from halfseen.evaluation.metrics import wilson_interval
from halfseen.evaluation.results import Result
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

TEST_ROWS = 4096

MASKED_BATCH = 16
"""Labelled images that lose the same patches: MSN's batch."""


class Group(NamedTuple):
    """Label splits of one size: the draws of one experiment.

    Attributes:
        key: "5shot" for 5 images of every class, else "1percent" of the training images, or "all".
        splits: one for each draw.
        lambd: the penalty of its headline.
    """

    key: str
    splits: tuple[LabelSplit, ...]
    lambd: float


class _Score(NamedTuple):
    """One classifier's work.

    Attributes:
        rank: int64 [Q], how many classes stand before the true one of each test image; 0 = right.
        predictions: int64 [Q].
        train_top1: accuracy on its own labelled images in percent.
        gap: how far its objective may be above the minimum, as a share.
    """

    rank: Tensor
    predictions: Tensor
    train_top1: float
    gap: float


_Scores = dict[str, list[dict[float, _Score]]]
"""Of one encoder, by group: for each draw the score at each penalty."""


def logistic_protocol(
    subject: Subject,
    train: Split,
    test: Split | None,
    splits: Sequence[LabelSplit],
    config: LogisticConfig,
    *,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Result:
    """Logistic regression on few labels, of the encoder, of the same network at random initialisation, of raw pixels.

    Args:
        subject: what is measured.
        train: the images that `splits` are parts of.
        test: images that are classified; None, or the very same images as `train`: those that no split labels.
        splits: which images have a label; those of one size are draws of one experiment.
        seed: draws the subset of `max_test`; for the record, that of the splits too.
    Raises:
        DataError: one class only, classes that differ between training and test images, test images of a class that
            a split doesn't label, no labelled test image.
    Source: Masked Siamese Networks, arXiv 2204.07141.
    """
    started = time.monotonic()
    notes: list[str] = []
    if test is not None and test.source.fingerprint() == train.source.fingerprint():
        test = None
    class_names = class_names_of(train.source, None if test is None else test.source)
    groups = group_splits(splits, train.source, config.lambd)
    labelled = np.unique(np.concatenate([split.rows for group in groups for split in group.splits]))
    queried = train if test is None else test
    rows = _rows_to_classify(queried.source, labelled if test is None else labelled[:0])
    rows = rows[draw_subset(len(rows), config.max_test, seed, "evaluate", queried.name)]
    if test is None:
        notes.append("There is one split only: the images that no label split holds are classified.")
    if not len(rows):
        raise DataError(f"'{queried.source.name}': no labelled image is left to classify. Name test images by --test.")

    def true_classes(found: np.ndarray) -> Tensor:
        return in_classes_of(train.source, queried.source, torch.from_numpy(found))

    asked = true_classes(np.asarray(queried.source.labels, dtype=np.int64)[rows])
    for split in (split for group in groups for split in group.splits):
        _check_classes(split.origin, np.asarray(train.source.labels)[split.rows], asked, class_names)

    extractors = subject.extractors(config.feature, config.last_blocks)
    notes += subject.notes
    size = subject.size

    def extract(
        extractors: Mapping[str, Extractor], split: Split, chosen: Int64[np.ndarray, " m"], words: str, batch: int
    ) -> dict[str, FeatureSet]:
        return extract_features(
            extractors,
            split.source,
            chosen,
            image_size=size,
            resize=config.resize,
            crop_ratio=config.crop_ratio,
            interpolation=config.interpolation,
            batch_size=batch,
            workers=subject.workers,
            on_progress=None if on_progress is None else partial(on_progress, words),
        )

    learning, batch = extractors, config.batch_size
    if config.mask:
        learning, batch = _masked(extractors, config.mask, seed), MASKED_BATCH
        notes.append(
            f"Labelled images lost {100 * config.mask:g} % of their patches, others for every {MASKED_BATCH} images; "
            "test images, and raw pixels, are whole."
        )
    train_sets = extract(learning, train, labelled, "features of labelled images", batch)
    test_sets = extract(extractors, queried, rows, "features of test images", config.batch_size)
    labels = true_classes(test_sets["encoder"].labels.numpy())
    scores: dict[str, _Scores] = {}
    for name, found in train_sets.items():
        scores[name] = _solve_groups(groups, found, test_sets[name], labels, config, class_names, subject.device)
        if on_progress is not None:
            on_progress("classifiers", len(scores), len(train_sets))

    headline = groups[-1]
    best = {name: [draw[headline.lambd] for draw in each[headline.key]] for name, each in scores.items()}
    right = {name: torch.stack([score.rank == 0 for score in draws]).double().mean(0) for name, draws in best.items()}
    metrics = {name: _metrics(each, groups, len(class_names)) for name, each in scores.items()}
    names = [name for name in scores if name != "encoder"]
    notes += [_about(group) for group in groups]
    notes += _faults(scores, train_sets["encoder"], config.tolerance)
    notes += compare(right)
    seen = train if test is None else Split(train.source.subset(labelled), train.name)
    notes += what_was_seen(seen, test, subject)
    return Result(
        protocol="msn-logistic",
        protocol_text=_protocol_text(config),
        settings={
            "splits": [split.origin for group in groups for split in group.splits],
            "lambdas": [group.lambd for group in groups],
            "sweep": list(config.sweep),
            "penalty": config.penalty,
            "mask": config.mask,
            "feature": config.feature,
            "last_blocks": config.last_blocks,
            "normalize": config.normalize,
            "tolerance": config.tolerance,
            "image_size": size,
            "resize": config.resize,
            "crop_ratio": config.crop_ratio,
            "interpolation": config.interpolation,
            "raw_pixels_side": min(size, RAW_PIXEL_SIDE),
            "precision": subject.precision,
        },
        headline={"lambda": headline.lambd, "draws": len(headline.splits)},
        features=feature_sentence(config.feature, config.last_blocks),
        feature_dim=train_sets["encoder"].features.shape[1],
        role=subject.role,
        encoder=subject.origin,
        data={"train": train.used(train_sets["encoder"]), "test": queried.used(test_sets["encoder"])},
        split=f"{train.name} (the rest)" if test is None else test.name,
        seed=seed,
        n=len(labels),
        n_train=len(headline.splits[0].rows),
        num_classes=len(class_names),
        metrics=metrics["encoder"],
        baselines={name: metrics[name] for name in names},
        confidence_interval={
            name: wilson_interval(round(float(share.sum())), len(share)) for name, share in right.items()
        },
        confidence_text=(
            "95 % Wilson interval of the mean top1 over the test images. It covers neither other draws of labels "
            "(their standard deviation stands after ±) nor other seeds of training."
        ),
        per_class=per_class(class_names, labels, right),
        confusion=confusion_of(labels, best["encoder"][0].predictions, len(class_names)),
        notes=notes,
        seconds=round(time.monotonic() - started, 2),
        halfseen_version=importlib.metadata.version("halfseen"),
    )


def group_splits(splits: Sequence[LabelSplit], source: Source, lambd: float | None = None) -> list[Group]:
    """Splits of one size together, by what they hold rather than by their names, the smallest size first.

    Args:
        source: the training split that they are parts of.
        lambd: penalty of every headline; None = MSN's published value for the size.
    Raises:
        DataError: no splits.
    """
    if not splits:
        raise DataError("logistic: no label split was given. Name files by --split, or sizes by --per-class.")
    members: dict[str, dict[bytes, LabelSplit]] = {}
    for split in sorted(splits, key=lambda split: len(split.rows)):
        # The same images twice (a file given twice) are one draw.
        members.setdefault(_size_key(split, source), {}).setdefault(split.rows.tobytes(), split)
    groups = []
    for key, found in members.items():
        first = next(iter(found.values()))
        images = len(first.rows) / len(np.unique(np.asarray(source.labels)[first.rows]))
        published = FEW_LABELS_LAMBDA if images <= FEW else MANY_LABELS_LAMBDA
        groups.append(Group(key, tuple(found.values()), published if lambd is None else lambd))
    return groups


def _size_key(split: LabelSplit, source: Source) -> str:
    labels = np.asarray(source.labels)
    num_labelled = int((labels >= 0).sum())
    if len(split.rows) == num_labelled:
        return "all"
    counts = np.bincount(labels[split.rows])
    counts = counts[counts > 0]
    if counts.min() == counts.max():
        return f"{counts[0]}shot"
    return f"{float(f'{100 * len(split.rows) / num_labelled:.2g}'):g}percent"


def _masked(extractors: Mapping[str, Extractor], ratio: float, seed: int) -> dict[str, Extractor]:
    """The same extractors, but encoders see a part of the patches only."""
    return {
        name: each.dropping(ratio, seed) if isinstance(each, EncoderFeatures) else each
        for name, each in extractors.items()
    }


def _rows_to_classify(source: Source, labelled: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " q"]:
    """Images with a known class that aren't among `labelled`."""
    known = np.asarray(source.labels) >= 0
    known[labelled] = False
    return np.flatnonzero(known)


def _check_classes(origin: str, labels: np.ndarray, asked: Tensor, class_names: Sequence[str]) -> None:
    present = np.unique(labels)
    if len(present) < 2:
        raise DataError(
            f"logistic: the label split '{origin}' has images of {len(present)} class only; at least 2 are needed."
        )
    missing = np.setdiff1d(asked.numpy(), present)
    if len(missing):
        names = ", ".join(repr(class_names[label]) for label in missing[:5].tolist())
        raise DataError(
            f"logistic: the label split '{origin}' has no image of {len(missing)} classes that the test images have: "
            f"{names}{' ...' if len(missing) > 5 else ''}. Label at least one image of each class."
        )


def _solve_groups(
    groups: Sequence[Group],
    train: FeatureSet,
    test: FeatureSet,
    labels: Tensor,
    config: LogisticConfig,
    class_names: Sequence[str],
    device: str,
) -> _Scores:
    # MPS has no float64, which the last steps of the solver need.
    where = device if torch.device(device).type == "cuda" else "cpu"
    prepare = centre_rows if config.normalize else torch.Tensor.float
    samples, queries = prepare(train.features).to(where), prepare(test.features).to(where)
    place = {int(row): position for position, row in enumerate(train.indices)}
    scores: _Scores = {}
    for group in groups:
        lambdas = tuple(dict.fromkeys((group.lambd, *config.sweep)))
        for split in group.splits:
            held = torch.tensor([place[row] for row in split.rows.tolist() if row in place])
            own = train.labels[held]
            _check_classes(split.origin, own.numpy(), labels, class_names)
            solve = fit_logistic if config.penalty == "l2" else fit_elastic_net
            fits = solve(
                samples[held.to(where)],
                own.to(where),
                lambdas,
                num_classes=len(class_names),
                tolerance=config.tolerance,
            )
            scores.setdefault(group.key, []).append(
                {
                    fit.lambd: _score(fit, samples[held.to(where)], own.to(where), queries, labels.to(where))
                    for fit in fits
                }
            )
    return scores


def _score(fit: LogisticFit, samples: Tensor, own: Tensor, queries: Tensor, labels: Tensor) -> _Score:
    ranks, predictions = [], []
    for start in range(0, len(queries), TEST_ROWS):
        stop = start + TEST_ROWS
        found = logits(queries[start:stop], fit.weight)
        ranks.append(rank_of_class(found, labels[start:stop]).cpu())
        predictions.append(found.argmax(dim=1).cpu())
    right = [
        logits(samples[start : start + TEST_ROWS], fit.weight).argmax(dim=1) == own[start : start + TEST_ROWS]
        for start in range(0, len(samples), TEST_ROWS)
    ]
    return _Score(torch.cat(ranks), torch.cat(predictions), 100.0 * float(torch.cat(right).double().mean()), fit.gap)


def _metrics(scores: _Scores, groups: Sequence[Group], num_classes: int) -> dict[str, float]:
    """Means over the draws, each with its standard deviation where there are several.

    `top1` is the largest split's at its own penalty; `top1_5shot` that of any; `train_5shot` its accuracy on the
    labelled images; `top1_5shot_lambda0.1` at another penalty.
    """
    found: dict[str, float] = {}

    def add(key: str, values: list[float]) -> None:
        found[key] = round(statistics.fmean(values), 4)
        if len(values) > 1:
            found[f"{key}_std"] = round(statistics.stdev(values), 4)

    depths = (1, 5) if num_classes > 5 else (1,)
    largest = groups[-1]
    for depth in depths:
        add(f"top{depth}", [_top(draw[largest.lambd], depth) for draw in scores[largest.key]])
    for group in groups:
        draws = scores[group.key]
        for depth in depths:
            add(f"top{depth}_{group.key}", [_top(draw[group.lambd], depth) for draw in draws])
        add(f"train_{group.key}", [draw[group.lambd].train_top1 for draw in draws])
        for lambd in sorted(draws[0]):
            add(f"top1_{group.key}_lambda{lambd:g}", [_top(draw[lambd], 1) for draw in draws])
    return found


def _top(score: _Score, depth: int) -> float:
    return 100.0 * float((score.rank < depth).double().mean())


def _protocol_text(config: LogisticConfig) -> str:
    prepared = "each centred on its own mean and scaled to length 1" if config.normalize else "as they are"
    published = "MSN's published value (for 5 images per class, also with fewer; for 1 % of ImageNet with more)"
    chosen = published if config.lambd is None else "given beforehand"
    penalty = "squared weights are penalised by lambda / (2 n)"
    if config.penalty == "elastic-net":
        penalty += " and absolute weights by lambda / n"
    return (
        f"Multinomial logistic regression without intercept on frozen features, {prepared}; {penalty}. Solved "
        f"until the objective is within {config.tolerance:g} of its minimum. The headline's lambda is {chosen}; none "
        "is chosen on the test images."
    )


def _about(group: Group) -> str:
    sizes = [len(split.rows) for split in group.splits]
    draws = f"mean and standard deviation over {len(sizes)} draws" if len(sizes) > 1 else "one draw"
    return f"{_size_words(group.key)}: {sizes[0]:,} labelled images, {draws}, lambda = {group.lambd:g}."


def _size_words(key: str) -> str:
    for ending, words in (("shot", " per class"), ("percent", " % of the labels")):
        if key.endswith(ending):
            return key.removesuffix(ending) + words
    return "All labels"


def _faults(scores: Mapping[str, _Scores], train: FeatureSet, tolerance: float) -> list[str]:
    """What is not as it should be: labelled images that couldn't be read, solutions that aren't exact."""
    sentences = []
    if train.skipped:
        sentences.append(f"{len(train.skipped)} labelled images could not be read, so fewer labels were used.")
    worst = max(
        score.gap for each in scores.values() for draws in each.values() for draw in draws for score in draw.values()
    )
    if worst > tolerance:
        sentences.append(f"Careful: a classifier was left {worst:.1g} above the minimum of its objective.")
    return sentences
