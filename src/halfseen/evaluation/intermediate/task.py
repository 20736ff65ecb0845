"""What an intermediate stage learns from which images: chosen and checked before any work."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from halfseen.data.sources import MASKS_GO_WHERE, Source
from halfseen.errors import DataError
from halfseen.evaluation.features import draw_subset
from halfseen.evaluation.intermediate.config import IntermediateConfig
from halfseen.evaluation.segmentation.models import check_size
from halfseen.evaluation.statements import Split, class_names_of, mask_names_of
from halfseen.evaluation.subject import Subject


class StageTask(NamedTuple):
    """What is to be learned from which images, all checks passed.

    Attributes:
        train, test: the images.
        names: of the classes of images or pixels.
    """

    train: Split
    test: Split | None
    names: tuple[str, ...]


def prepare_stage(
    subject: Subject, train: Split, test: Split | None, config: IntermediateConfig, seed: int
) -> StageTask:
    """The images and classes of a stage, looked at before any work is done.

    Raises:
        DataError, ShapeError: see `intermediate_stage`.
    """
    if config.objective == "patchwise":
        check_size(subject.encoder, subject.encoder.image_size)
        names = _mask_names(train, test)
        rows = np.arange(len(train.source))
        test_rows = None if test is None else np.arange(len(test.source))
    else:
        rows = _labelled(train.source, "training")
        names = tuple(class_names_of(train.source, None if test is None else test.source))
        if len(np.unique(train.source.labels[rows])) < 2:
            raise DataError(
                "an intermediate classification needs at least 2 classes among the training images, but "
                f"'{train.source.name}' has one. Sort the images into one folder per class."
            )
        test_rows = None
        if test is not None:
            known = np.flatnonzero(test.source.labels >= 0)
            test_rows = known if len(known) else None
    rows = rows[draw_subset(len(rows), config.max_train, seed, "intermediate", "train")]
    chosen = Split(train.source.subset(rows), train.name)
    if test is None or test_rows is None:
        return StageTask(chosen, None, names)
    test_rows = test_rows[draw_subset(len(test_rows), config.max_test, seed, "intermediate", "test")]
    return StageTask(chosen, Split(test.source.subset(test_rows), test.name), names)


def _labelled(source: Source, words: str) -> NDArray[np.int64]:
    rows = np.flatnonzero(source.labels >= 0)
    if not len(rows):
        raise DataError(
            f"an intermediate classification needs labels, but none of the {len(source)} {words} images of "
            f"'{source.name}' has one. Sort them into one folder per class, or use the objective patchwise with masks."
        )
    return rows


def _mask_names(train: Split, test: Split | None) -> tuple[str, ...]:
    """Classes of the pixels."""
    for split in (train, test):
        if split is not None and not split.source.has_masks:
            raise DataError(
                f"the objective patchwise needs a mask for each image, but '{split.source.name}' ({split.name}) has "
                f"none. {MASKS_GO_WHERE} The objective classification needs none."
            )
    names = mask_names_of(train, test)
    if len(names) < 2:
        raise DataError(
            f"the objective patchwise needs at least 2 classes of pixels, but the masks of '{train.source.name}' have "
            f"{len(names)}."
        )
    return names
