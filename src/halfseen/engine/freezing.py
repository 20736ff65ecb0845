"""Progressive freezing of a run: unit after unit leaves gradient, optimiser and backward pass, at known updates.

All of it is a function of the step, so a resumed run finds itself where it was. `ops.freezing` knows the times.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from halfseen.engine.config import FreezeConfig, TrainConfig
from halfseen.engine.optim import LearningRate
from halfseen.engine.state import TrainState
from halfseen.errors import ConfigError
from halfseen.ops.freezing import FreezeSchedule
from halfseen.types import GroupKey


class Freezable(Protocol):
    """What freezing needs of a method; `methods.base.Method` has it."""

    taps: tuple[int, ...]

    @property
    def idle_parameters(self) -> bool:
        """Whether a parameter that needs a gradient may get none in some step."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """All parameters by name."""

    def parameter_group(self, name: str, parameter: nn.Parameter) -> GroupKey:
        """Weight decay and lr scale of a parameter."""

    def freezing_unit(self, name: str) -> int:
        """The unit that a parameter belongs to."""

    def first_use(self, name: str) -> int:
        """The first unit in which a parameter acts."""

    def freeze(self, units: int, *, embedding: bool = True, cut: bool = True) -> None:
        """Let the first units rest."""

    def drop_branches(self, count: int) -> None:
        """Leave the shallowest branches out."""


class Freezer:
    """What of a method is frozen at which step, and at what rates the rest learns.

    Attributes:
        schedule: the times, in micro-batches. Its unit 0 is the method's first unit that freezes at all.
        frozen: units that rest by now, in the schedule's count.
        gone: branches that have left by now.
    """

    def __init__(
        self, config: FreezeConfig, method: Freezable, train: TrainConfig, rate: LearningRate, steps_per_epoch: int
    ) -> None:
        """Nothing is frozen yet.

        Raises:
            ConfigError: a method without ordered units, or with a single one.
        """
        self.config, self.method, self.rate_of_run = config, method, rate
        self.steps_per_epoch = steps_per_epoch
        self.first_unit = 0 if config.freeze_patch_embed else 1
        learned = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
        self.indices = {name: self._index(name) for name in learned}
        if not config.freeze_tokens and not any(
            method.freezing_unit(name) == 0 and "patch_embed." not in name for name in learned
        ):
            raise ConfigError(
                "train.freeze.freeze_tokens: got false, but this method trains no token before the first block. Leave "
                "it out."
            )
        last = max((index for index in self.indices.values() if index is not None), default=0)
        if last < 1:
            raise ConfigError(
                "train.freeze: this method's encoder has no two units in order that could freeze one after the other. "
                "Leave train.freeze out, or choose a deeper model."
            )
        self.schedule = FreezeSchedule(
            last_unit=last,
            t0=config.t0,
            scale=config.scale,
            epochs=train.epochs,
            warmup_epochs=train.lr.warmup_epochs,
            micro_batches_per_epoch=rate.micro_batches_per_epoch,
            accumulation=rate.accumulation,
            layerwise_lr=config.layerwise_lr,
            scale_lr=config.scale_lr,
        )
        self.taps = tuple(tap - self.first_unit for tap in method.taps)
        self.frozen = 0
        self.gone = 0

    def group_of(self, name: str, parameter: nn.Parameter) -> GroupKey:
        """The method's own group of a parameter, told apart by the unit; "" is what never freezes."""
        index = self.indices[name]
        return self.method.parameter_group(name, parameter)._replace(unit="" if index is None else str(index))

    def advance(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> bool:
        """Freeze what rests from the update number `step` (from 0) on; says whether that is more than before.

        A frozen parameter has no gradient, no moments and no weight decay, so it keeps its bits; the encoder runs its
        frozen units in evaluation mode, and without autograd if nothing before them learns.
        """
        frozen = self.schedule.frozen(self.schedule.first_micro_batch(step, self.steps_per_epoch))
        self.enter(step, 0)
        if frozen == self.frozen:
            return False
        self.frozen = frozen
        stopped = set()
        for name, parameter in self.method.named_parameters():
            index = self.indices.get(name)
            if index is not None and index < frozen:
                parameter.requires_grad_(False)
                parameter.grad = None
                stopped.add(parameter)
        if optimizer is not None:
            optimizer.param_groups[:] = [
                group for group in optimizer.param_groups if group["unit"] == "" or int(group["unit"]) >= frozen
            ]
            for parameter in stopped:
                optimizer.state.pop(parameter, None)
        units = frozen + self.first_unit
        alive = any(
            parameter.requires_grad and self.method.first_use(name) < units
            for name, parameter in self.method.named_parameters()
            if name in self.indices
        )
        self.method.freeze(units, embedding=self.config.freeze_patch_embed, cut=not alive)
        return True

    def enter(self, step: int, micro_batch: int) -> None:
        """Let branches go before the forward pass number `micro_batch` (from 0) of an update."""
        if not self.taps:
            return
        first = self.schedule.first_micro_batch(step, self.steps_per_epoch)
        gone = self.schedule.branches_gone(self.taps, first + micro_batch)
        if gone != self.gone:
            self.gone = gone
            self.method.drop_branches(gone)

    def rate(self, step: int, group: Mapping[str, Any]) -> float:
        """The learning rate of an optimiser's group in the update number `step` (from 0)."""
        usual = self.rate_of_run(step, group["lr_scale"])
        if group["unit"] == "":
            return usual
        unit = int(group["unit"])
        moment = self.schedule.first_micro_batch(step, self.steps_per_epoch)
        if self.schedule.anneals(moment):
            return self.schedule.rate(unit, moment, self.rate_of_run.peak * group["lr_scale"])
        warms_up = self.config.warmup_to_scaled and moment < self.schedule.warmup
        return usual / self.schedule.shares[unit] if warms_up else usual

    @property
    def top_rate(self) -> dict[str, Any]:
        """The group of the last unit, whose rate stands for all in the log."""
        return {"unit": str(self.schedule.last_unit), "lr_scale": 1.0}

    def _index(self, name: str) -> int | None:
        """Number of a parameter's unit in the schedule; None if it never freezes."""
        unit = self.method.freezing_unit(name)
        if unit == 0:
            is_embedding = "patch_embed." in name
            return 0 if self.config.freeze_patch_embed and (is_embedding or self.config.freeze_tokens) else None
        return unit - self.first_unit


def saved_share(state: TrainState) -> float | None:
    """Share of the steps' time that freezing has saved so far, measured; None before the first freeze.

    1 - (time of all steps) / (their number x mean time of a step before the first freeze).
    """
    steps, seconds = state.frozen_steps, state.frozen_seconds
    if len(steps) < 2 or "0" not in steps:
        return None
    return 1 - sum(seconds.values()) / (sum(steps.values()) * seconds["0"] / steps["0"])


def saved_words(state: TrainState) -> str:
    """The measured saving as a sentence after a blank; empty where nothing was frozen."""
    share = saved_share(state)
    if share is None:
        return ""
    before = state.frozen_seconds["0"] / state.frozen_steps["0"]
    last = max(state.frozen_steps, key=int)
    after = state.frozen_seconds[last] / state.frozen_steps[last]
    return (
        f" Freezing saved {100 * share:.1f} % of the steps' time (measured): a step took {1000 * before:.0f} ms before "
        f"the first freeze and {1000 * after:.0f} ms with {last} units at rest."
    )
