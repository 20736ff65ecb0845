"""What a run would cost, found out before it starts: parameters, steps, memory, and time measured on a few images."""

import time
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from halfseen.data.loader import stack_images
from halfseen.data.sampler import StepSampler
from halfseen.data.sources import open_source
from halfseen.engine.freezing import Freezer
from halfseen.engine.loop import check_split
from halfseen.engine.optim import LearningRate
from halfseen.engine.precision import open_device
from halfseen.engine.terminal import duration
from halfseen.methods.base import Method
from halfseen.ops.flops import count_flops
from halfseen.ops.freezing import Stage
from halfseen.ops.mask_distance import average_distance
from halfseen.ops.precision import autocast
from halfseen.ops.randomness import numpy_generator
from halfseen.ops.recompute import activation_checkpointing, watching_kept
from halfseen.pretraining.build import prepare_method
from halfseen.pretraining.config import RunConfig
from halfseen.types import Batch, Progress

FIRST_IMAGES = 2
TRIAL_SECONDS = 2.0
"""About as long one measured pass takes; small models are tried on whole micro-batches, large ones on few images."""
TRIAL_PASSES = 3
STAGE_PASSES = 2
BYTES_PER_WEIGHT = 16
"""Weight, gradient and AdamW's two moments, float32 each."""
SAMPLE_MASKS = 64
"""Masks that are drawn to describe all of them."""


class Trial(NamedTuple):
    """A measured pass: images, seconds, and bytes that were kept for the backward pass."""

    images: int
    seconds: float
    kept_bytes: int


class MaskSample(NamedTuple):
    """What masks look like.

    Attributes:
        hidden_share: hidden pixels over all pixels.
        average_distance: AvgDist, from a hidden pixel to the nearest visible one, in pixels.
    """

    hidden_share: float
    average_distance: float


class StageCost(NamedTuple):
    """A stretch of a run between two freezes, and a pass in it.

    Attributes:
        stage: its steps and what is frozen.
        seconds: a pass forward and backward, measured; of as many images in all stages.
        flops: its multiplications and additions in matrix products and convolutions, counted.
        kept_bytes: what it keeps for the backward pass.
    """

    stage: Stage
    seconds: float
    flops: int
    kept_bytes: int


class Estimate(NamedTuple):
    """The size of a run.

    Attributes:
        images: of the training split.
        parameters, encoder_parameters: learned numbers of the whole method, and of what remains of it.
        steps_per_epoch, steps: updates.
        seconds_per_image: forward and backward pass on this machine, measured.
        weight_bytes: weights, gradients and moments.
        activation_bytes: kept for the backward pass, of one micro-batch on one process; with checkpointed blocks also
            what the largest of them computes again.
        masks: a sample of the masks; None where the method draws none.
        stages: what a pass costs between two freezes, in order; empty without progressive freezing.
    """

    images: int
    parameters: int
    encoder_parameters: int
    steps_per_epoch: int
    steps: int
    seconds_per_image: float
    weight_bytes: int
    activation_bytes: int
    masks: MaskSample | None
    stages: tuple[StageCost, ...] = ()

    @property
    def seconds(self) -> float:
        """Time of all steps on one device like this one, without waiting for data."""
        unfrozen = self.seconds_per_image * self.steps * self.images_per_step
        return unfrozen * (1 - self.saved("seconds"))

    def saved(self, what: Literal["seconds", "flops"]) -> float:
        """Share of the time or of the operations that freezing saves; 0 without it."""
        if not self.stages:
            return 0.0
        costs = [float(getattr(cost, what)) for cost in self.stages]
        spent = sum(cost * stage.stage.steps for cost, stage in zip(costs, self.stages, strict=True))
        return 1 - spent / (costs[0] * sum(stage.stage.steps for stage in self.stages))

    @property
    def images_per_step(self) -> float:
        """Images of an update."""
        return self.images / self.steps_per_epoch


def estimate(config: RunConfig, processes: int = 1) -> Estimate:
    """Build the method, run a few of its images through it, and work out the rest.

    Raises:
        HalfseenError: whatever would stop the run before its first step.
    """
    source = open_source(config.data.source, "train", config=config.data)
    split = config.train.split(processes)
    sampler = StepSampler(len(source), config.train.batch_size, config.seed, drop_last=config.train.drop_last)
    steps_per_epoch = sampler.steps_per_epoch
    torch.set_num_threads(config.runtime.threads)
    method = prepare_method(config)
    check_split(method, split)
    method.check_batch(sampler.smallest_batch)
    trial = _try_out(config, method, split.micro_batch_size)
    learned = [parameter for parameter in method.parameters() if parameter.requires_grad]
    parameters = sum(parameter.numel() for parameter in learned)
    return Estimate(
        images=len(source),
        parameters=parameters,
        encoder_parameters=sum(parameter.numel() for parameter in method.encoders()["student"].parameters()),
        steps_per_epoch=steps_per_epoch,
        steps=config.train.last_step(steps_per_epoch),
        seconds_per_image=trial.seconds / trial.images,
        weight_bytes=BYTES_PER_WEIGHT * parameters,
        activation_bytes=trial.kept_bytes * split.micro_batch_size // trial.images,
        masks=look_at_masks(method, config.seed),
        stages=_try_stages(config, method, len(source), steps_per_epoch, processes, trial.images),
    )


def look_at_masks(method: Method, seed: int) -> MaskSample | None:
    """How much the method's masks hide and how far; None where it draws none."""
    masks = method.sample_masks(SAMPLE_MASKS, seed)
    if masks is None:
        return None
    return MaskSample(float(masks.float().mean()), average_distance(masks))


def describe(config: RunConfig, processes: int = 1) -> str:
    """An estimate in lines for a person."""
    found = estimate(config, processes)
    where = f"{config.runtime.device}, {config.runtime.precision}, {config.runtime.threads} threads"
    lines = (
        f"images       {found.images:,} of {config.data.source}, seen at {config.data.image_size} px",
        *_describe_masks(found.masks),
        f"parameters   {found.parameters:,} learned, {found.encoder_parameters:,} of them or fixed in the encoder",
        f"steps        {found.steps:,} ({found.steps_per_epoch:,} per epoch), {config.train.batch_size} images each",
        f"memory       about {_bytes(found.weight_bytes + found.activation_bytes)} per process: "
        f"{_bytes(found.weight_bytes)} weights and moments, {_bytes(found.activation_bytes)} activations",
        f"time         about {duration(found.seconds / processes)} on {processes} x this machine's {where} "
        "(measured on a few passes, without waiting for data)",
        *_describe_stages(found),
    )
    return "\n".join(lines)


def _describe_masks(masks: MaskSample | None) -> tuple[str, ...]:
    if masks is None:
        return ()
    distance = f"{masks.average_distance:.1f} px from the nearest visible one (AvgDist)"
    return (f"masks        hide {masks.hidden_share:.0%} of the pixels, on average {distance}",)


def _describe_stages(found: Estimate) -> tuple[str, ...]:
    """When what freezes, and what that saves."""
    if not found.stages:
        return ()
    first = found.stages[0]
    lines = [
        f"freezing     saves about {found.saved('seconds'):.1%} of the time and {found.saved('flops'):.1%} of the "
        "operations of all steps (both of passes that were tried at each stage)",
        "             from step    epoch   units frozen   branches gone   time of a step   operations   activations",
    ]
    for stage, seconds, flops, kept in found.stages:
        lines.append(
            f"             {stage.first_step:9,} {stage.first_step / found.steps_per_epoch:8.2f} {stage.frozen:14} "
            f"{stage.branches_gone:15} {seconds / first.seconds:16.0%} {flops / first.flops:12.0%} "
            f"{kept / first.kept_bytes:13.0%}"
        )
    return tuple(lines)


def _try_out(config: RunConfig, method: Method, micro_batch_size: int) -> Trial:
    """A few passes forward and backward; the first, on two images, says how many the measured ones can take."""
    device = open_device(config.runtime.device)
    method.to(device)
    count = min(FIRST_IMAGES, micro_batch_size)
    first = _seconds(config, method, device, count)
    count = max(count, min(micro_batch_size, int(count * TRIAL_SECONDS / first)))
    seconds = min(_seconds(config, method, device, count) for _ in range(TRIAL_PASSES))
    return Trial(count, seconds, _kept_bytes(config, method, device, count))


def _try_stages(
    config: RunConfig, method: Method, num_images: int, steps_per_epoch: int, processes: int, count: int
) -> tuple[StageCost, ...]:
    """A pass of `count` images in each stage of progressive freezing. Freezes the method for good."""
    train = config.train
    if train.freeze is None:
        return ()
    rows = train.rows_per_process(num_images, steps_per_epoch, processes)
    rate = LearningRate.of_run(train, train.split(processes), steps_per_epoch, rows, method.schedule_horizon)
    freezer = Freezer(train.freeze, method, train, rate, steps_per_epoch)
    device = open_device(config.runtime.device)
    found = []
    for stage in freezer.schedule.stages(train.last_step(steps_per_epoch), steps_per_epoch, freezer.taps):
        freezer.advance(stage.first_step)
        freezer.enter(stage.first_step, rate.accumulation - 1)
        flops = count_flops(lambda: _seconds(config, method, device, count))
        seconds = min(_seconds(config, method, device, count) for _ in range(STAGE_PASSES))
        found.append(StageCost(stage, seconds, flops, _kept_bytes(config, method, device, count)))
    return tuple(found)


def _seconds(config: RunConfig, method: Method, device: torch.device, count: int) -> float:
    """How long a pass of `count` random pictures takes, forward and backward."""
    batch = _noise(method, count).to(str(device))
    with torch.random.fork_rng(devices=[]):
        started = time.perf_counter()
        loss = _loss(config, method, batch)
        torch.autograd.backward(loss)
        loss.item()  # Waits for the device.
        return time.perf_counter() - started


def _kept_bytes(config: RunConfig, method: Method, device: torch.device, count: int) -> int:
    """What autograd keeps of a forward pass of `count` random pictures, weights aside.

    Some is given up before that pass ends (`ops.local_backward`), so what lives then counts.
    """
    batch = _noise(method, count).to(str(device))
    with torch.random.fork_rng(devices=[]), watching_kept(method.parameters()) as kept:
        loss = _loss(config, method, batch)
        found = kept.living() + kept.largest_block
    del loss
    return found


def _loss(config: RunConfig, method: Method, batch: Batch) -> Tensor:
    """The loss of a micro-batch at the start of the run, computed as the loop does."""
    progress = Progress(0, 1, 1, config.seed, 0, len(batch.index))
    runtime = config.runtime
    with autocast(batch.index.device, runtime.precision), activation_checkpointing(runtime.activation_checkpointing):
        loss: Tensor = method(batch, progress).loss
    return loss


def _noise(method: Method, count: int) -> Batch:
    """Random pictures in the shape of the method's views."""
    plan = method.view_plan()
    generator = numpy_generator(0, "estimate")
    samples = [
        tuple(
            generator.integers(0, 256, (spec.size, spec.size, 3)).astype("uint8")
            for spec in plan.views
            for _ in range(spec.count)
        )
        for _ in range(count)
    ]
    extras = [plan.extras(views, generator) for views in samples] if plan.extras is not None else []
    return Batch(
        views=tuple(torch.from_numpy(stack_images(views)) for views in zip(*samples, strict=True)),
        index=torch.arange(count),
        labels=torch.full((count,), -1),
        extras={name: torch.stack([torch.from_numpy(extra[name]) for extra in extras]) for name in (extras or [{}])[0]},
    )


def _bytes(count: int) -> str:
    if count < 1e9:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e9:.2f} GB" if count < 1e11 else f"{count / 1e9:.0f} GB"
