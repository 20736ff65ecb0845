"""A segmentation's result: its numbers, and in words how they came about."""

import importlib.metadata
from collections.abc import Mapping, Sequence

from halfseen.errors import DataError
from halfseen.evaluation.results import Result
from halfseen.evaluation.segmentation.config import SegmentationConfig
from halfseen.evaluation.segmentation.scores import RESAMPLES, Counts, bootstrap_interval, iou_by_class, percents
from halfseen.evaluation.segmentation.task import Seen, Task
from halfseen.evaluation.statements import compare, what_was_seen
from halfseen.evaluation.subject import Subject
from halfseen.ops.segmentation import IGNORED, image_scores


def result_of(
    subject: Subject,
    task: Task,
    config: SegmentationConfig,
    seed: int,
    seen: Seen,
    counts: Mapping[str, Counts],
    notes: Sequence[str],
    seconds: float,
) -> Result:
    """The record of a segmentation; its curves and folder are the caller's.

    Raises:
        DataError: no pixel of the test images has a class.
    """
    scores = {name: image_scores(each.test) for name, each in counts.items()}
    counted = ~scores["encoder"].accuracy.isnan()
    if not bool(counted.any()):
        raise DataError(f"no pixel of the test images of '{task.test.source.name}' has a class: all are {IGNORED}.")
    miou = {name: each.miou[counted] for name, each in scores.items()}
    encoder = subject.encoder
    headline: dict[str, float | int] = {"epoch": config.epochs, "lr": config.lr}
    if config.method == "knn":
        headline = {"k": config.k, "temperature": config.temperature}
    return Result(
        protocol=config.protocol,
        protocol_text=_protocol_text(config),
        settings={**config.settings, "image_size": subject.size, "precision": subject.precision},
        headline=headline,
        features="patch tokens of the last block after the final norm",
        feature_dim=encoder.embed_dim,
        role=subject.role,
        encoder=subject.origin,
        data={"train": task.train.used(seen.train, by_masks=True), "test": task.test.used(seen.test, by_masks=True)},
        split=task.test.name,
        seed=seed,
        n=int(counted.sum()),
        n_train=len(seen.train.labels),
        num_classes=len(task.names),
        metrics=percents(counts["encoder"]),
        baselines={name: percents(each) for name, each in counts.items() if name != "encoder"},
        confidence_interval={name: bootstrap_interval(each, seed) for name, each in miou.items()},
        confidence_text=f"95 % bootstrap interval of miou over the test images ({RESAMPLES} draws); it does not cover "
        "other seeds of training.",
        per_class=iou_by_class(task.names, {name: each.test for name, each in counts.items()}),
        confusion=None,
        notes=[
            *task.notes,
            *notes,
            *compare(miou),
            *what_was_seen(task.train, task.test, subject),
        ],
        seconds=round(seconds, 2),
        halfseen_version=importlib.metadata.version("halfseen"),
        primary="miou",
    )


def _protocol_text(config: SegmentationConfig) -> str:
    match config.method:
        case "fine-tune":
            how = (
                "A linear layer gives the class scores of each patch's pixels from its token; encoder and layer learn "
                f"together, {_schedule_text(config)}"
            )
        case "linear":
            how = (
                "A linear layer gives class scores of each frozen patch token, enlarged bilinearly to pixels, "
                f"{_schedule_text(config)} on tokens that were computed once"
            )
        case "knn":
            how = (
                f"The {config.k} most similar training patches (cosine, T = {config.temperature:g}) vote with their "
                "majority class for all pixels of a patch"
            )
    return (
        f"{how}. Scores: mean over images of the intersection over union of all classes (a class in neither map counts "
        "as 0); miou_present leaves such classes out, miou_dataset pools the pixels of all images. Per class: the "
        "latter."
    )


def _schedule_text(config: SegmentationConfig) -> str:
    drops = ", ".join(f"{100 * ratio:g}" for ratio in config.milestone_ratios)
    optimiser = "AdamW" if config.weight_decay else "Adam"
    tail = f", the rate times {config.gamma:g} after {drops} % of them" if drops else ""
    return f"{config.epochs} epochs of {optimiser} at {config.lr:g}{tail}"


def what_was_shown(config: SegmentationConfig) -> list[str]:
    """What a reader of the numbers must know about the images: ViNy's quirks, or that they are off."""
    if config.method != "fine-tune":
        return [
            "Images are not augmented; the encoder's own normalisation is "
            f"{'removed' if config.normalise else 'not removed'} before it looks."
        ]
    quirks = [
        ("augmentation drawn once per image" if config.freeze_augmentation else "augmentation anew in every epoch"),
        ("test images augmented too" if config.augment_test else "test images as they are"),
        ("pixels normalised" if config.normalise else "pixels in [0, 1], not normalised"),
    ]
    if not config.flip and not config.contrast:
        quirks = ["no augmentation", quirks[2]]
    return [f"This number was made with: {'; '.join(quirks)}."]
