"""The loop: every method, every fine-tuning and every probe trains here.

`fit` goes from step to step; `Trainer.train_step` is one of them. Between two logging steps nothing waits for the
device: losses are summed there and non-finite ones counted there.
"""

import contextlib
import math
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from halfseen.engine.checkpoint import (
    Identity,
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    restore_model,
    save_checkpoint,
)
from halfseen.engine.config import BatchSplit, RuntimeConfig, TrainConfig
from halfseen.engine.distributed import Distributed, wrap
from halfseen.engine.finding import Finding
from halfseen.engine.freezing import Freezable, Freezer, saved_share, saved_words
from halfseen.engine.health import Health, findings_before
from halfseen.engine.interruption import Interruption
from halfseen.engine.journal import Journal, Record
from halfseen.engine.optim import (
    LearningRate,
    WeightDecay,
    build_optimizer,
    clip_each_tensor,
    clip_gradients,
    gradient_norm,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
)
from halfseen.engine.precision import open_device, open_scaler
from halfseen.engine.state import TrainState
from halfseen.engine.terminal import Terminal, duration
from halfseen.errors import CheckpointError, ConfigError, TrainingError
from halfseen.ops.effective_rank import feature_std, rankme
from halfseen.ops.modes import keeping_modes
from halfseen.ops.precision import autocast
from halfseen.ops.randomness import stream_seed
from halfseen.ops.recompute import activation_checkpointing
from halfseen.types import Batch, GroupKey, Progress, StepOutput


class Trainable(Protocol):
    """What the loop needs of a method: an `nn.Module` with these; `methods.base.Method` has them."""

    schedule_horizon: float
    whole_batch_only: bool

    def __call__(self, batch: Batch, progress: Progress) -> StepOutput:
        """The loss of one micro-batch."""

    def parameter_group(self, name: str, parameter: nn.Parameter) -> GroupKey:
        """Weight decay and lr scale of a parameter."""

    def before_update(self, progress: Progress) -> None:
        """Runs after clipping, before each update."""

    def after_step(self, progress: Progress) -> None:
        """Runs after each update."""


class RowSampler(Protocol):
    """Which rows of the global batch this process sees."""

    num_images: int

    def rows(self, step: int) -> tuple[int, int]:
        """First and one past the last row of this process in the step's global batch."""


class StepLoader(Protocol):
    """Batches addressed by the step; `data.loader.Loader` is one."""

    steps_per_epoch: int
    wait_seconds: float

    @property
    def sampler(self) -> RowSampler:
        """Who says which images a step sees."""

    def batches(self, start_step: int, stop_step: int) -> Iterator[list[Batch]]:
        """The micro-batches of each step in the range: a generator, which the loop closes."""


class FitResult(NamedTuple):
    """How a run ended.

    Attributes:
        step: updates done.
        finished: False if a signal ended it early.
        checkpoint: the folder written at the end.
        samples_seen: source images used.
        message: one sentence for the person at the terminal.
    """

    step: int
    finished: bool
    checkpoint: Path
    samples_seen: int
    message: str


def fit(
    method: Trainable,
    loader: StepLoader,
    train: TrainConfig,
    runtime: RuntimeConfig,
    *,
    seed: int,
    run_dir: Path,
    identity: Identity,
    journal: Journal,
    terminal: Terminal,
    health: Health | None = None,
    distributed: Distributed | None = None,
    resume_from: Path | None = None,
    probe: Callable[[], Mapping[str, Tensor]] | None = None,
    measure: Callable[[], Mapping[str, float]] | None = None,
    measure_every_steps: int | None = None,
    measure_together: bool = False,
    go_on_by: str | None = None,
    on_batch: Callable[[list[Batch]], None] | None = None,
    on_log: Callable[[Record], None] | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
) -> FitResult:
    """Train `method` to the end of the schedule, to `train.max_steps`, or until a signal asks to stop.

    Args:
        method: the module to train; it is moved to the device.
        loader: the batches of each step.
        train: what decides the weights.
        runtime: where and how fast.
        seed: the run's seed; dropout and stochastic depth are functions of it and the step.
        run_dir: the run's folder; checkpoints go into it.
        identity: stored with each checkpoint and compared on resume.
        journal: metrics and findings; opened at the step that is resumed.
        terminal: where to speak.
        health: the watcher; None doesn't watch.
        distributed: this process among others, from `distributed.processes`.
        resume_from: a checkpoint folder to go on from; None starts at step 0.
        probe: features float [n, D] of fixed images under the current weights, for the effective rank, by a suffix of
            the metric's name ("" for the main ones); called on process 0 only, every `train.health_every_steps`.
        measure: an evaluation of the current weights, as entries for the log; called every `measure_every_steps` and
            after the last step. It must draw no random number.
        measure_together: call `measure` on every process, so that they can share the work; else on process 0 only.
        go_on_by: the command that goes on with the run; None = `halfseen pretrain --resume <run_dir>`.
        on_batch: sees the micro-batches of each step on this process, e.g. to list skipped files.
        on_log: sees each line of metrics, on process 0.
        on_checkpoint: sees each checkpoint's folder and step, on process 0.
    Raises:
        ConfigError: a batch that the processes can't share, or a device that isn't there.
        CheckpointError: the checkpoint can't be continued, or none could be written.
        TrainingError: a non-finite loss.
    """
    torch.set_num_threads(runtime.threads)
    trainer = Trainer(method, loader, train, runtime, seed, run_dir, identity, distributed or Distributed())
    if resume_from is not None:
        trainer.resume(resume_from)
    state, last_step = trainer.state, trainer.last_step
    watch = Watch(trainer, journal, terminal, health, probe, on_log, measure, measure_every_steps, measure_together)
    cuda = [trainer.device.index] if trainer.device.type == "cuda" else []
    terminal.begin(last_step, state.step)
    try:
        with Interruption() as interruption, torch.random.fork_rng(devices=cuda), trainer.batches() as steps:
            for micro_batches in steps:
                agreement = trainer.distributed.largest([interruption.requested, trainer.save_is_overdue()])
                if on_batch is not None:
                    on_batch(micro_batches)
                trainer.train_step(micro_batches, measure=watch.is_due(state.step + 1))
                trainer.time_step()
                if watch.is_due(state.step):
                    watch.look()
                asked_to_stop, overdue = agreement.wait()
                stop = bool(asked_to_stop) or (not trainer.has_company and interruption.requested)
                if stop or overdue or trainer.save_is_due():
                    trainer.save(on_checkpoint)
                trainer.leave_out_time()
                if stop:
                    break
            if not trainer.is_saved:
                trainer.save(on_checkpoint)
    finally:
        terminal.close()
    finished = state.step >= last_step
    if finished:
        message = f"Trained to step {state.step} in {duration(state.seconds)}." + saved_words(state)
    else:
        message = (
            f"Stopped by {interruption.signal_name} after step {state.step} of {last_step}; nothing is lost. "
            f"To go on: {go_on_by or f'halfseen pretrain --resume {run_dir}'}"
        )
    return FitResult(state.step, finished, checkpoint_path(run_dir, state.step), state.samples_seen, message)


def check_split(method: Trainable, split: BatchSplit) -> None:
    """See that a method may be given a process's share of a batch in parts.

    Raises:
        ConfigError: parts, where the loss is a statistic of the whole.
    """
    if method.whole_batch_only and split.accumulation > 1:
        raise ConfigError(
            f"train.micro_batch_size: got {split.micro_batch_size}, but this method's loss is a statistic of the "
            f"whole batch of {split.per_process} images that a process sees per step. Leave it out, or lower "
            "train.batch_size."
        )


class Trainer:
    """One run's moving parts: module, optimiser, scaler and counters.

    Attributes:
        state: the counters.
        last_step: updates after which the run ends.
        device: where it trains.
        norm: gradient norm of the last step that measured one: float32 [], on the device.
    """

    def __init__(
        self,
        method: Trainable,
        loader: StepLoader,
        train: TrainConfig,
        runtime: RuntimeConfig,
        seed: int,
        run_dir: Path,
        identity: Identity,
        distributed: Distributed,
    ) -> None:
        """Moves the method to the device and builds the optimiser; nothing is trained yet."""
        split = train.split(distributed.world_size)
        check_split(method, split)
        self.train, self.runtime, self.loader = train, runtime, loader
        self.seed, self.run_dir, self.identity, self.distributed = seed, run_dir, identity, distributed
        self.state = TrainState()
        self.total_steps = train.total_steps(loader.steps_per_epoch)
        self.last_step = train.last_step(loader.steps_per_epoch)
        self.device = open_device(runtime.device, distributed.local_rank)
        self.bare = cast(nn.Module, method).to(self.device).train()
        self.method = method
        rows = train.rows_per_process(loader.sampler.num_images, loader.steps_per_epoch, distributed.world_size)
        self.learning_rate = LearningRate.of_run(train, split, loader.steps_per_epoch, rows, method.schedule_horizon)
        self.weight_decay = WeightDecay(train.optimizer, self.total_steps, method.schedule_horizon)
        self.freezer: Freezer | None = None
        if train.freeze is not None:
            self.freezer = Freezer(
                train.freeze, cast(Freezable, method), train, self.learning_rate, loader.steps_per_epoch
            )
        grouping = method.parameter_group if self.freezer is None else self.freezer.group_of
        groups = parameter_groups(self.bare.named_parameters(), grouping, train.optimizer)
        self.optimizer = build_optimizer(groups, train.optimizer, self.device)
        self.scaler = open_scaler(self.device, runtime.precision, self.state)
        self.parameters: list[nn.Parameter] = []
        self._take_living()
        self.norm: Tensor | None = None
        self._pending: list[_Measured] = []
        self._saved_step: int | None = None
        self._saved_at = self._begun = time.monotonic()
        self._seconds_before = 0.0
        self._step_began: float | None = None

    @property
    def has_company(self) -> bool:
        """Whether there are other processes."""
        return self.distributed.world_size > 1

    @property
    def is_saved(self) -> bool:
        """Whether the checkpoint of this very step is written."""
        return self._saved_step == self.state.step

    def batches(self) -> contextlib.closing[Generator[list[Batch], None, None]]:
        """The micro-batches of the steps to come; closing it ends the loader's workers."""
        steps = self.loader.batches(self.state.step, self.last_step)
        return contextlib.closing(cast(Generator[list[Batch], None, None], steps))

    def train_step(self, micro_batches: Sequence[Batch], measure: bool = False) -> None:
        """One update from the micro-batches of this process.

        Args:
            micro_batches: their losses are averaged by their numbers of images, over all processes (the gradient by
                `TrainConfig.loss_weight`).
            measure: take the gradient norm even if nothing is clipped.
        """
        train, step = self.train, self.state.step
        if self.freezer is not None and self.freezer.advance(step, self.optimizer):
            self._take_living()
        for group in self.optimizer.param_groups:
            rate = self.learning_rate(step, group["lr_scale"])
            group["lr"] = rate if self.freezer is None else self.freezer.rate(step, group)
            group["weight_decay"] = self.weight_decay(step) if group["decay"] else 0.0
        first_row, global_rows = self._rows(step)
        row = first_row
        for number, batch in enumerate(micro_batches):
            rows = len(batch.index)
            if self.freezer is not None:
                self.freezer.enter(step, number)
            progress = self._progress(step, row, global_rows)
            share = rows * self.distributed.world_size / global_rows  # DDP takes the mean over the processes.
            weight = train.loss_weight(row, rows, global_rows) * self.distributed.world_size
            _seed(self.device, stream_seed(self.seed, "model", step, self.distributed.rank, number))
            with self._gradients_travel(number == len(micro_batches) - 1):
                blocks = activation_checkpointing(self.runtime.activation_checkpointing)
                with autocast(self.device, self.runtime.precision), blocks:
                    output: StepOutput = self.module(batch.to(str(self.device)), progress)
                self.scaler.scale(output.loss * weight).backward()  # type: ignore[no-untyped-call]
            if train.clip_each_micro_batch and train.clip_norm is not None:
                self.norm = self._clip(train.clip_norm)
            self._pending.append(_Measured(step, share, output.loss.detach(), output.metrics))
            row += rows
        self.scaler.unscale_(self.optimizer)
        if train.clip_norm is not None and not train.clip_each_micro_batch:
            self.norm = self._clip(train.clip_norm)
        elif measure and train.clip_norm is None:
            self.norm = gradient_norm(self.parameters)
        self.method.before_update(self._progress(step, first_row, global_rows))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(self._progress(step, first_row, global_rows))
        self.state.step += 1
        self.state.samples_seen += global_rows

    def collect(self) -> None:
        """Bring the losses and metrics of the last steps to the host, into `state`. The only wait for the device.

        Raises:
            TrainingError: if one of the losses isn't finite.
        """
        if not self._pending:
            return
        values = iter(torch.stack([value.float() for entry in self._pending for value in entry.values()]).tolist())
        shares: dict[tuple[int, str], float] = {}
        for entry in self._pending:
            for name in entry.names():
                shares[entry.step, name] = shares.get((entry.step, name), 0.0) + next(values) * entry.share
        self._pending.clear()
        totals = self.distributed.total(list(shares.values()))
        for (step, name), total in zip(shares, totals, strict=True):
            if name == "loss" and not math.isfinite(total):
                raise self._not_finite(f"The loss is {total}", step)
            self.state.add(name, total / self.distributed.world_size)

    def save_is_due(self) -> bool:
        """Whether a checkpoint is due by the number of steps, or at the end."""
        every = self.train.checkpoint_every_steps
        return self.state.step == self.last_step or (every is not None and self.state.step % every == 0)

    def save_is_overdue(self) -> bool:
        """Whether a checkpoint is due by the clock; process 0's clock counts."""
        minutes = self.train.checkpoint_every_minutes
        return self.distributed.is_main and minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def save(self, on_checkpoint: Callable[[Path, int], None] | None = None) -> None:
        """Write the checkpoint of this step: process 0 does, the others wait for the outcome.

        Raises:
            TrainingError: if a weight isn't finite; then nothing is written.
            CheckpointError: on every process, if process 0 couldn't write.
        """
        self.collect()
        self.count_time()
        weights = self.bare.state_dict()
        bad = _first_not_finite(weights)
        if bad is not None:
            raise self._not_finite("A weight is not finite any more", self.state.step - 1)
        self.state.scaler = dict(self.scaler.state_dict())
        failure: str | None = None
        if self.distributed.is_main:
            try:
                path = save_checkpoint(
                    self.run_dir,
                    model=weights,
                    optimizer=optimizer_tensors(self.optimizer),
                    state=self.state,
                    identity=self.identity,
                    keep=self.train.keep_checkpoints,
                )
                if on_checkpoint is not None:
                    on_checkpoint(path, self.state.step)
            except CheckpointError as error:
                failure = str(error)
        failure = self.distributed.broadcast_object(failure)
        if failure is not None:
            raise CheckpointError(failure)
        self._saved_step, self._saved_at = self.state.step, time.monotonic()

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint: weights, moments, scaler and counters as they were, bit by bit.

        Raises:
            CheckpointError: if it is damaged, of another method, of other settings or of another model.
        """
        checkpoint = load_checkpoint(path, self.identity)
        restore_model(self.bare, checkpoint)
        if self.freezer is not None and checkpoint.state.step > 0:
            # What rested when this was written; what rests from the next step on is frozen there.
            self.freezer.advance(checkpoint.state.step - 1, self.optimizer)
            self._take_living()
        load_optimizer_tensors(self.optimizer, checkpoint.optimizer)
        self.state = checkpoint.state
        self.scaler = open_scaler(self.device, self.runtime.precision, self.state)
        self._seconds_before = self.state.seconds
        if path == checkpoint_path(self.run_dir, self.state.step):
            self._saved_step = self.state.step

    def count_time(self) -> None:
        """Bring `state.seconds` up to date."""
        self.state.seconds = self._seconds_before + time.monotonic() - self._begun

    def logged_rate(self, step: int) -> float:
        """The learning rate of the update number `step`; under progressive freezing that of the last unit."""
        return self.learning_rate(step) if self.freezer is None else self.freezer.rate(step, self.freezer.top_rate)

    def time_step(self) -> None:
        """Count the time of the step that was made, but for waiting for data, for the number of frozen units."""
        now = time.monotonic() - self.loader.wait_seconds
        if self.freezer is not None and self._step_began is not None:
            self.state.add_time(self.freezer.frozen, now - self._step_began)
        self._step_began = now

    def leave_out_time(self) -> None:
        """Don't count what was done since the last step, be it a look or a checkpoint."""
        if self._step_began is not None:
            self._step_began = time.monotonic() - self.loader.wait_seconds

    def _take_living(self) -> None:
        """See to those parameters that learn: the gradients that are clipped, and those that processes share."""
        self.parameters = [
            parameter for group in self.optimizer.param_groups if group["clip"] for parameter in group["params"]
        ]
        find_idle = self.freezer is None or cast(Freezable, self.method).idle_parameters
        self.module = self.bare  # Let go of the DDP before, whose hooks would share what rests by now.
        self.module = wrap(self.bare, self.distributed, self.device, find_idle=find_idle)

    def _clip(self, max_norm: float) -> Tensor:
        clip = clip_each_tensor if self.train.clip_scope == "tensor" else clip_gradients
        return clip(self.parameters, max_norm)

    def _progress(self, step: int, row: int, global_rows: int) -> Progress:
        return Progress(step, self.total_steps, self.loader.steps_per_epoch, self.seed, row, global_rows)

    def _rows(self, step: int) -> tuple[int, int]:
        """This process's first row in the step's global batch, and the number of rows of that batch."""
        sampler, size = self.loader.sampler, self.train.batch_size
        left = sampler.num_images - step % self.loader.steps_per_epoch * size
        return sampler.rows(step)[0], min(size, left)

    def _gradients_travel(self, now: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are averaged over the processes in the last micro-batch of a step only."""
        if now or not isinstance(self.module, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.module.no_sync()

    def _not_finite(self, what: str, step: int) -> TrainingError:
        name = _first_not_finite({**dict(self.bare.named_parameters()), **dict(self.bare.named_buffers())})
        tensor = f"The first non-finite tensor is '{name}'" if name else "All weights are still finite"
        older = [path for path in list_checkpoints(self.run_dir) if path <= checkpoint_path(self.run_dir, step)]
        good = f"the last good checkpoint is '{older[-1]}'" if older else "there is no checkpoint yet"
        return TrainingError(
            f"{what} at step {step + 1}, learning rate {self.learning_rate(step):.3g}. {tensor}; {good}. "
            "Lower train.lr.base, lengthen train.lr.warmup_epochs, set train.clip_norm, or compute in another "
            "runtime.precision."
        )


class Watch:
    """Looks at the run every `train.log_every_steps`: journal, terminal and health."""

    def __init__(
        self,
        trainer: Trainer,
        journal: Journal,
        terminal: Terminal,
        health: Health | None,
        probe: Callable[[], Mapping[str, Tensor]] | None,
        on_log: Callable[[Record], None] | None,
        measure: Callable[[], Mapping[str, float]] | None = None,
        measure_every_steps: int | None = None,
        measure_together: bool = False,
    ) -> None:
        """Begins to measure time."""
        self.trainer, self.journal, self.terminal, self.health = trainer, journal, terminal, health
        self.probe, self.on_log = probe, on_log
        self.measure, self.measure_every_steps = measure, measure_every_steps
        self.measures_here = trainer.distributed.is_main or measure_together
        self._step, self._samples = trainer.state.step, trainer.state.samples_seen
        self._time, self._waited = time.monotonic(), trainer.loader.wait_seconds
        if health is not None:
            health.replay(journal.past())
            self._tell(findings_before(health.shape))

    def is_due(self, step: int) -> bool:
        """Whether to look after `step` updates: the first one, every so many, and the last."""
        train = self.trainer.train
        logged = step % train.log_every_steps == 0 or step in (1, self.trainer.last_step)
        return logged or self._features_are_due(step) or self._measurement_is_due(step)

    def look(self) -> None:
        """Write one line of metrics and see whether the run is ill."""
        trainer = self.trainer
        trainer.collect()
        record = self._record()
        found: list[Finding] = []
        if self.health is not None:
            found = self.health.check(record)
            if trainer.distributed.is_main and self.probe is not None and self._features_are_due(trainer.state.step):
                with keeping_modes(trainer.bare):
                    features = self.probe()
                record |= {f"rankme{name}": rankme(rows) for name, rows in features.items()}
                record["feature_std"] = feature_std(features[""])
                found += self.health.check_features(
                    trainer.state.step, float(record["loss"]), float(record["rankme"]), float(record["feature_std"])
                )
        if self._measurement_is_due(trainer.state.step):
            if self.measures_here and self.measure is not None:
                with keeping_modes(trainer.bare):
                    record |= self.measure()
            trainer.distributed.barrier()
        self.journal.write(record)
        self.terminal.update(record)
        self._tell(found)
        if self.on_log is not None and trainer.distributed.is_main:
            self.on_log(record)

    def _features_are_due(self, step: int) -> bool:
        every = self.trainer.train.health_every_steps
        return every is not None and step % every == 0

    def _measurement_is_due(self, step: int) -> bool:
        every = self.measure_every_steps
        return every is not None and (step % every == 0 or step == self.trainer.last_step)

    def _record(self) -> dict[str, float | int]:
        trainer, state = self.trainer, self.trainer.state
        trainer.count_time()
        now, waited = time.monotonic(), trainer.loader.wait_seconds
        elapsed = max(now - self._time, 1e-9)
        record: dict[str, float | int] = {
            "step": state.step,
            "epoch": state.step / trainer.loader.steps_per_epoch,
            "samples_seen": state.samples_seen,
            "lr": trainer.logged_rate(state.step - 1),
            **state.close_window(),
            "images_per_second": (state.samples_seen - self._samples) / elapsed,
            "steps_per_second": (state.step - self._step) / elapsed,
            "data_wait_share": min(1.0, (waited - self._waited) / elapsed),
            "memory_mb": peak_memory(trainer.device),
            "seconds": state.seconds,
        }
        if trainer.train.optimizer.weight_decay_schedule != "constant":
            record["weight_decay"] = trainer.weight_decay(state.step - 1)
        if trainer.freezer is not None:
            record["frozen_units"] = trainer.freezer.frozen
            saved = saved_share(state)
            if saved is not None:
                record["time_saved_share"] = saved
        if trainer.norm is not None:
            record["grad_norm"] = float(trainer.norm)
        self._step, self._samples, self._time, self._waited = state.step, state.samples_seen, now, waited
        return record

    def _tell(self, found: list[Finding]) -> None:
        for finding in found:
            if self.journal.write_finding(finding):
                self.terminal.say(f"Health: {finding.sentence}")


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generators that a forward pass on `device` draws from.

    `torch.manual_seed` seeds those of every kind of device there might be: half a millisecond of each step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


class _Measured(NamedTuple):
    """What one forward pass leaves for the log: tensors that stay on the device until a logging step."""

    step: int
    share: float
    loss: Tensor
    metrics: Mapping[str, Tensor]

    def names(self) -> list[str]:
        return ["loss", *self.metrics]

    def values(self) -> list[Tensor]:
        return [self.loss, *self.metrics.values()]


def peak_memory(device: torch.device) -> float:
    """Most memory used so far, in MB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with a NaN or infinity; one wait for the device where all is well."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not floating:
        return None
    healthy = torch.stack([torch.isfinite(tensor).all() for tensor in floating.values()])
    return next((name for name, fine in zip(floating, healthy.tolist(), strict=True) if not fine), None)
