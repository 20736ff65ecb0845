"""A step of fine-tuning: views, erasing, blending, loss, rates of the layers; and how test images are classified.

    batch (uint8 views) -> normalised -> rectangles of noise -> MixUp / CutMix -> classifier -> cross-entropy

Views, erasing and timm's blending are functions of (seed, step, row of the whole batch), so it doesn't matter for them
how many processes and micro-batches share a step. KAMIM's blending and stochastic depth are drawn per micro-batch.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from halfseen.backbones.teacher import averaged_copy
from halfseen.data.loader import evaluation_batches
from halfseen.data.policies import RandAugment, trivial_augment_and_erase
from halfseen.data.sources import Source
from halfseen.engine.config import RuntimeConfig
from halfseen.engine.distributed import Distributed
from halfseen.evaluation.finetuning.classifier import Classifier
from halfseen.evaluation.finetuning.config import FinetuneConfig
from halfseen.evaluation.linear.side_by_side import ranks
from halfseen.ops.blending import blend_neighbours, draw_blends
from halfseen.ops.erasing import draw_erasures, erase
from halfseen.ops.mixing import mix_or_cut
from halfseen.ops.moving_average import pair_by_name, update_average
from halfseen.ops.pixels import normalise
from halfseen.ops.precision import autocast
from halfseen.ops.randomness import numpy_generator, torch_generator
from halfseen.types import Batch, GroupKey, Photometric, Progress, SkippedFile, StepOutput, ViewPlan, ViewSpec


def training_views(config: FinetuneConfig) -> ViewPlan:
    """The view that is cut of each training image."""
    augment, side = config.augment, config.data.image_size
    spec = ViewSpec(
        side,
        crop_scale=augment.crop_scale,
        interpolation=augment.interpolation,
        antialias=augment.antialias,
        hflip=augment.hflip,
        crop="whole" if augment.crop == "squash" else "random",
    )
    if augment.color_jitter:
        strength = augment.color_jitter
        spec = replace(
            spec, colour=Photometric(brightness=strength, contrast=strength, saturation=strength, jitter=1.0)
        )
    if augment.policy == "trivial":
        spec = replace(spec, change=trivial_augment_and_erase)
    elif augment.policy is not None:
        red, green, blue = (min(255, round(255 * mean)) for mean in config.data.mean)
        spec = replace(spec, change=RandAugment(augment.policy, side, (red, green, blue)))
    return ViewPlan((spec,))


class FineTuning(nn.Module):
    """What the engine's loop trains: a classifier on augmented, blended images.

    Args:
        classifier: it learns in place.
        config: the run's settings.
        num_classes: K.
    """

    schedule_horizon = 1.0
    whole_batch_only = False

    def __init__(self, classifier: Classifier, config: FinetuneConfig, num_classes: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.config = config
        self.num_classes = num_classes
        self.average: Classifier | None = None
        if config.ema_decay is not None:
            self.average = averaged_copy(classifier)

    @property
    def measured(self) -> Classifier:
        """The weights that are measured and kept: the moving average where there is one."""
        return self.classifier if self.average is None else self.average

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        """Mean cross-entropy of a micro-batch."""
        config = self.config
        images = normalise(batch.views[0], config.data.mean, config.data.std)
        if config.augment.erase:
            images = self._erased(images, progress)
        if not config.mix.is_on:
            logits = self.classifier(images).float()
            return StepOutput(F.cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing), {})
        images, targets = self._blended(images, batch.labels, progress)
        return StepOutput(F.cross_entropy(self.classifier(images).float(), targets), {})

    def parameter_group(self, name: str, parameter: nn.Parameter) -> GroupKey:
        """Decay and lr scale by layer-wise decay."""
        return self.classifier.parameter_group(
            name.removeprefix("classifier."), parameter, self.config.layer_decay, self.config.decay_bias_tables
        )

    def before_update(self, progress: Progress) -> None:
        """Nothing."""

    def after_step(self, progress: Progress) -> None:
        """The moving average takes in the new weights."""
        if self.average is not None and self.config.ema_decay is not None:
            update_average(pair_by_name(self.classifier, self.average), self.config.ema_decay)

    def _erased(self, images: Float[Tensor, "B 3 H W"], progress: Progress) -> Float[Tensor, "B 3 H W"]:
        B, _, H, W = images.shape
        generator = numpy_generator(progress.seed, "erase", progress.step)
        boxes = draw_erasures(progress.global_batch_size, H, W, generator, self.config.augment.erase)
        first = progress.row_start
        return erase(images, boxes[first : first + B], progress.seed, "noise", progress.step, first_row=first)

    def _blended(
        self, images: Float[Tensor, "B 3 H W"], labels: Int64[Tensor, " B"], progress: Progress
    ) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B K"]]:
        mix, (B, _, H, W) = self.config.mix, images.shape
        if mix.form == "torchvision":
            hard = F.one_hot(labels, self.num_classes).to(images.dtype)
            generator = torch_generator(progress.seed, "mix", progress.step, progress.row_start)
            return mix_or_cut(images, hard, generator)
        group = mix.group or progress.global_batch_size
        blends = draw_blends(
            -(-progress.global_batch_size // group),
            H,
            W,
            numpy_generator(progress.seed, "mix", progress.step),
            mixup=mix.mixup,
            cutmix=mix.cutmix,
            probability=mix.probability,
            switch=mix.switch,
        )
        rows = np.arange(progress.row_start, progress.row_start + B) // group
        return blend_neighbours(images, labels, blends.take(rows), self.num_classes, self.config.label_smoothing)


class Scored(NamedTuple):
    """How some images were classified, in the order of their rows.

    Attributes:
        rows: int64 [n], position of each image in its source.
        labels: int64 [n].
        rank: int64 [n], how many classes stand before the true one; 0 = right.
        predicted: int64 [n].
        loss: float64 [n], cross-entropy in nats, labels not smoothed.
        skipped: files that couldn't be read; they have no row.
    """

    rows: Int[Tensor, " n"]
    labels: Int[Tensor, " n"]
    rank: Int[Tensor, " n"]
    predicted: Int[Tensor, " n"]
    loss: Float[Tensor, " n"]
    skipped: tuple[SkippedFile, ...]

    def top(self, n: int) -> float:
        """Share of images whose true class is among the first `n`, in percent."""
        return 100.0 * float((self.rank < n).double().mean())


class Images(NamedTuple):
    """Images to classify: rows int64 [n] of a source, and the label int64 [n] of each, in the classifier's classes."""

    source: Source
    rows: Int64[np.ndarray, " n"]
    labels: Int64[Tensor, " n"]


def score(
    classifier: Classifier, images: Images, config: FinetuneConfig, runtime: RuntimeConfig, world: Distributed
) -> Scored | None:
    """Classify images, each by one process: every image counts once, however many processes share them.

    The classifier is left in evaluation mode.

    Returns:
        all images' scores on process 0, None on the others.
    """
    classifier.eval()
    device = next(classifier.parameters()).device
    own = images.rows[world.rank :: world.world_size]
    label_of = dict(zip(images.rows.tolist(), images.labels.tolist(), strict=True))
    parts: list[tuple[Tensor, ...]] = []
    skipped: list[SkippedFile] = []
    view = config.view
    batches = evaluation_batches(
        images.source,
        own,
        config.data.image_size,
        view.batch_size,
        resize=view.resize,
        crop_ratio=view.crop_ratio,
        interpolation=view.interpolation,
        antialias=view.antialias,
        workers=runtime.workers,
    )
    for batch in batches:
        skipped += batch.skipped
        if not len(batch.indices):
            continue
        labels = torch.tensor([label_of[row] for row in batch.indices.tolist()])
        with torch.inference_mode(), autocast(device, runtime.precision):
            logits = classifier(normalise(batch.images.to(device), config.data.mean, config.data.std)).float()
            true = labels.to(device)
            rank = ranks(logits.T[None], true)[0]
            predicted = logits.nan_to_num(nan=-math.inf).argmax(1)
            loss = F.cross_entropy(logits.double(), true, reduction="none")
        parts.append((batch.indices, labels, rank.cpu(), predicted.cpu(), loss.cpu()))
    gathered = world.gather((parts, skipped))
    if not world.is_main:
        return None
    return _in_order([part for parts, _ in gathered for part in parts], [one for _, some in gathered for one in some])


def _in_order(parts: Sequence[tuple[Tensor, ...]], skipped: Sequence[SkippedFile]) -> Scored:
    whole = [torch.cat(columns) for columns in zip(*parts, strict=True)] or [torch.empty(0, dtype=torch.int64)] * 5
    order = whole[0].argsort()
    rows, labels, rank, predicted, loss = (column[order].clone() for column in whole)
    return Scored(rows, labels, rank, predicted, loss, tuple(sorted(skipped)))
