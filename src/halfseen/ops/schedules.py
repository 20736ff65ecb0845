"""Learning-rate schedules as pure functions of where a run stands; nothing here has state.

`t`, `warmup`, `total` and `milestones` of one call are in the same unit: optimiser steps, or micro-batches where an
original counts those, or (fractional) epochs. `lag` and the micro-batch index of the originals, whose schedulers are
set *after* the optimiser's step, are integers computed by `schedule_index`; the curves know nothing of them.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal


def linear_warmup(t: float, *, base: float, warmup_start: float, warmup: float) -> float:
    """The straight line from `warmup_start` at t = 0 to `base` at t = warmup (> 0)."""
    return warmup_start + t * (base - warmup_start) / warmup


def constant(t: float, *, base: float, warmup_start: float = 0.0, warmup: float = 0.0) -> float:
    """`base` after an optional linear warm-up."""
    if t < warmup:
        return linear_warmup(t, base=base, warmup_start=warmup_start, warmup=warmup)
    return base


def rebased_cosine(
    t: float, *, base: float, total: float, warmup: float = 0.0, warmup_start: float = 0.0, minimum: float = 0.0
) -> float:
    """Linear warm-up, then half a cosine that starts anew at the end of the warm-up; continuous there.

    minimum + (base - minimum) (1 + cos(pi (t - warmup) / (total - warmup))) / 2 for warmup <= t < total, then
    `minimum`. With `total <= warmup` there is no room for a decay and the value stays `base` after the warm-up.
    """
    if t < warmup:
        return linear_warmup(t, base=base, warmup_start=warmup_start, warmup=warmup)
    if total <= warmup:
        return base
    if t >= total:
        return minimum
    return minimum + (base - minimum) * 0.5 * (1.0 + math.cos(math.pi * (t - warmup) / (total - warmup)))


def mae_cosine(epoch: float, *, base: float, minimum: float, warmup_epochs: float, epochs: float) -> float:
    """MAE's schedule over the fractional epoch: warm-up from 0 (so the first step has lr 0), then a re-based cosine.

    Source: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377; pre-training, fine-tuning and probes.
    """
    return rebased_cosine(epoch, base=base, total=epochs, warmup=warmup_epochs, minimum=minimum)


def unshifted_cosine(
    t: float, *, base: float, warmup_start: float, minimum: float, warmup: float, total: float
) -> float:
    """Linear warm-up, then the cosine evaluated at t itself: after the warm-up the value drops below `base` at once.

    minimum + (base - minimum) (1 + cos(pi t / total)) / 2 for warmup <= t < total, then `minimum`. `warmup_start` and
    `minimum` are absolute and shared by all parameter groups, `base` is the group's own.

    Source: the official code of SimMIM (arXiv 2111.09886) and of KAMIM (arXiv 2407.13873), which use the same curve.
    """
    if t < warmup:
        return linear_warmup(t, base=base, warmup_start=warmup_start, warmup=warmup)
    if t >= total:
        return minimum
    return minimum + 0.5 * (base - minimum) * (1.0 + math.cos(math.pi * t / total))


def multistep(
    t: float, *, base: float, gamma: float, milestones: Sequence[float], warmup: float = 0.0, warmup_start: float = 0.0
) -> float:
    """`base` times gamma for every milestone <= t; `milestones` ascending. A linear warm-up may come before.

    Source: SimMIM's 800-epoch recipes; without warm-up, ViNy's.
    """
    if t < warmup:
        return linear_warmup(t, base=base, warmup_start=warmup_start, warmup=warmup)
    return base * gamma ** bisect_right(milestones, t)


def linear_decay(
    t: float, *, base: float, warmup: float, warmup_start: float, total: float, end_ratio: float = 0.01
) -> float:
    """Linear warm-up, then a straight line to `end_ratio * base` at t = total, where it stays.

    Source: SimMIM's official configuration (`linear`), unused by its recipes.
    """
    if t < warmup:
        return linear_warmup(t, base=base, warmup_start=warmup_start, warmup=warmup)
    if t >= total:
        return end_ratio * base
    return base - (base - end_ratio * base) * (t - warmup) / (total - warmup)


def step_decay(
    t: float, *, base: float, gamma: float, decay_every: float, warmup: float = 0.0, warmup_start: float = 0.0
) -> float:
    """`base` times gamma for every full `decay_every` that has passed since t = 0.

    Source: SimMIM's official configuration (`step`), unused by its recipes.
    """
    if t < warmup:
        return linear_warmup(t, base=base, warmup_start=warmup_start, warmup=warmup)
    return float(base * gamma ** math.floor(t / decay_every))


def schedule_index(
    step: int,
    *,
    lag_steps: Literal[0, 1] = 0,
    index: Literal["step", "microbatch"] = "step",
    steps_per_epoch: int = 1,
    micro_batches_per_epoch: int = 1,
    accumulation: int = 1,
    epoch_stride: int | None = None,
) -> int:
    """The t at which an original evaluates its curve for the update number `step` (from 0).

    Args:
        lag_steps: 1 where the scheduler is set after the optimiser's step, so that update g runs with the value set
            by update g - 1, and updates 0 and 1 share the value at t = 0 (official SimMIM and KAMIM).
        index: "step" counts updates; "microbatch" takes t = epoch * epoch_stride + index of the micro-batch that
            closed the update, counted from 0 within its epoch.
        steps_per_epoch: updates per epoch.
        micro_batches_per_epoch: loader batches per epoch; the last group of an epoch may be incomplete.
        accumulation: micro-batches per update.
        epoch_stride: what an epoch adds to t. KAMIM: `steps_per_epoch` (the default), which makes a sawtooth when
            accumulating; SimMIM: `micro_batches_per_epoch`, with warm-up and total in micro-batches as well.
    """
    setting_step = step - lag_steps
    if setting_step < 0:
        return 0
    if index == "step":
        return setting_step
    stride = steps_per_epoch if epoch_stride is None else epoch_stride
    epoch, step_in_epoch = divmod(setting_step, steps_per_epoch)
    last_micro_batch = min((step_in_epoch + 1) * accumulation, micro_batches_per_epoch) - 1
    return epoch * stride + last_micro_batch


def ibot_cosine(i: int, *, base: float, final: float, total: int, warmup: int = 0, warmup_start: float = 0.0) -> float:
    """The value at iteration i of DINO's and iBOT's schedules: a line that includes both ends, then half a cosine.

    The line takes `warmup` iterations from `warmup_start` to `base` itself, so `base` comes twice in a row where the
    cosine begins; `final` is never quite reached.

    Source: DINO, arXiv 2104.14294, and iBOT, arXiv 2111.07832, official code: learning rate, weight decay, momentum.
    """
    if i < warmup:
        return base if i == warmup - 1 > 0 else warmup_start + i * (base - warmup_start) / max(1, warmup - 1)
    length = total - warmup
    if i >= total or length <= 0:
        return final if length > 0 else base
    return final + 0.5 * (base - final) * (1.0 + math.cos(math.pi * (i - warmup) / length))


def teacher_temperature(epoch: int, *, warm: float, final: float, warmup_epochs: int, start_epoch: int = 0) -> float:
    """The teacher's temperature in an epoch: `warm` before `start_epoch`, a line over `warmup_epochs`, then `final`.

    The line includes both ends: with one warm-up epoch only `warm` is taken, with none the value is `final` at once.

    Source: DINO, arXiv 2104.14294, and iBOT, arXiv 2111.07832, official code.
    """
    if epoch < start_epoch:
        return warm
    i = epoch - start_epoch
    if i >= warmup_epochs:
        return final
    return final if i == warmup_epochs - 1 > 0 else warm + i * (final - warm) / max(1, warmup_epochs - 1)


def linear_ramp(i: float, *, start: float, final: float, total: float) -> float:
    """The straight line from `start` at i = 0 to `final` at i = total; MSN's momentum and sharpening."""
    return start + i * (final - start) / total


def msn_learning_rate(
    step: int, *, base: float, start: float, final: float, warmup_steps: int, horizon_steps: int
) -> float:
    """MSN's learning rate of the update number `step` (from 0), which the original counts from 1.

    A line from `start` to `base`, then half a cosine to `final` at `horizon_steps`, a quarter beyond the run's end.

    Source: Masked Siamese Networks, arXiv 2204.07141, official code.
    """
    s = step + 1
    if s < warmup_steps:
        return start + s / max(1, warmup_steps) * (base - start)
    progress = (s - warmup_steps) / max(1, horizon_steps - warmup_steps)
    return max(final, final + (base - final) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def msn_weight_decay(step: int, *, start: float, final: float, horizon_steps: int) -> float:
    """MSN's weight decay of the update number `step` (from 0): half a cosine that never passes `final`.

    Source: Masked Siamese Networks, arXiv 2204.07141, official code.
    """
    value = final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * (step + 1) / horizon_steps))
    return max(final, value) if final <= start else min(final, value)
