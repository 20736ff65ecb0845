"""What a segmentation learns from which images: chosen and checked before any work, then kept on the device."""

from typing import NamedTuple

import numpy as np

from halfseen.data.resident import Resident, ResidentAugmentation, apply_augmentation
from halfseen.data.sources import JoinedSource
from halfseen.data.subsets import draw_train_and_test
from halfseen.errors import DataError
from halfseen.evaluation.resident_training import read_images
from halfseen.evaluation.segmentation.config import SegmentationConfig
from halfseen.evaluation.statements import Split, mask_names_of
from halfseen.evaluation.subject import OnProgress, Subject
from halfseen.ops.randomness import numpy_generator, stream_seed
from halfseen.ops.segmentation import IGNORED

TEST_SHARE = 0.2
"""Share of the images that becomes the test split where the data has one split only."""

FORWARD_IMAGES = 64


class Task(NamedTuple):
    """What is learned from which images, all checks passed.

    Attributes:
        train, test: the images.
        names: of the classes of pixels.
        notes: how the images were chosen.
    """

    train: Split
    test: Split
    names: tuple[str, ...]
    notes: tuple[str, ...]


def prepare_task(train: Split, test: Split | None, config: SegmentationConfig, seed: int) -> Task:
    """Choose the images and classes before any work is done.

    Raises:
        DataError: see `segmentation_protocol`.
    """
    for split in (train, test):
        if split is not None and not split.source.has_masks:
            split.source.mask(0)  # Says where masks go.
    if test is not None and test.source.fingerprint() == train.source.fingerprint():
        test = None
    notes: list[str] = []
    if config.train_size is not None and config.test_size is not None:
        whole = train.source if test is None else JoinedSource(train.source.name, train.source, test.source)
        rows = draw_train_and_test(
            len(whole), config.train_size, config.test_size, config.split_seed, config.fixed_test_split
        )
        names = whole.mask_names
        splits = [
            Split(whole.subset(part), f"{word}, drawn from all {len(whole)}")
            for part, word in zip(rows, ("train", "test"), strict=True)
        ]
        if not config.fixed_test_split:
            notes.append(
                f"The test images are those after the first {config.train_size} of a permutation (seed "
                f"{config.split_seed}), so they differ between train_size; fixed_test_split=true keeps them."
            )
    elif test is None:
        order = numpy_generator(seed, "segmentation test").permutation(len(train.source))
        kept = max(1, round(TEST_SHARE * len(order)))
        if len(order) < 2:
            raise DataError(f"'{train.source.name}' has {len(order)} images; one to learn from and one to test needed.")
        names = train.source.mask_names
        splits = [
            Split(train.source.subset(np.sort(order[kept:])), f"{train.name}, the rest"),
            Split(train.source.subset(np.sort(order[:kept])), f"{train.name}, a fifth kept apart"),
        ]
        notes.append("There is one split only: a fifth of the images was kept apart as test images.")
    else:
        names = mask_names_of(train, test)
        splits = [train, test]
    if len(names) < 2:
        raise DataError(
            f"the masks of '{train.source.name}' hold {len(names)} class, but at least 2 are needed. Classes count "
            f"from 0, and {IGNORED} means no class: write an object as 1 on a background of 0."
        )
    return Task(splits[0], splits[1], names, tuple(notes))


class Seen(NamedTuple):
    """Training and test images as they are looked at; augmentation that is drawn once is in them."""

    train: Resident
    test: Resident


def read_both(
    subject: Subject, task: Task, config: SegmentationConfig, seed: int, on_progress: OnProgress | None
) -> Seen:
    """The images of a task, flipped and recoloured already where that is done once for all epochs."""
    train, test = (
        read_images(
            subject, split, subject.size, masks=True, resize=config.resize, words=words, on_progress=on_progress
        )
        for split, words in ((task.train, "training images"), (task.test, "test images"))
    )
    frozen = augmentation_of(config)._replace(frozen=True)
    if config.method == "fine-tune" and config.freeze_augmentation:
        train = apply_augmentation(train, frozen, stream_seed(seed, "segmentation views"))
    if config.method == "fine-tune" and config.augment_test:
        test = apply_augmentation(test, frozen, stream_seed(seed, "segmentation test views"))
    return Seen(train, test)


def augmentation_of(config: SegmentationConfig) -> ResidentAugmentation:
    """How training images change."""
    return ResidentAugmentation(config.flip, config.contrast, config.freeze_augmentation)
