"""How well pixels are classified: counted image by image, and what the counts come to."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from halfseen.data.resident import Resident
from halfseen.evaluation.results import ClassResult
from halfseen.evaluation.segmentation.config import SegmentationConfig
from halfseen.evaluation.segmentation.models import Segmenter
from halfseen.evaluation.segmentation.task import FORWARD_IMAGES, Seen, Task
from halfseen.evaluation.subject import OnProgress, Subject
from halfseen.ops.precision import autocast
from halfseen.ops.randomness import numpy_generator
from halfseen.ops.segmentation import dataset_class_iou, image_scores, pixel_confusion

RESAMPLES = 2000

CONSTANT = "largest_class"
"""The baseline that gives every pixel the class that most training pixels have."""


class Counts(NamedTuple):
    """Confusion counts of each image, int64 [n, K, K], on the CPU; of training images only where that says something.

    Patches that vote would find themselves among the training images.
    """

    test: Int64[Tensor, "n K K"]
    train: Int64[Tensor, "m K K"] | None


def measure(
    segmenter: Segmenter,
    seen: Seen,
    subject: Subject,
    task: Task,
    config: SegmentationConfig,
    name: str,
    on_progress: OnProgress | None,
) -> Counts:
    """Let a segmenter classify both splits."""
    test = _count(segmenter, seen.test, subject, len(task.names), f"{name}, test images", on_progress)
    if config.method == "knn":
        return Counts(test, None)
    words = f"{name}, training images"
    return Counts(test, _count(segmenter, seen.train, subject, len(task.names), words, on_progress))


@torch.no_grad()
def _count(
    segmenter: Segmenter, data: Resident, subject: Subject, num_classes: int, words: str, on_progress: OnProgress | None
) -> Int64[Tensor, "n K K"]:
    """Confusion counts of the pixels of each image, on the CPU."""
    assert data.masks is not None
    if isinstance(segmenter, torch.nn.Module):
        segmenter.to(subject.device).eval()
    parts = []
    for at in range(0, len(data.labels), FORWARD_IMAGES):
        views, masks = data.images[at : at + FORWARD_IMAGES], data.masks[at : at + FORWARD_IMAGES]
        with autocast(torch.device(subject.device), subject.precision):
            predictions = segmenter.predict(views)
        parts.append(pixel_confusion(predictions, masks, num_classes))
        if on_progress is not None:
            on_progress(f"measuring: {words}", min(at + FORWARD_IMAGES, len(data.labels)), len(data.labels))
    return torch.cat(parts).cpu()


def percents(counts: Counts) -> dict[str, float]:
    """Percent: means over the images with a counted pixel, and over the pixels of all images."""
    found = _percents_of(counts.test)
    return found if counts.train is None else found | {f"{k}_train": v for k, v in _percents_of(counts.train).items()}


def _percents_of(counts: Int64[Tensor, "n K K"]) -> dict[str, float]:
    scores = image_scores(counts)
    seen = ~scores.accuracy.isnan()
    found = {
        "miou": scores.miou[seen].mean(),
        "accuracy": scores.accuracy[seen].mean(),
        "miou_present": scores.miou_present[seen].mean(),
        "miou_dataset": dataset_class_iou(counts).nan_to_num(0.0).mean(),
    }
    return {name: round(100.0 * float(value), 4) for name, value in found.items()}


def iou_by_class(names: Sequence[str], counts: Mapping[str, Int64[Tensor, "n K K"]]) -> list[ClassResult]:
    """Intersection over union of each class over all test pixels; n is the number of images that show the class."""
    shown = (counts["encoder"].sum(dim=2) > 0).sum(dim=0)
    iou = {name: 100.0 * dataset_class_iou(each).nan_to_num(0.0) for name, each in counts.items()}
    return [
        ClassResult(
            name=class_name,
            n=int(shown[index]),
            encoder=round(float(iou["encoder"][index]), 2),
            baselines={name: round(float(each[index]), 2) for name, each in iou.items() if name != "encoder"},
        )
        for index, class_name in enumerate(names)
        if shown[index] > 0
    ]


def bootstrap_interval(values: Float[Tensor, " n"], seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean over images drawn with replacement, in percent for shares in [0, 1]."""
    sample = values.numpy()
    drawn = numpy_generator(seed, "bootstrap").integers(0, len(sample), size=(RESAMPLES, len(sample)), dtype=np.int32)
    low, high = np.percentile(sample[drawn].mean(axis=1), (2.5, 97.5))
    return 100.0 * float(low), 100.0 * float(high)


def most_frequent(data: Resident, num_classes: int) -> int:
    """The class that most pixels have, the smallest of those that tie."""
    return int(_pixels(data, num_classes).argmax())


def _pixels(data: Resident, num_classes: int) -> Int64[Tensor, " K"]:
    assert data.masks is not None
    return torch.bincount(data.masks.flatten().int(), minlength=num_classes)[:num_classes]
