"""What a fine-tuning learns from which images, and which are held out or classified."""

from typing import NamedTuple

import numpy as np
import torch

from halfseen.data.sources import Source
from halfseen.errors import DataError
from halfseen.evaluation.finetuning.config import FinetuneConfig
from halfseen.evaluation.finetuning.training import Images
from halfseen.evaluation.linear.probes import check_labels, hold_out
from halfseen.evaluation.statements import Split, class_names_of, cut_in_two, in_classes_of, labelled_rows_of


class Task(NamedTuple):
    """What is learned from which images.

    Attributes:
        train: the labelled training images but the held-out ones, and their labels in `chosen.labels`.
        chosen: those images as a source of their own.
        held: images on which the epoch is chosen; None = none.
        test: images that are classified.
        tested: their split.
        class_names: of the head's outputs.
        notes: sentences on how the splits were made.
    """

    train: Split
    chosen: Source
    held: Images | None
    test: Images
    tested: Split
    class_names: list[str]
    notes: list[str]


def prepare_task(train: Split, test: Split | None, config: FinetuneConfig) -> Task:
    """The images of all three kinds, with labels in the training images' classes."""
    notes = []
    if test is None or test.source.fingerprint() == train.source.fingerprint():
        train, test = cut_in_two(train, config.seed)
        notes.append("There is one split only: a fifth of each class was kept apart beforehand as test images.")
    class_names = class_names_of(train.source, test.source)
    rows = labelled_rows_of(train, None, config.seed, "training")
    labels = torch.from_numpy(np.asarray(train.source.labels, dtype=np.int64)[rows])
    check_labels(labels)
    held = None
    if config.choose == "held-out":
        apart = hold_out(labels, config.held_out, config.seed).numpy()
        if not apart.any():
            raise DataError(
                "choose=held-out: every class has a single training image, so none can be kept apart. Write "
                "choose=last, or give more images."
            )
        held = Images(train.source, rows[apart], labels[torch.from_numpy(apart)])
        rows = rows[~apart]
    test_rows = labelled_rows_of(test, config.view.max_test, config.seed, "test")
    own = torch.from_numpy(np.asarray(test.source.labels, dtype=np.int64)[test_rows])
    tested = Images(test.source, test_rows, in_classes_of(train.source, test.source, own))
    return Task(train, train.source.subset(rows), held, tested, test, class_names, notes)
