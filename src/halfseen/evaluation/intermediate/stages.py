"""Intermediate stages: a pre-trained encoder learns labels of images or of patches before it is put to its use.

From one encoder several stages can start, each ends in a folder that every command takes as an encoder. Training is the
engine's loop over images that stay on the device, so an interrupted stage goes on bit by bit.
"""

import copy
import importlib.metadata
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from halfseen.backbones.base import Encoder
from halfseen.backbones.viny import ViNyEncoder
from halfseen.backbones.weights import export_encoder, load_encoder
from halfseen.data.resident import Resident, ResidentAugmentation, ResidentLoader, read_resident
from halfseen.data.sampler import StepSampler
from halfseen.data.sources import MASKS_GO_WHERE, Source
from halfseen.engine.checkpoint import Identity, list_checkpoints
from halfseen.engine.folder import hold_folder
from halfseen.engine.precision import autocast
from halfseen.errors import CheckpointError, ConfigError, DataError
from halfseen.evaluation.features import draw_subset
from halfseen.evaluation.intermediate.config import UNCHANGED, IntermediateConfig
from halfseen.evaluation.metrics import wilson_interval
from halfseen.evaluation.resident_training import OneGroup, logged_curves, train_resident, weights_fingerprint
from halfseen.evaluation.results import Result, SplitUsed
from halfseen.evaluation.segmentation.models import RAW_MEAN, RAW_STD, check_size
from halfseen.evaluation.statements import (
    Split,
    class_names_of,
    confusion_of,
    fingerprints_of,
    in_classes_of,
    mask_names_of,
    per_class,
)
from halfseen.evaluation.subject import OnProgress, Subject
from halfseen.ops.mixing import mix_up, mixup_share
from halfseen.ops.patch_labels import majority_labels, patch_histogram
from halfseen.ops.pixels import Channels, normalise
from halfseen.ops.randomness import stream_seed
from halfseen.types import Batch, Progress, StepOutput

HEAD = "head.safetensors"
FORWARD_IMAGES = 256


class Stage(OneGroup, ABC):
    """An encoder with a fresh head, as the loop trains it: every weight learns, all in one group.

    Attributes:
        encoder: learns in place.
        head: one linear layer, with torch's own start.
    """

    def __init__(self, encoder: Encoder, num_classes: int, mean: Channels, std: Channels, seed: int) -> None:
        """
        Args:
            mean, std: of the pixels in [0, 1], per colour, removed from what the encoder sees.
            seed: of the head's first weights.
        """
        super().__init__()
        self.encoder, self.mean, self.std, self.num_classes = encoder, mean, std, num_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "intermediate head"))
            self.head = nn.Linear(encoder.embed_dim, num_classes)

    @abstractmethod
    def scores(self, images: Float[Tensor, "B 3 H W"]) -> Tensor:
        """Scores of the classes, [B, K] of images or [B, N, K] of patches."""

    @abstractmethod
    def labels_of(self, batch: Batch) -> Tensor:
        """The labels that `scores` are compared with, int64 [B] or [B, N], -1 = none."""

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        """The loss of a batch, and the share of what is classified rightly before the update."""

    def prepared(self, batch: Batch) -> Float[Tensor, "B 3 H W"]:
        """The images of a batch as the encoder sees them."""
        return normalise(batch.views[0], self.mean, self.std)


class ClassificationStage(Stage):
    """Learns the class of the whole image from `Encoder.summary`: the class token, or the mean where there is none.

    Args:
        mixup_alpha: of MixUp; None mixes nothing.
    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        mean: Channels,
        std: Channels,
        seed: int,
        mixup_alpha: float | None = None,
    ) -> None:
        super().__init__(encoder, num_classes, mean, std, seed)
        self.mixup_alpha = mixup_alpha

    def scores(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        scores: Tensor = self.head(self.encoder.summary(self.encoder(images)))
        return scores

    def labels_of(self, batch: Batch) -> Int64[Tensor, " B"]:
        return batch.labels

    def loss(self, images: Float[Tensor, "B 3 H W"], shares: Float[Tensor, "B K"]) -> tuple[Tensor, Tensor]:
        """Cross-entropy with the shares of the classes, float32 [], and the scores."""
        scores = self.scores(images)
        return F.cross_entropy(scores.float(), shares), scores

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = self.prepared(batch)
        shares = F.one_hot(batch.labels, self.num_classes).float()
        if self.mixup_alpha is not None:
            kept = mixup_share(self.mixup_alpha, progress.seed, "mixup", progress.step)
            images, shares = mix_up(images, shares, kept)
        loss, scores = self.loss(images, shares)
        return StepOutput(loss, {"accuracy": (scores.argmax(1) == shares.argmax(1)).float().mean().detach()})


class PatchwiseStage(Stage):
    """Learns the class that most pixels of a patch have from its token; one linear layer for all patches.

    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862 (spatially aligned objective).
    """

    def scores(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N K"]:
        scores: Tensor = self.head(self.encoder(images).patches)
        return scores

    def labels_of(self, batch: Batch) -> Int64[Tensor, "B N"]:
        return self.patch_labels(batch.extras["mask"])

    def patch_labels(self, masks: Integer[Tensor, "B H W"]) -> Int64[Tensor, "B N"]:
        """The class that prevails in the pixels under each token, -1 where all of them are to be ignored."""
        return majority_labels(patch_histogram(masks, self.encoder.stride, self.num_classes))

    def loss(self, images: Float[Tensor, "B 3 H W"], labels: Int64[Tensor, "B N"]) -> tuple[Tensor, Tensor]:
        """Cross-entropy, the mean over all patches with a label, float32 [], and the scores."""
        scores = self.scores(images)
        total = F.cross_entropy(scores.float().flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum")
        return total / (labels >= 0).sum().clamp(min=1), scores

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        labels = self.labels_of(batch)
        loss, scores = self.loss(self.prepared(batch), labels)
        known = (labels >= 0).sum().clamp(min=1)
        return StepOutput(loss, {"accuracy": ((scores.argmax(-1) == labels).sum() / known).detach()})


class StageResult(NamedTuple):
    """What a stage has left.

    Attributes:
        encoder: trained, as the subject's own: without a class token where that didn't use one.
        weights: its file; the folder around it is what other commands take as an encoder.
        result: accuracies beside chance, as written.
    """

    encoder: Encoder
    weights: Path
    result: Result


class StageTask(NamedTuple):
    """What is to be learned from which images, all checks passed.

    Attributes:
        train, test: the images.
        names: of the classes of images or pixels.
    """

    train: Split
    test: Split | None
    names: tuple[str, ...]


def intermediate_stage(
    subject: Subject,
    train: Split,
    test: Split | None,
    config: IntermediateConfig,
    *,
    out: Path,
    seed: int = 0,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> StageResult:
    """Train a copy of an encoder on labels of images or patches, measure it, and write it into a folder.

    The folder gets `encoder.safetensors` and `encoder.json`, `head.safetensors` and `<protocol>.json`.

    Args:
        subject: the encoder and how it is run; it stays as it is. Its baselines are not looked at.
        train: images to learn from.
        test: images that are classified once, at the end; None = there are none.
        out: the folder.
        seed: draws head, order, augmentation, mixing and subsets.
        resume: go on where a stage in this folder was interrupted; a finished one is read.
    Raises:
        DataError: no labels or masks, one class only, classes that differ between the splits.
        ShapeError: an image size that tokens don't divide.
        ConfigError: a stage is there already and `resume` is off, or another process is at work in the folder.
        CheckpointError: what is there was begun with other settings, images or weights.
        KeyboardInterrupt: a signal asked to stop; a checkpoint was written first.
    Source: Diminishing Returns in Self-Supervised Learning, arXiv 2512.03862.
    """
    started = time.monotonic()
    task = prepare_stage(subject, train, test, config, seed)
    identity = _identity(subject, task, config, seed)
    _check_out(out, config.protocol, resume)
    out.mkdir(parents=True, exist_ok=True)
    with hold_folder(out):
        finished = _read_finished(out, config.protocol, identity) if resume else None
        if finished is not None:
            return finished
        stage = _build_stage(subject, config, len(task.names), seed)
        data = _read(subject, task.train, config, "training images", on_progress)
        _train(subject, stage, data, config, identity, out, seed, resume, on_progress)
        scores = {"train": _measure(stage, data, subject)}
        tested: Resident | None = None
        if task.test is not None:
            tested = _read(subject, task.test, config, "test images", on_progress)
            if config.objective == "classification":
                known = in_classes_of(task.train.source, task.test.source, tested.labels.cpu())
                tested = tested._replace(labels=known.to(tested.labels.device))
            scores["test"] = _measure(stage, tested, subject)
        encoder = _as_before(stage.encoder, subject.encoder)
        result = _result(subject, task, config, seed, data, tested, scores, out, time.monotonic() - started)
        weights = _export(encoder, stage, subject, task, config, identity, seed, out)
        result.write(out)  # Last: it is the sign that the stage is finished.
    return StageResult(encoder, weights, result)


def keep_encoder(subject: Subject, out: Path, resume: bool = False) -> None:
    """Write the encoder as it is into a folder beside those of the stages.

    Args:
        resume: leave it there if that has been done.
    Raises:
        ConfigError: the folder holds an encoder already.
        CheckpointError: what it holds is another encoder.
    """
    if resume and (out / "encoder.json").is_file():
        if weights_fingerprint(load_encoder(out).encoder) != weights_fingerprint(subject.encoder):
            raise CheckpointError(
                f"'{out}' holds another encoder than '{subject.origin}'. Give that one again, or another folder."
            )
        return
    if (out / "encoder.json").is_file():
        raise ConfigError(f"'{out}' holds an encoder already. Give another folder, or remove it.")
    extra = {
        "intermediate": {"protocol": UNCHANGED, "from": subject.origin},
        "taught_on": list(subject.taught_on),
    }
    export_encoder(subject.encoder, out, mean=subject.mean, std=subject.std, role=subject.role, extra=extra)


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


def _identity(subject: Subject, task: StageTask, config: IntermediateConfig, seed: int) -> Identity:
    """All that decides the weights with which the stage ends, and what is measured of them."""
    settings = config.model_dump(mode="json", exclude={"protocol"})
    settings |= {
        "seed": seed,
        "precision": subject.precision,
        "images": task.train.source.fingerprint(),
        "encoder": weights_fingerprint(subject.encoder),
        "image_size": subject.encoder.image_size,
    }
    return Identity(f"intermediate {config.protocol}", settings)


def _check_out(out: Path, protocol: str, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"'{out}' is a file. Give a folder for the encoder.")
    if not resume and (list_checkpoints(out) or (out / f"{protocol}.json").is_file()):
        raise ConfigError(f"'{out}' holds a stage already. Go on with it by --resume, or give another folder.")


def _read_finished(out: Path, protocol: str, identity: Identity) -> StageResult | None:
    """The stage that ended in this folder; None where it hasn't ended yet."""
    path = out / f"{protocol}.json"
    if not path.is_file():
        return None
    about = json.loads((out / "encoder.json").read_text(encoding="utf-8"))
    if about.get("intermediate", {}).get("identity") != identity.digest:
        raise CheckpointError(
            f"The stage in '{out}' was trained with other settings, images or weights. Give those again, or another "
            "folder."
        )
    loaded = load_encoder(out)
    result = Result.model_validate_json(path.read_text(encoding="utf-8"))
    return StageResult(loaded.encoder, out / "encoder.safetensors", result)


def _build_stage(subject: Subject, config: IntermediateConfig, num_classes: int, seed: int) -> Stage:
    mean, std = _three(subject.mean), _three(subject.std)
    if not config.normalise:
        mean, std = RAW_MEAN, RAW_STD
    if config.objective == "patchwise":
        return PatchwiseStage(copy.deepcopy(subject.encoder), num_classes, mean, std, seed)
    return ClassificationStage(with_class_token(subject.encoder), num_classes, mean, std, seed, config.mixup_alpha)


def with_class_token(encoder: Encoder) -> Encoder:
    """A copy that puts its class token before the patches, where it has one that pre-training didn't use (ViNy)."""
    if not isinstance(encoder, ViNyEncoder) or encoder.has_class_token:
        return copy.deepcopy(encoder)
    return _viny(encoder, class_token=True)


def _viny(encoder: ViNyEncoder, class_token: bool) -> ViNyEncoder:
    """A copy with the class token in use or not; it is among the weights in any case."""
    made = ViNyEncoder(copy.deepcopy(encoder.trunk), encoder.image_size, class_token, encoder.position_rule)
    made.config = encoder.config.model_copy(update={"class_token": class_token})
    return made


def _as_before(trained: Encoder, before: Encoder) -> Encoder:
    """The trained encoder, its class token out of use again where it was."""
    if isinstance(trained, ViNyEncoder) and not before.has_class_token:
        trained = _viny(trained, class_token=False)
        trained.config = before.config
    return trained.eval()


def _three(values: Sequence[float]) -> Channels:
    red, green, blue = values
    return red, green, blue


def _read(
    subject: Subject, split: Split, config: IntermediateConfig, words: str, on_progress: OnProgress | None
) -> Resident:
    return read_resident(
        split.source,
        subject.encoder.image_size,
        masks=config.objective == "patchwise",
        resize=config.resize,
        device=subject.device,
        workers=subject.workers,
        on_progress=None if on_progress is None else partial(on_progress, f"reading {words}"),
    )


def _train(
    subject: Subject,
    stage: Stage,
    data: Resident,
    config: IntermediateConfig,
    identity: Identity,
    out: Path,
    seed: int,
    resume: bool,
    on_progress: OnProgress | None,
) -> None:
    """The loop, from the newest checkpoint in the folder if there is one."""
    count = len(data.labels)
    sampler = StepSampler(
        count, min(config.batch_size, count), stream_seed(seed, "intermediate order"), drop_last=False
    )
    augmentation = ResidentAugmentation(config.flip, config.contrast, frozen=False)
    loader = ResidentLoader(data, sampler, stream_seed(seed, "intermediate views"), augmentation)
    train_resident(
        stage,
        loader,
        config.training(sampler.steps_per_epoch, count),
        subject,
        identity,
        out,
        seed=seed,
        resume=resume,
        words=f"training: {config.protocol}",
        on_progress=on_progress,
    )


class _Score(NamedTuple):
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
def _measure(stage: Stage, data: Resident, subject: Subject) -> _Score:
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
    return _Score(wanted[known], found[known], right)


def _result(
    subject: Subject,
    task: StageTask,
    config: IntermediateConfig,
    seed: int,
    data: Resident,
    tested: Resident | None,
    scores: dict[str, _Score],
    out: Path,
    seconds: float,
) -> Result:
    own = scores.get("test", scores["train"])
    largest = int(torch.bincount(scores["train"].labels, minlength=len(task.names)).argmax())
    guesses = {name: 100.0 * float((score.labels == largest).double().mean()) for name, score in scores.items()}
    right = {
        "encoder": (own.labels == own.predictions).double(),
        "largest_class": (own.labels == largest).double(),
    }
    feature = "patch tokens" if config.objective == "patchwise" else _summary_words(subject.encoder)
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
            "train": _used(task.train, data),
            **({} if task.test is None or tested is None else {"test": _used(task.test, tested)}),
        },
        split=task.train.name if task.test is None else task.test.name,
        seed=seed,
        n=len(own.shares),
        n_train=len(scores["train"].shares),
        num_classes=len(task.names),
        metrics=_metrics({name: score.percent for name, score in scores.items()}),
        baselines={"largest_class": _metrics(guesses)},
        confidence_interval={"encoder": _interval(own, config)},
        confidence_text=_interval_text(config),
        per_class=per_class(task.names, own.labels, right),
        confusion=confusion_of(own.labels, own.predictions, len(task.names)),
        notes=_notes(subject, task, config, own.percent, guesses.get("test", guesses["train"])),
        seconds=round(seconds, 2),
        halfseen_version=importlib.metadata.version("halfseen"),
        curves=logged_curves(out, ("epoch", "loss", "accuracy")),
    )


def _metrics(percents: dict[str, float]) -> dict[str, float]:
    """`top1_test` and `top1_train`, and `top1`: that of the test images, or where there are none of those learned."""
    found = {f"top1_{name}": round(percent, 4) for name, percent in sorted(percents.items())}
    return {"top1": found.get("top1_test", found["top1_train"]), **found}


def _used(split: Split, data: Resident) -> SplitUsed:
    return SplitUsed(
        source=split.source.name,
        split=split.name,
        n=len(data.labels),
        labelled=int((data.labels >= 0).sum()),
        fingerprint=split.source.fingerprint(),
        skipped=len(data.skipped),
    )


def _interval(score: _Score, config: IntermediateConfig) -> tuple[float, float]:
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


def _summary_words(encoder: Encoder) -> str:
    has_token = encoder.has_class_token or isinstance(encoder, ViNyEncoder)
    return "class token" if has_token else "mean of the patch tokens"


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


def _export(
    encoder: Encoder,
    stage: Stage,
    subject: Subject,
    task: StageTask,
    config: IntermediateConfig,
    identity: Identity,
    seed: int,
    out: Path,
) -> Path:
    """The encoder with a record of the stage, its head beside it."""
    head = {f"head.{name}": tensor.detach().cpu().contiguous() for name, tensor in stage.head.state_dict().items()}
    partial_path = out / f"{HEAD}.partial"
    save_file(head, partial_path)
    partial_path.replace(out / HEAD)
    extra = {
        "intermediate": {
            "protocol": config.protocol,
            "objective": config.objective,
            "from": subject.origin,
            "data": task.train.source.name,
            "seed": seed,
            "identity": identity.digest,
        },
        "taught_on": sorted({*subject.taught_on, *fingerprints_of(task.train.source)}),
        "head": {
            "file": HEAD,
            "reads": "patch tokens" if config.objective == "patchwise" else _summary_words(subject.encoder),
            "classes": list(task.names),
        },
    }
    return export_encoder(encoder, out, mean=stage.mean, std=stage.std, role=subject.role, extra=extra)
