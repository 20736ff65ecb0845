"""What a result says beside its numbers: on which images, in whose classes, who is better and how sure that is.

Every protocol makes the same statements about its two splits and about the encoder and its baselines, from which test
images each of them classifies rightly.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from halfseen.data.sources import Source
from halfseen.errors import DataError
from halfseen.evaluation.features import draw_subset
from halfseen.evaluation.metrics import confusion_matrix
from halfseen.evaluation.results import ClassResult, SplitUsed
from halfseen.evaluation.subject import Subject
from halfseen.ops.randomness import numpy_generator
from halfseen.types import SkippedFile

TEST_SHARE = 0.2
"""Share of each class that becomes the test split where the data has one split only."""

CONFUSION_CLASSES = 50
"""Up to this many classes a result carries its confusion counts."""


class LookedAt(Protocol):
    """Images that could be read: `FeatureSet` and `Resident` are such."""

    @property
    def labels(self) -> Int64[Tensor, " n"]:
        """Of each image, -1 = none."""

    @property
    def skipped(self) -> tuple[SkippedFile, ...]:
        """Files that couldn't be read."""


class Split(NamedTuple):
    """A source and the name of the split it is."""

    source: Source
    name: str

    def used(self, found: LookedAt, by_masks: bool = False) -> SplitUsed:
        """For the record: the images of it that were looked at.

        Args:
            by_masks: labels are masks, which every image has.
        """
        return SplitUsed(
            source=self.source.name,
            split=self.name,
            n=len(found.labels),
            labelled=len(found.labels) if by_masks else int((found.labels >= 0).sum()),
            fingerprint=self.source.fingerprint(),
            skipped=len(found.skipped),
        )


def no_labels(count: int, split: str) -> DataError:
    """What to say where none of `count` images has a label."""
    return DataError(
        f"a classifier needs labels, but none of the {count} {split} images has one. Sort them into one folder per "
        "class."
    )


def cut_in_two(whole: Split, seed: int) -> tuple[Split, Split]:
    """Training and test images of data that has one split only: the same share of every class, drawn by seed."""
    labels = np.asarray(whole.source.labels)
    order = numpy_generator(seed, "linear", "test").permutation(len(labels))
    chosen = [order[labels[order] == number] for number in np.unique(labels[labels >= 0])]
    tested = np.sort(np.concatenate([rows[: round(TEST_SHARE * len(rows))] for rows in chosen] or [order[:0]]))
    if not chosen:
        raise no_labels(len(labels), whole.name)
    if not len(tested):
        raise DataError(
            f"'{whole.source.name}': no class has the 3 images from which one can be kept apart for testing. Name "
            "test images by --test."
        )
    rest = np.setdiff1d(np.arange(len(labels)), tested)
    return Split(whole.source.subset(rest), whole.name), Split(whole.source.subset(tested), f"{whole.name} (a fifth)")


def labelled_rows_of(split: Split, most: int | None, seed: int, words: str) -> Int64[np.ndarray, " m"]:
    """The labelled images of a split, at most `most` of them."""
    known = np.flatnonzero(np.asarray(split.source.labels) >= 0)
    if not len(known):
        raise no_labels(len(split.source), words)
    rows: np.ndarray = known[draw_subset(len(known), most, seed, "evaluate", split.name)]
    return rows


def class_names_of(train: Source, test: Source | None) -> list[str]:
    """Names of all classes in the order of the training labels.

    Raises:
        DataError: the test images have a class that the training images don't have.
    """
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


def mask_names_of(train: Split, test: Split | None) -> tuple[str, ...]:
    """Names of the classes of pixels; the test images may lack the last ones, where these are counted in the masks.

    Raises:
        DataError: other classes in the test masks.
    """
    names = train.source.mask_names
    found = names if test is None else test.source.mask_names
    if test is not None and (found[: len(names)] != names[: len(found)] or len(found) > len(names)):
        raise DataError(
            f"the masks of '{test.source.name}' ({test.name}) have the classes {', '.join(found)}, those of "
            f"'{train.source.name}' {', '.join(names)}. Give both splits the same, for instance by a mask_names.txt."
        )
    return names


def in_classes_of(train: Source, test: Source, labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Labels of `test` in the numbering of `train`: a split that lacks a class counts the others differently."""
    if tuple(train.class_names) == tuple(test.class_names):
        return labels
    place = {name: index for index, name in enumerate(train.class_names)}
    table = torch.tensor([place[name] for name in test.class_names] + [-1], dtype=torch.int64)
    return table[labels]


def compare(right: Mapping[str, Float[Tensor, " n"]]) -> list[str]:
    """Plain sentences on who is better, and whether the test images are enough to say so.

    All classified the same images, so what counts is on how many only one of two is right (McNemar's test).

    Args:
        right: of the encoder and of what it is compared with, for each test image whether it is classified rightly, 0
            or 1, or the share of several classifiers that do.
    """
    own = right["encoder"]
    sentences = []
    for name, words in (
        ("student", "the student of the same run"),
        ("random_init", "the same network at random initialisation"),
        ("raw_pixels", "raw pixels"),
    ):
        if name not in right:
            continue
        lead = own - right[name]
        gap = 100 * float(lead.mean())
        if gap == 0:
            sentences.append(f"The encoder is as good as {words}.")
            continue
        is_sure = abs(float(lead.sum())) > 1.96 * float(lead.square().sum()) ** 0.5
        doubt = "" if is_sure else f"; {len(own)} images are too few to be sure of it"
        sentences.append(
            f"The encoder is {abs(gap):.1f} points {'better' if gap > 0 else 'worse'} than {words}{doubt}."
        )
    return sentences


def fingerprints_of(source: Source) -> set[str]:
    """Of a source and of all that it is drawn from."""
    return {each.fingerprint() for each in (source, *source.drawn_from())}


def what_was_seen(train: Split, test: Split | None, subject: Subject) -> list[str]:
    """Sentences on leaks between the images that were trained on, whose labels are used and that are classified."""
    sentences = []
    queried = train if test is None else test
    asked = fingerprints_of(queried.source)
    if asked & set(subject.taught_on):
        sentences.append(
            "Careful: the encoder has learned labels or masks of a set to which some or all of the classified images "
            "belong, in an intermediate stage or by fine-tuning, so the result may be too good."
        )
    if subject.pretrained_on is None:
        sentences.append("What the encoder was pre-trained on is not known here.")
    elif subject.pretrained_on == queried.source.fingerprint():
        sentences.append("The classified images were seen in pre-training, without their labels.")
    elif asked & {subject.pretrained_on, *subject.pretrained_from}:
        sentences.append(
            "The classified images are drawn from a set of which some or all were seen in pre-training, without their "
            "labels."
        )
    else:
        sentences.append("Pre-training used another set of images than the classified ones, and no labels.")
    if test is not None:
        voting = _files(train.source)
        shared = sum(path in voting for path in _files(test.source))
        if shared:
            sentences.append(
                f"Careful: {shared} of the classified images are among the training images, so the accuracy is too "
                "high."
            )
    return sentences


class Ranked(Protocol):
    """Images that were classified."""

    def top(self, n: int) -> float:
        """Share of images whose true class is among the first `n`, in percent."""


def top_metrics(scored: Ranked, num_classes: int) -> dict[str, float]:
    """`top1`, and `top5` where there are more than five classes."""
    return {f"top{depth}": round(scored.top(depth), 4) for depth in ((1, 5) if num_classes > 5 else (1,))}


def per_class(
    names: Sequence[str], labels: Int[Tensor, " n"], right: Mapping[str, Float[Tensor, " n"]]
) -> list[ClassResult]:
    """How each class with test images fares; `right` as in `compare`."""
    counts = torch.bincount(labels, minlength=len(names))
    shares = {
        name: torch.bincount(labels, weights=each, minlength=len(names)) * 100 / counts.clamp(min=1)
        for name, each in right.items()
    }
    return [
        ClassResult(
            name=class_name,
            n=int(counts[index]),
            encoder=round(float(shares["encoder"][index]), 2),
            baselines={name: round(float(each[index]), 2) for name, each in shares.items() if name != "encoder"},
        )
        for index, class_name in enumerate(names)
        if counts[index] > 0
    ]


def confusion_of(labels: Int[Tensor, " n"], predictions: Int[Tensor, " n"], num_classes: int) -> list[list[int]] | None:
    """Counts by true and predicted class; None for more classes than a result carries."""
    if num_classes > CONFUSION_CLASSES:
        return None
    counts = confusion_matrix(labels.numpy(), predictions.numpy(), num_classes)
    return [[int(count) for count in row] for row in counts]


def _files(source: Source) -> set[str]:
    """The files of a source; empty where its images aren't files of their own."""
    if not len(source) or not Path(source.path(0)).is_file():
        return set()
    return {str(Path(source.path(index)).absolute()) for index in range(len(source))}
