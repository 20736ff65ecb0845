"""Parameter groups, the three optimisers, clipping, and the learning rate of a step.

Groups are made of what the method says about each parameter (`GroupKey`), so a new method with frozen units or
layer-wise rates needs no change here. Moments are saved by parameter name, never by position.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from halfseen.engine.config import BatchSplit, LearningRateConfig, OptimizerConfig, TrainConfig
from halfseen.errors import CheckpointError
from halfseen.ops import schedules
from halfseen.types import GroupKey

FUSED_DEVICES = ("cpu", "cuda", "mps")
"""Devices with a fused AdamW kernel. On a CPU it took a third of the time of the foreach form at 2M parameters."""

Grouping = Callable[[str, nn.Parameter], GroupKey]


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum.

    For tensors with more than one axis: g <- g + weight_decay * w, then g <- g * trust * |w| / |g| where both norms are
    positive. For one axis (biases, norms): the plain gradient, without decay. Then v <- momentum * v + g and
    w <- w - lr * v.

    Source: Large Batch Training of Convolutional Networks, arXiv 1708.03888, in the form of MAE's linear probe.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 1e-3,
    ) -> None:
        """Takes parameters or group dictionaries, as every torch optimiser."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update, without host synchronisation."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        if parameter.ndim > 1:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
            weight_norm = torch.linalg.vector_norm(parameter)
            update_norm = torch.linalg.vector_norm(gradient)
            ratio = group["trust"] * weight_norm / update_norm
            gradient = gradient * torch.where((weight_norm > 0) & (update_norm > 0), ratio, torch.ones_like(ratio))
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        velocity = state["momentum_buffer"]
        velocity.mul_(group["momentum"]).add_(gradient)
        parameter.add_(velocity, alpha=-group["lr"])


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], grouping: Grouping, config: OptimizerConfig
) -> list[dict[str, Any]]:
    """Optimiser groups of the parameters that need a gradient: one per distinct `GroupKey`, with its decay.

    Each group also carries `names`, `decay` (whether the decay's schedule acts on it), `lr_scale`, `unit` and `clip`.
    """
    groups: dict[GroupKey, dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        key = grouping(name, parameter)
        if config.decay_all:
            key = key._replace(decay=True)
        group = groups.setdefault(
            key,
            {
                "params": [],
                "names": [],
                "weight_decay": config.weight_decay if key.decay else 0.0,
                "decay": key.decay,
                "lr_scale": key.lr_scale,
                "unit": key.unit,
                "clip": key.clip,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimizerConfig, device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser over `parameter_groups`; the learning rate is set before each step."""
    if config.name == "lars":
        return LARS(groups, momentum=config.momentum, trust=config.trust)
    if config.name == "sgd":
        # Not fused: that kernel fails where a layer that was frozen at first joins later, without a velocity yet.
        foreach = True if device.type in ("cpu", "cuda") else None
        return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, foreach=foreach)
    fused = device.type in FUSED_DEVICES
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=fused or None)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All moments and counters of an optimiser, named `<parameter name>|<what it is>`."""
    tensors: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for what, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}|{what}"] = value
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, whatever the groups now are.

    Raises:
        CheckpointError: if a name belongs to no parameter, or a shape differs.
    """
    saved: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, what = full.rpartition("|")
        saved.setdefault(name, {})[what] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for what, value in saved.pop(name, {}).items():
                if value.ndim and value.shape != parameter.shape:
                    raise CheckpointError(
                        f"The optimiser state '{what}' of '{name}' has shape {tuple(value.shape)}, the parameter "
                        f"{tuple(parameter.shape)}. Resume with the model that wrote it."
                    )
                on_host = what == "step" and not _step_on_device(group)
                optimizer.state[parameter][what] = value.clone() if on_host else value.clone().to(parameter.device)
    if saved:
        raise CheckpointError(
            f"The optimiser state holds entries for unknown parameters: {', '.join(sorted(saved)[:5])}. "
            "Resume with the model that wrote it."
        )


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Global L2 norm of the gradients: float32 [], on the device, without host synchronisation."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients, foreach=_foreach(gradients))


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Shorten the gradients to a global L2 norm of `max_norm`; gives the norm before, without host synchronisation."""
    norm = gradient_norm(parameters)
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    foreach = _foreach([parameter.grad for parameter in with_gradient if parameter.grad is not None])
    nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm, foreach=foreach)
    return norm


def clip_each_tensor(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Shorten each gradient whose own L2 norm n has max_norm / (n + 1e-6) < 1, without host synchronisation.

    Returns:
        the global norm before: float32 [], on the device.
    Source: DINO, arXiv 2104.14294, and iBOT, arXiv 2111.07832, official code.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch._foreach_norm(gradients)
    stacked = torch.stack([norm.float() for norm in norms])
    factors = (max_norm / (stacked + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(factors.unbind()))
    total: Tensor = torch.linalg.vector_norm(stacked)
    return total


@dataclass(frozen=True)
class WeightDecay:
    """The weight decay as a function of the step, for the groups that decay.

    Attributes:
        config: the settings.
        total_steps: updates of the whole schedule.
        horizon: how many times `total_steps` MSN's cosine takes.
    """

    config: OptimizerConfig
    total_steps: int
    horizon: float = 1.0

    def __call__(self, step: int) -> float:
        """The decay of the update number `step` (from 0)."""
        start, final = self.config.weight_decay, self.config.weight_decay_end
        match self.config.weight_decay_schedule:
            case "constant":
                return start
            case "ibot_cosine":
                return schedules.ibot_cosine(step, base=start, final=_given(final), total=self.total_steps)
            case "msn_cosine":
                return schedules.msn_weight_decay(
                    step, start=start, final=_given(final), horizon_steps=int(self.horizon * self.total_steps)
                )


@dataclass(frozen=True)
class LearningRate:
    """The learning rate as a function of the step: `train.lr` bound to the sizes of a run.

    Attributes:
        config: the settings.
        batch_size: global batch, for the scaling rule.
        epochs: horizon of the decay.
        steps_per_epoch: updates per epoch.
        micro_batches_per_epoch: loader batches per epoch and process (only `index="microbatch"` looks at it).
        accumulation: micro-batches per update.
        horizon: how many times the run's length MSN's cosine takes.
    """

    config: LearningRateConfig
    batch_size: int
    epochs: float
    steps_per_epoch: int
    micro_batches_per_epoch: int
    accumulation: int
    horizon: float = 1.0

    @classmethod
    def of_run(
        cls, train: TrainConfig, split: BatchSplit, steps_per_epoch: int, rows_per_process: int, horizon: float = 1.0
    ) -> "LearningRate":
        """The learning rate of a run whose processes see `rows_per_process` images per epoch."""
        return cls(
            config=train.lr,
            batch_size=train.batch_size,
            epochs=train.epochs if train.lr.epochs is None else train.lr.epochs,
            steps_per_epoch=steps_per_epoch,
            micro_batches_per_epoch=-(-rows_per_process // split.micro_batch_size),
            accumulation=split.accumulation,
            horizon=horizon,
        )

    @property
    def peak(self) -> float:
        """The rate at the end of the warm-up: `base`, scaled by the batch."""
        return self.config.base * self._scale

    def __call__(self, step: int, lr_scale: float = 1.0) -> float:
        """The rate of the update number `step` (from 0) for a group with `lr_scale`.

        MAE and the constant rate multiply the whole curve by `lr_scale`; the other originals scale its peak alone, so
        warm-up start and minimum are shared by all groups.
        """
        config = self.config
        unit = self.micro_batches_per_epoch if self._counts_micro_batches else self.steps_per_epoch
        t = schedules.schedule_index(
            step,
            lag_steps=config.lag_steps,
            index=config.index,
            steps_per_epoch=self.steps_per_epoch,
            micro_batches_per_epoch=self.micro_batches_per_epoch,
            accumulation=self.accumulation,
            epoch_stride=unit,
        )
        edge = self._scale if config.scale_all else 1.0
        start, minimum = config.warmup_start * edge, config.min * edge
        warmup, total = config.warmup_epochs * unit, self.epochs * unit
        base = self.peak * lr_scale
        match config.schedule:
            case "mae_cosine":
                return lr_scale * schedules.rebased_cosine(
                    t / unit,
                    base=self.peak,
                    total=self.epochs,
                    warmup=config.warmup_epochs,
                    warmup_start=start,
                    minimum=minimum,
                )
            case "simmim_cosine" | "kamim_cosine":
                return schedules.unshifted_cosine(
                    t, base=base, warmup_start=start, minimum=minimum, warmup=warmup, total=total
                )
            case "ibot_cosine":
                return schedules.ibot_cosine(
                    t, base=base, final=minimum, total=round(total), warmup=int(warmup), warmup_start=start
                )
            case "msn_cosine":
                return schedules.msn_learning_rate(
                    t,
                    base=base,
                    start=start,
                    final=minimum,
                    warmup_steps=int(warmup),
                    horizon_steps=int(self.horizon * round(total)),
                )
            case "multistep":
                return schedules.multistep(
                    t,
                    base=base,
                    gamma=_given(config.gamma),
                    milestones=[milestone * unit for milestone in config.milestones or ()],
                    warmup=warmup,
                    warmup_start=start,
                )
            case "linear":
                return schedules.linear_decay(t, base=base, warmup=warmup, warmup_start=start, total=total)
            case "step":
                return schedules.step_decay(
                    t,
                    base=base,
                    gamma=_given(config.gamma),
                    decay_every=_given(config.decay_epochs) * unit,
                    warmup=warmup,
                    warmup_start=start,
                )
            case "constant":
                return lr_scale * schedules.constant(t, base=self.peak, warmup=warmup, warmup_start=start)

    @property
    def _scale(self) -> float:
        return 1.0 if self.config.reference_batch is None else self.batch_size / self.config.reference_batch

    @property
    def _counts_micro_batches(self) -> bool:
        """Whether an epoch is as long as its micro-batches; KAMIM counts them but measures epochs in updates."""
        return self.config.index == "microbatch" and self.config.schedule != "kamim_cosine"


def _given(value: float | None) -> float:
    assert value is not None, "the validator of LearningRateConfig lets no schedule pass without its keys"
    return value


def _foreach(tensors: list[Tensor]) -> bool | None:
    """Always the multi-tensor form where torch has it for CPU and CUDA; other devices decide themselves."""
    return True if tensors and tensors[0].device.type in ("cpu", "cuda") else None


def _step_on_device(group: Mapping[str, Any]) -> bool:
    """Fused optimisers keep their step counter beside the parameter, the others on the CPU."""
    return bool(group.get("fused") or group.get("capturable"))
