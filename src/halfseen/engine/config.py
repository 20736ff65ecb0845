"""What a run may say about its optimisation (science) and about the machine it runs on (never science).

`TrainConfig` decides the weights a run ends with; `RuntimeConfig` decides how fast they are reached. Settings without
an effect in a run are refused here, at the door, so that nobody believes to have changed something.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from halfseen.errors import ConfigError
from halfseen.idle import Need, refuse_idle
from halfseen.ops.freezing import FreezeScale
from halfseen.ops.precision import Precision

OptimizerName = Literal["adamw", "sgd", "lars"]
ScheduleName = Literal[
    "mae_cosine", "simmim_cosine", "kamim_cosine", "ibot_cosine", "msn_cosine",
    "multistep", "linear", "step", "constant",
]  # fmt: skip
DecayScheduleName = Literal["constant", "ibot_cosine", "msn_cosine"]
DeviceName = Literal["cpu", "cuda", "mps", "xla"]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]

OPTIMIZER_KEYS: Mapping[str, frozenset[str]] = {
    "adamw": frozenset({"betas", "eps"}),
    "sgd": frozenset({"momentum"}),
    "lars": frozenset({"momentum", "trust"}),
}
"""Keys that only some optimisers use; the other keys act for all of them."""

SCHEDULE_KEYS: Mapping[str, frozenset[str]] = {
    "mae_cosine": frozenset({"min", "epochs"}),
    "simmim_cosine": frozenset({"min", "epochs"}),
    "kamim_cosine": frozenset({"min", "epochs"}),
    "ibot_cosine": frozenset({"min"}),
    "msn_cosine": frozenset({"min"}),
    "multistep": frozenset({"milestones", "gamma"}),
    "linear": frozenset({"epochs"}),
    "step": frozenset({"decay_epochs", "gamma"}),
    "constant": frozenset(),
}
"""Keys that only some schedules use; base, reference_batch and the warm-up act for all of them."""

OPERATIONAL_KEYS = frozenset(
    {
        "run_dir",
        "runtime",
        "evaluate",
        "data.precheck",
        "data.max_bad_fraction",
        "data.download",
        "train.max_steps",
        "train.micro_batch_size",
        "train.checkpoint_every_steps",
        "train.checkpoint_every_minutes",
        "train.keep_checkpoints",
        "train.log_every_steps",
        "train.health_every_steps",
    }
)
"""Dotted keys (or sections) that may differ when a run goes on: they don't change where the weights are heading."""


def _must_be_default(config: BaseModel, key: str, who: str) -> None:
    refuse_idle(config, [Need(key, False, who)])


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return str(list(value) if isinstance(value, tuple) else value)


class OptimizerConfig(BaseModel):
    """How gradients become updates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: OptimizerName = Field("adamw", description="Update rule: adamw, sgd (with momentum) or lars.")
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.95),
        description="AdamW: decay rates of the first and second moment, no unit (paper symbol beta1, beta2).",
    )
    eps: float = Field(1e-8, gt=0.0, description="AdamW: added to the root of the second moment, no unit (epsilon).")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="SGD and LARS: share of the velocity that is kept (mu).")
    weight_decay: float = Field(
        0.05, ge=0.0, description="Decay of the weights per unit of learning rate, no unit (lambda)."
    )
    weight_decay_schedule: DecayScheduleName = Field(
        "constant",
        description="How the decay goes from weight_decay to weight_decay_end over the run: constant, ibot_cosine "
        "(iBOT, DINO) or msn_cosine (counted from 1, over the method's schedule_horizon).",
    )
    weight_decay_end: float | None = Field(
        None, ge=0.0, description="Weight decay at which the cosine ends, no unit (lambda_end); None with constant."
    )
    trust: float = Field(
        1e-3, gt=0.0, description="LARS: update norm over weight norm, no unit (trust coefficient eta)."
    )
    decay_all: bool = Field(
        False,
        description="Decay every parameter, biases, norms and tokens too (true/false); KAMIM and ViNy do. Otherwise "
        "the method's own exclusions hold.",
    )

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "OptimizerConfig":
        for key in sorted(frozenset().union(*OPTIMIZER_KEYS.values()) - OPTIMIZER_KEYS[self.name]):
            _must_be_default(self, key, f"the optimizer '{self.name}'")
        if self.weight_decay_schedule == "constant":
            _must_be_default(self, "weight_decay_end", "weight_decay_schedule=constant")
        elif self.weight_decay_end is None:
            raise ValueError(
                f"weight_decay_end: got {_shown(self.weight_decay_end)} with weight_decay_schedule = "
                f"'{self.weight_decay_schedule}'. Give a number with a cosine, and leave it out with constant."
            )
        if self.weight_decay == 0.0 and not self.weight_decay_end:
            _must_be_default(self, "decay_all", "weight_decay=0")
        return self


class LearningRateConfig(BaseModel):
    """The learning rate over the run: linear warm-up, then one of the papers' curves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: float = Field(1.5e-4, gt=0.0, description="Peak learning rate before scaling by the batch (base_lr, blr).")
    reference_batch: int | None = Field(
        256,
        ge=1,
        description="Batch for which `base` holds, in images: lr = base * batch_size / reference_batch. None uses "
        "`base` as it is.",
    )
    schedule: ScheduleName = Field(
        "mae_cosine",
        description="Curve after the warm-up: mae_cosine (starts anew at the end of the warm-up), simmim_cosine and "
        "kamim_cosine (evaluated at the step itself, so it drops there), ibot_cosine (the warm-up includes both its "
        "ends), msn_cosine (over the method's schedule_horizon), multistep, linear, step or constant.",
    )
    warmup_epochs: float = Field(0.0, ge=0.0, description="Length of the linear warm-up, in epochs, may be fractional.")
    warmup_start: float = Field(0.0, ge=0.0, description="Learning rate at the first step of the warm-up.")
    min: float = Field(0.0, ge=0.0, description="Learning rate at which a cosine ends (min_lr).")
    scale_all: bool = Field(
        False, description="Scale `warmup_start` and `min` by the batch as well (true/false); official SimMIM does."
    )
    epochs: float | None = Field(
        None,
        gt=0.0,
        description="Horizon of the decay in epochs where it is not the whole run (KAMIM: 100 of 110); None takes "
        "train.epochs.",
    )
    milestones: tuple[Annotated[float, Field(gt=0.0)], ...] | None = Field(
        None, min_length=1, description="multistep: ascending epochs at which the rate is multiplied by gamma."
    )
    gamma: float | None = Field(None, gt=0.0, description="multistep and step: factor of each drop, no unit.")
    decay_epochs: float | None = Field(None, gt=0.0, description="step: epochs between two drops.")
    lag_steps: Literal[0, 1] = Field(
        0,
        description="Steps by which the rate comes late; 1 as in official SimMIM and KAMIM, whose scheduler runs after "
        "the update.",
    )
    index: Literal["step", "microbatch"] = Field(
        "step",
        description="What the curve counts: updates (step), or micro-batches (microbatch), a quirk of the official "
        "SimMIM and KAMIM code under gradient accumulation.",
    )

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "LearningRateConfig":
        schedule = f"the schedule '{self.schedule}'"
        for key in sorted(frozenset().union(*SCHEDULE_KEYS.values()) - SCHEDULE_KEYS[self.schedule]):
            _must_be_default(self, key, schedule)
        for key in ("milestones", "gamma", "decay_epochs"):
            if key in SCHEDULE_KEYS[self.schedule] and getattr(self, key) is None:
                raise ValueError(f"{key}: missing, but {schedule} needs it.")
        if self.warmup_epochs == 0.0:
            _must_be_default(self, "warmup_start", "a run without warm-up (warmup_epochs = 0)")
        if self.reference_batch is None:
            _must_be_default(self, "scale_all", "a learning rate that isn't scaled (reference_batch = null)")
        if self.index == "microbatch" and self.schedule in ("mae_cosine", "ibot_cosine", "msn_cosine", "constant"):
            _must_be_default(self, "index", schedule)
        if self.min > self.base:
            raise ValueError(f"min: got {self.min}, which is above base = {self.base}. Give a smaller one.")
        if self.milestones is not None:
            if any(late <= early for early, late in zip(self.milestones, self.milestones[1:], strict=False)):
                raise ValueError(f"milestones: got {list(self.milestones)}, expected ascending epochs. Sort them.")
            if self.warmup_epochs > self.milestones[0]:
                raise ValueError(
                    f"milestones: the first, {self.milestones[0]}, lies within the warm-up of {self.warmup_epochs} "
                    "epochs. Move it later or shorten warmup_epochs."
                )
        return self


class BatchSplit(NamedTuple):
    """How the samples of one step are shared out.

    Attributes:
        per_process: samples per process and step.
        micro_batch_size: samples per forward pass.
        accumulation: forward passes per process and step.
    """

    per_process: int
    micro_batch_size: int
    accumulation: int


class FreezeConfig(BaseModel):
    """Progressive freezing (FreezeOut): the encoder's units stop learning one after the other, from the input on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    t0: float = Field(
        0.8,
        gt=0.0,
        le=1.0,
        description="Share of the time after the warm-up in which the first unit learns, before scale is applied; the "
        "last unit learns to the end; 1 freezes nothing (t_0).",
    )
    scale: FreezeScale = Field(
        "cubic", description="How the units' shares of the time become the ones that count: linear, squared or cubic."
    )
    layerwise_lr: bool = Field(
        True,
        description="Give each unit its own half cosine of the learning rate, which ends at 0 as the unit freezes; the "
        "run's schedule and lr.min then act on what belongs to no unit only. False leaves the run's schedule to all.",
    )
    scale_lr: bool = Field(
        True,
        description="Start each unit's cosine at the peak rate divided by its share of the time, so that all units "
        "travel the same distance (true/false); acts with layerwise_lr.",
    )
    warmup_to_scaled: bool = Field(
        False,
        description="Warm up to the scaled rate instead of jumping to it after the warm-up (true/false); acts with "
        "scale_lr.",
    )
    freeze_patch_embed: bool = Field(
        True,
        description="Freeze the patch embedding and the tokens as the first unit; false leaves them learning, and the "
        "backward pass runs through the whole encoder to the end.",
    )
    freeze_tokens: bool = Field(
        True,
        description="Freeze class token, mask token and trained positions with the patch embedding; false is what the "
        "published code does: they learn to the end, and the backward pass runs through all frozen blocks.",
    )

    @model_validator(mode="after")
    def _settings_go_together(self) -> "FreezeConfig":
        if not self.layerwise_lr:
            _must_be_default(self, "scale_lr", "one learning rate for all (layerwise_lr = false)")
            _must_be_default(self, "warmup_to_scaled", "one learning rate for all (layerwise_lr = false)")
        if not self.scale_lr:
            _must_be_default(self, "warmup_to_scaled", "rates that aren't scaled (scale_lr = false)")
        if not self.freeze_patch_embed:
            _must_be_default(
                self, "freeze_tokens", "a patch embedding that goes on learning (freeze_patch_embed=false)"
            )
        return self


class TrainConfig(BaseModel):
    """The `train` section of a run: how long, with which batch, optimiser and learning rate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: float = Field(
        100.0, gt=0.0, description="Passes over the data, may be fractional; the schedules run over them (E)."
    )
    batch_size: int = Field(
        256, ge=1, description="Images per update over all processes and micro-batches: the global batch (B)."
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Images per forward pass of one process; smaller needs less memory. None takes batch_size "
        "divided by the processes.",
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        description="End the run after this many updates without bending the schedules; None runs all epochs.",
    )
    drop_last: bool = Field(
        True, description="Leave out the last, incomplete batch of each epoch (true/false); KAMIM keeps it."
    )
    unscaled_accumulation: int | None = Field(
        None,
        ge=2,
        description="Weigh the images of an epoch's last, incomplete batch like code that cuts batches into so many "
        "micro-batches and divides each one's mean loss by this number, even where fewer are left (A, a quirk of "
        "KAMIM); None weighs all images of a batch alike.",
    )
    optimizer: OptimizerConfig = Field(OptimizerConfig.model_validate({}), description="How gradients become updates.")
    lr: LearningRateConfig = Field(LearningRateConfig.model_validate({}), description="The learning rate over the run.")
    clip_norm: float | None = Field(
        None,
        gt=0.0,
        description="Largest L2 norm of the gradient, larger ones are shortened; None doesn't clip.",
    )
    clip_scope: Literal["global", "tensor"] = Field(
        "global",
        description="Whose norm clip_norm bounds: that of all gradients together (global), or of each parameter's by "
        "itself (tensor), as iBOT and DINO do.",
    )
    clip_each_micro_batch: bool = Field(
        False,
        description="Clip the accumulated gradient after each micro-batch, not once per update (true/false); a quirk "
        "of official SimMIM.",
    )
    freeze: FreezeConfig | None = Field(
        None,
        description="Progressive freezing: units of the encoder stop learning one after the other (FreezeOut); None "
        "trains all of it to the end.",
    )
    checkpoint_every_steps: int | None = Field(
        None, ge=1, description="Write a checkpoint every so many updates; None writes by time and at the end only."
    )
    checkpoint_every_minutes: float | None = Field(
        15.0, gt=0.0, description="Write a checkpoint after so many minutes; None writes by steps and at the end only."
    )
    keep_checkpoints: int = Field(2, ge=1, description="Number of newest checkpoints that are kept.")
    log_every_steps: int = Field(
        10, ge=1, le=1000, description="Updates between two lines of metrics.jsonl; only then the device is waited for."
    )
    health_every_steps: int | None = Field(
        500,
        ge=1,
        description="Updates between two looks at the features of fixed images (effective rank, spread); None never "
        "looks.",
    )

    @model_validator(mode="after")
    def _settings_go_together(self) -> "TrainConfig":
        if self.clip_norm is None:
            without = "a run without clipping (clip_norm = null)"
            refuse_idle(self, [Need(key, False, without) for key in ("clip_scope", "clip_each_micro_batch")])
        if self.freeze is not None and self.freeze.layerwise_lr and not self.lr.schedule.endswith("cosine"):
            raise ValueError(
                f"freeze: lr.schedule = '{self.lr.schedule}' would have no effect, since each unit follows a cosine of "
                "its own. Choose a cosine schedule, or set freeze.layerwise_lr=false."
            )
        if self.freeze is not None and self.freeze.warmup_to_scaled and self.lr.warmup_epochs == 0:
            raise ValueError("freeze: warmup_to_scaled has no effect in a run without warm-up. Leave it out.")
        if self.freeze is not None and self.lr.warmup_epochs >= self.epochs:
            raise ValueError(
                f"freeze: the warm-up of {self.lr.warmup_epochs:g} epochs (lr.warmup_epochs) leaves nothing of the "
                f"{self.epochs:g} epochs in which units could freeze. Shorten it."
            )
        if self.drop_last:
            _must_be_default(self, "unscaled_accumulation", "a run that leaves incomplete batches out (drop_last)")
        if self.unscaled_accumulation is not None and self.batch_size % self.unscaled_accumulation:
            raise ValueError(
                f"unscaled_accumulation: got {self.unscaled_accumulation}, which doesn't divide batch_size = "
                f"{self.batch_size}. Give a divisor, or leave it out."
            )
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size: got {self.micro_batch_size}, which doesn't divide batch_size = {self.batch_size}. "
                f"Try {_largest_divisor(self.batch_size, self.micro_batch_size)}."
            )
        return self

    def split(self, processes: int) -> BatchSplit:
        """How a step's samples are shared by `processes` and by micro-batches.

        Raises:
            ConfigError: if the batch can't be shared evenly.
        """
        if self.batch_size % processes:
            raise ConfigError(
                f"train.batch_size: got {self.batch_size}, which {processes} processes can't share evenly. "
                f"Try {max(1, round(self.batch_size / processes)) * processes}."
            )
        per_process = self.batch_size // processes
        micro = per_process if self.micro_batch_size is None else self.micro_batch_size
        if per_process % micro:
            raise ConfigError(
                f"train.micro_batch_size: got {micro}, which doesn't divide the {per_process} images that each of "
                f"{processes} processes sees per step. Try {_largest_divisor(per_process, micro)}."
            )
        return BatchSplit(per_process, micro, per_process // micro)

    def loss_weight(self, first_row: int, rows: int, batch_rows: int) -> float:
        """Weight in the gradient of the mean loss of `rows` images, from `first_row` on, of a batch of `batch_rows`.

        Their share of the images. With `unscaled_accumulation` = A the batch is thought to be cut into A parts of
        batch_size / A images: each part that is there weighs 1 / A, a shorter last one too. So an incomplete batch
        may weigh less than 1 in all, while the images of its shorter part weigh more than the others.
        Where `rows` lie in two parts, they have the sum of their images' weights.

        Source: public code of KAMIM, arXiv 2407.13873.
        """
        if self.unscaled_accumulation is None:
            return rows / batch_rows
        part = self.batch_size // self.unscaled_accumulation
        whole = batch_rows // part * part  # Rows in complete parts.
        late = max(0, first_row + rows - max(first_row, whole))
        weight = (rows - late) / self.batch_size
        return weight + (late / (batch_rows - whole) / self.unscaled_accumulation if late else 0.0)

    def rows_per_process(self, num_images: int, steps_per_epoch: int, processes: int) -> int:
        """Images that one of `processes` sees in an epoch of a source of `num_images`."""
        rows = steps_per_epoch * self.batch_size if self.drop_last else num_images
        return -(-rows // processes)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Updates of the whole schedule: `epochs` worth, at least one."""
        return max(1, round(self.epochs * steps_per_epoch))

    def last_step(self, steps_per_epoch: int) -> int:
        """Updates after which the run ends: the whole schedule, or `max_steps` where that is earlier."""
        total = self.total_steps(steps_per_epoch)
        return total if self.max_steps is None else min(total, self.max_steps)


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def local_processes() -> int:
    """Training processes on this machine, as `torchrun` announces them; 1 without it."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def default_device() -> DeviceName:
    """The fastest device that is there: cuda, then mps, then cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def native_precision(device: DeviceName) -> Precision:
    """bf16 where `device` computes it natively, else fp32: emulated bf16 is slower than fp32."""
    import torch

    if device == "cuda":
        native = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    elif device == "mps":
        native = torch.backends.mps.is_macos_or_newer(14, 0)
    elif device == "cpu":
        native = _cpu_has_bfloat16()
    else:
        native = True  # XLA devices (TPU) were built around it.
    return "bf16" if native else "fp32"


def default_precision() -> Precision:
    """The precision that suits the default device."""
    return native_precision(default_device())


def default_threads() -> int:
    """Cores of this process, shared by the training processes of the machine.

    On purpose not a function of the loader's workers: the number of threads decides the order of float sums, and a run
    must be bit-equal for any number of workers.
    """
    return max(1, available_cores() // local_processes())


def default_workers() -> int:
    """Loader processes: the cores beside an accelerator; none on a CPU, where they would take the model's cores."""
    return 0 if default_device() == "cpu" else min(16, default_threads())


class RuntimeConfig(BaseModel):
    """The `runtime` section of a run: machine, speed and output. It may change how fast a run is, not what it computes.

    (`precision`, `device` and `threads` change the rounding of float sums, so bit-equal reruns need the same ones.)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: DeviceName = Field(
        default_factory=default_device, description="Where tensors live: cuda, mps, cpu or xla; the fastest one found."
    )
    precision: Precision = Field(
        default_factory=default_precision,
        description="Number format of matrix products (autocast): bf16 where the device computes it natively, else "
        "fp32; fp16 scales the loss.",
    )
    threads: int = Field(
        default_factory=default_threads,
        ge=1,
        description="Threads of the tensor operations of each process; the cores divided by the machine's processes.",
    )
    workers: int = Field(
        default_factory=default_workers,
        ge=0,
        description="Loader processes per training process; 0 loads in the training process itself.",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Keep only the input of each transformer block for the backward pass and compute the rest again "
        "(true/false): less memory for more time, the same weights.",
    )
    tensorboard: bool = Field(
        False, description="Write the metrics for TensorBoard as well (true/false); needs the extra 'tensorboard'."
    )

    @model_validator(mode="before")
    @classmethod
    def _precision_follows_device(cls, values: Any) -> Any:
        """A device that was named without a precision gets its own default, not the one of the default device."""
        if (
            isinstance(values, dict)
            and values.get("device") in ("cpu", "cuda", "mps", "xla")
            and "precision" not in values
        ):
            return {**values, "precision": native_precision(values["device"])}
        return values

    @model_validator(mode="after")
    def _torch_can_checkpoint(self) -> "RuntimeConfig":
        if self.activation_checkpointing and self.device == "xla":
            raise ValueError(
                "activation_checkpointing: torch has it for cuda, mps and cpu, not for xla. Leave it out, or lower "
                "train.micro_batch_size."
            )
        return self


def science_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide a run's weights, as dotted keys: all but `OPERATIONAL_KEYS`.

    Args:
        config: a complete configuration as nested mappings, e.g. `RunConfig.model_dump(mode="json")`.
    """
    return {key: value for key, value in _flatten(config).items() if not _is_operational(key)}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _is_operational(key: str) -> bool:
    return any(key == known or key.startswith(known + ".") for known in OPERATIONAL_KEYS)


def _largest_divisor(number: int, at_most: int) -> int:
    return next(divisor for divisor in range(min(at_most, number), 0, -1) if number % divisor == 0)


def _cpu_has_bfloat16() -> bool:
    """Reads the processor's flags: AVX512-BF16 or AMX on x86, BF16 on ARM. Unknown systems count as without."""
    description = Path("/proc/cpuinfo")
    if not description.is_file():
        return False
    words = set(description.read_text(encoding="utf-8", errors="replace").split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
