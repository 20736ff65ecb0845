"""Progressive freezing as pure functions of the micro-batch: which units rest, at what rates the others learn.

Units 0 .. L are ordered from the input to the output (0 all that comes before block 1, i block i). Unit i learns until
the time T_i; T grows with i, so what is frozen is always a prefix of the network. Time is counted in micro-batches,
from 0 over the whole run; rates and frozen units are refreshed at the first micro-batch of each update.

Source: FreezeOut, arXiv 1706.04983; Local Masking Meets Progressive Freezing, arXiv 2312.02194, official code.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

FreezeScale = Literal["linear", "squared", "cubic"]
POWERS: dict[FreezeScale, int] = {"linear": 1, "squared": 2, "cubic": 3}


class Stage(NamedTuple):
    """A stretch of updates during which nothing changes.

    Attributes:
        first_step: the update with which it begins, from 0.
        steps: updates in it.
        frozen: units that rest.
        branches_gone: branches that have left with them.
    """

    first_step: int
    steps: int
    frozen: int
    branches_gone: int


@dataclass(frozen=True)
class FreezeSchedule:
    """When each unit of a network stops learning, and its learning rate until then.

    Attributes:
        last_unit: L, number of the last unit, which never freezes.
        t0: share of the annealing phase after which unit 0 freezes, before `scale` is applied, in (0, 1].
        scale: whether the shares are taken as they are, squared or cubed.
        epochs, warmup_epochs: length of the run, and of its warm-up, in which nothing freezes.
        micro_batches_per_epoch: batches of the loader per epoch and process.
        accumulation: micro-batches per update; the count starts anew in each epoch.
        layerwise_lr: each unit has its own cosine that ends at its T; else all have the run's own schedule.
        scale_lr: start unit i's cosine at peak / share, so that all units travel the same distance.
    """

    last_unit: int
    t0: float = 0.8
    scale: FreezeScale = "cubic"
    epochs: float = 1.0
    warmup_epochs: float = 0.0
    micro_batches_per_epoch: int = 1
    accumulation: int = 1
    layerwise_lr: bool = True
    scale_lr: bool = True

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """rho of each unit: the share of the annealing phase in which it learns."""
        return tuple(self._start(unit) ** POWERS[self.scale] for unit in range(self.last_unit + 1))

    @cached_property
    def ends(self) -> tuple[float, ...]:
        """T of each unit, in micro-batches after the warm-up; a real number."""
        phase = (self.epochs - self.warmup_epochs) * self.micro_batches_per_epoch
        return tuple(phase * share for share in self.shares)

    @property
    def warmup(self) -> float:
        """Micro-batches of the warm-up."""
        return self.warmup_epochs * self.micro_batches_per_epoch

    def refreshed(self, micro_batch: int) -> int:
        """The micro-batch at which what holds at `micro_batch` was set: the first one of its update."""
        return micro_batch - micro_batch % self.micro_batches_per_epoch % self.accumulation

    def first_micro_batch(self, step: int, steps_per_epoch: int) -> int:
        """The micro-batch with which the update number `step` (from 0) begins."""
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        return epoch * self.micro_batches_per_epoch + step_in_epoch * self.accumulation

    def frozen(self, micro_batch: int) -> int:
        """How many units rest at a micro-batch: the number of the first one that learns."""
        time = self.refreshed(micro_batch) - self.warmup
        return sum(time > end for end in self.ends[:-1])

    def anneals(self, micro_batch: int) -> bool:
        """Whether units have rates of their own at a micro-batch: after the warm-up, with `layerwise_lr`."""
        return self.layerwise_lr and self.refreshed(micro_batch) >= self.warmup

    def rate(self, unit: int, micro_batch: int, peak: float) -> float:
        """The unit's own learning rate where `anneals` says that there is one: half a cosine that ends at 0."""
        start = peak / self.shares[unit] if self.scale_lr else peak
        time = min(self.refreshed(micro_batch) - self.warmup, self.ends[unit])
        return start / 2 * (1 + math.cos(math.pi * time / self.ends[unit]))

    @cached_property
    def freezing_micro_batches(self) -> tuple[int | None, ...]:
        """The micro-batch with which each unit begins to rest; None: never, as the last one."""
        found: list[int | None] = []
        for end in self.ends[:-1]:
            epoch = math.floor(self.warmup + end) // self.micro_batches_per_epoch
            candidates = (
                number * self.micro_batches_per_epoch + first
                for number in (epoch, epoch + 1)
                for first in range(0, self.micro_batches_per_epoch, self.accumulation)
            )
            last = math.ceil(self.epochs * self.micro_batches_per_epoch)
            found.append(next((each for each in candidates if each - self.warmup > end and each < last), None))
        return (*found, None)

    def branches_gone(self, taps: Sequence[int], micro_batch: int) -> int:
        """Branches that are gone in the forward pass of a micro-batch: one per pass, the shallowest first.

        A branch goes when its unit rests; where two expire with one update, the second goes with the next micro-batch.

        Args:
            taps: unit of each branch, ascending.
        """
        moments = self.freezing_micro_batches
        gone, free = 0, 0
        for tap in taps:
            moment = moments[tap]
            if moment is None or max(moment, free) > micro_batch:
                break
            gone, free = gone + 1, max(moment, free) + 1
        return gone

    def stages(self, steps: int, steps_per_epoch: int, taps: Sequence[int] = ()) -> Iterator[Stage]:
        """The stretches of a run of `steps` updates, in order."""
        begun = [0]
        for moment in self.freezing_micro_batches:
            if moment is not None:
                epoch, within = divmod(moment, self.micro_batches_per_epoch)
                begun.append(epoch * steps_per_epoch + within // self.accumulation)
        begins = sorted({step for step in begun if step < steps})
        for step, following in zip(begins, [*begins[1:], steps], strict=True):
            last = self.first_micro_batch(step, steps_per_epoch) + self.accumulation - 1
            yield Stage(step, following - step, self.frozen(last), self.branches_gone(taps, last))

    def _start(self, unit: int) -> float:
        return self.t0 + (1 - self.t0) * float(unit) / self.last_unit
