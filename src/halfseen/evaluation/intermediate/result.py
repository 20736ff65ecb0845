"""An intermediate stage's result: how its images are classified in the end, and in words how that came about."""

import importlib.metadata
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from halfseen.backbones.viny import ViNyEncoder
from halfseen.data.resident import Resident
from halfseen.evaluation.intermediate.config import IntermediateConfig
from halfseen.evaluation.intermediate.models import Stage, summary_words
from halfseen.evaluation.intermediate.task import StageTask
from halfseen.evaluation.metrics import wilson_interval
from halfseen.evaluation.resident_training import logged_curves
from halfseen.evaluation.results import Result
from halfseen.evaluation.statements import confusion_of, per_class
from halfseen.evaluation.subject import Subject
from halfseen.ops.precision import autocast
from halfseen.types import Batch

FORWARD_IMAGES = 256


class Score(NamedTuple):
    """How images were classified, or all their patches with a label.

    Attributes:
        labels, predictions: int64 [m].
        shares: float64 [n], of each image, how much of it is classified rightly.
    """

    labels: Int64[Tensor, " m"]
    predictions: Int64[Tensor, " m"]
    shares: Float[Tensor, " n"]

    @property
    def percent(self) -> float:
        """Share of what is classified rightly."""
        return 100.0 * float((self.labels == self.predictions).double().mean())


@torch.no_grad()
def measure(stage: Stage, data: Resident, subject: Subject) -> Score:
    """Classify images as they are, without augmentation."""
    stage.eval()
    labels: list[Tensor] = []
    predictions: list[Tensor] = []
    for first in range(0, len(data.labels), FORWARD_IMAGES):
        part = data.take(torch.arange(first, min(first + FORWARD_IMAGES, len(data.labels))))
        extras = {} if part.masks is None else {"mask": part.masks}
        batch = Batch((part.images,), part.indices, part.labels, extras)
        with autocast(torch.device(subject.device), subject.precision):
            predictions.append(stage.scores(stage.prepared(batch)).argmax(-1))
        labels.append(stage.labels_of(batch))
    wanted, found = torch.cat(labels).cpu(), torch.cat(predictions).cpu()
    known = wanted >= 0
    right = ((wanted == found) & known).double()
    if right.ndim > 1:
        counted = known.sum(dim=1)
        right = (right.sum(dim=1) / counted.clamp(min=1))[counted > 0]
    return Score(wanted[known], found[known], right)


def result_of(
    subject: Subject,
    task: StageTask,
    config: IntermediateConfig,
    seed: int,
    data: Resident,
    tested: Resident | None,
    scores: dict[str, Score],
    out: Path,
    seconds: float,
) -> Result:
    """The record of a stage."""
    own = scores.get("test", scores["train"])
    largest = int(torch.bincount(scores["train"].labels, minlength=len(task.names)).argmax())
    guesses = {name: 100.0 * float((score.labels == largest).double().mean()) for name, score in scores.items()}
    right = {
        "encoder": (own.labels == own.predictions).double(),
        "largest_class": (own.labels == largest).double(),
    }
    by_masks = config.objective == "patchwise"
    feature = "patch tokens" if by_masks else summary_words(subject.encoder)
    return Result(
        protocol=config.protocol,
        protocol_text=_protocol_text(config),
        settings={
            **{
                name: list(value) if isinstance(value, tuple) else value
                for name, value in config.model_dump(exclude={"protocol"}, exclude_none=True).items()
            },
            "image_size": subject.encoder.image_size,
            "precision": subject.precision,
        },
        headline={"lr": config.lr, "epoch": config.epochs},
        features=f"{feature} of the last block after the final norm",
        feature_dim=subject.encoder.embed_dim,
        role=subject.role,
        encoder=subject.origin,
        data={
            "train": task.train.used(data, by_masks),
            **({} if task.test is None or tested is None else {"test": task.test.used(tested, by_masks)}),
        },
        split=task.train.name if task.test is None else task.test.name,
        seed=seed,
        n=len(own.shares),
        n_train=len(scores["train"].shares),
        num_classes=len(task.names),
        metrics=accuracies({name: score.percent for name, score in scores.items()}),
        baselines={"largest_class": accuracies(guesses)},
        confidence_interval={"encoder": _interval(own, config)},
        confidence_text=_interval_text(config),
        per_class=per_class(task.names, own.labels, right),
        confusion=confusion_of(own.labels, own.predictions, len(task.names)),
        notes=_notes(subject, task, config, own.percent, guesses.get("test", guesses["train"])),
        seconds=round(seconds, 2),
        halfseen_version=importlib.metadata.version("halfseen"),
        curves=logged_curves(out, ("epoch", "loss", "accuracy")),
    )


def accuracies(percents: dict[str, float]) -> dict[str, float]:
    """`top1_test` and `top1_train`, and `top1`: that of the test images, or where there are none of those learned."""
    found = {f"top1_{name}": round(percent, 4) for name, percent in sorted(percents.items())}
    return {"top1": found.get("top1_test", found["top1_train"]), **found}


def _interval(score: Score, config: IntermediateConfig) -> tuple[float, float]:
    if config.objective == "classification":
        return wilson_interval(int(score.shares.sum()), len(score.shares))
    spread = float(score.shares.std()) if len(score.shares) > 1 else 0.5
    reach = 1.96 * spread / len(score.shares) ** 0.5
    middle = float(score.shares.mean())
    return 100 * max(0.0, middle - reach), 100 * min(1.0, middle + reach)


def _interval_text(config: IntermediateConfig) -> str:
    if config.objective == "classification":
        return "95 % Wilson interval of top1 over the images; it does not cover other seeds of training."
    return (
        "95 % normal interval of the mean share of right patches per image, since patches of one image are not "
        "independent; it does not cover other seeds of training."
    )


def _protocol_text(config: IntermediateConfig) -> str:
    optimiser = "AdamW" if config.weight_decay else "Adam"
    what = {
        "classification": "The class of the image is learned by a linear layer on one vector per image",
        "patchwise": "The class that most pixels of a patch have (the smallest of those that tie) is learned by one "
        "linear layer on the patch tokens",
    }[config.objective]
    drops = f", the rate times {config.gamma:g} at epochs {', '.join(map(str, config.milestones))}"
    mixed = "" if config.mixup_alpha is None else f" Images are mixed (MixUp, alpha = {config.mixup_alpha:g})."
    return (
        f"{what}; encoder and head learn together, {config.epochs} epochs of {optimiser} at {config.lr:g}"
        f"{drops if config.milestones else ''}.{mixed} Test images are not augmented, classified once at the end, and "
        "nothing is chosen on them."
    )


def _notes(subject: Subject, task: StageTask, config: IntermediateConfig, own: float, guess: float) -> list[str]:
    unit = "patches" if config.objective == "patchwise" else "images"
    notes = []
    if task.test is None:
        notes.append("There are no test images with labels: the accuracy is that of the images that were learned.")
    better = "above" if own > guess else "not above"
    notes.append(f"{own:.1f} % is {better} what always answering the largest class gives ({guess:.1f} % of {unit}).")
    if isinstance(subject.encoder, ViNyEncoder) and config.objective == "classification":
        notes.append(
            "The class token learned here; the encoder that is written looks at patches without it, as it did before."
        )
    if not config.normalise:
        notes.append("The encoder saw pixels in [0, 1] without normalisation, and its file says so.")
    notes.append("Whoever measures this encoder should use other images than these, whose labels it has learned.")
    return notes
