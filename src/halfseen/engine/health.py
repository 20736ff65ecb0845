"""A run looks at itself: signs of illness in numbers that are logged anyway, said as sentences.

Each finding says what is seen, what it usually means, and which key to change. Nothing here touches the device; the
loop hands over one record per logging step.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from statistics import fmean, median
from typing import NamedTuple

from halfseen.engine.finding import Finding
from halfseen.engine.outputs import OutputsOf, OutputWatch

FEW_STEPS = 20
SMALL_GRID = 4
SPIKE_FACTOR = 10.0
SPIKE_MEMORY = 100
SPIKE_LEAST = 10
WAIT_SHARE = 0.3
WAIT_RECORDS = 3
FLAT_RECORDS = 5
FLAT_STEPS = 200
FLAT_CHANGE = 0.005
MEAN_SHARE = 0.95
MEAN_OF_RUN = 0.25
RANK_FALLS = 3
RANK_LOSS = 0.5
STD_LOSS = 0.1


class RunShape(NamedTuple):
    """The sizes that decide whether schedules and masks make sense.

    Attributes:
        steps_per_epoch: updates in one pass over the data.
        last_step: updates after which the run ends.
        warmup_steps: updates of the warm-up.
        grid: patches per side of a view, or None if unknown.
        mean_loss: the loss of predicting the targets' mean: 1 for normalised pixels under a squared error; None if
            unknown.
        num_outputs: outputs or prototypes of a teacher, K; None where there is none.
        rows: images of a micro-batch on one process, over which a teacher's outputs are counted.
        outputs_of: what gets these outputs.
    """

    steps_per_epoch: int
    last_step: int
    warmup_steps: float = 0.0
    grid: int | None = None
    mean_loss: float | None = None
    num_outputs: int | None = None
    rows: int = 1
    outputs_of: OutputsOf = "images"


def findings_before(shape: RunShape) -> list[Finding]:
    """What can be said before the first step: schedules and grids that make no sense at these sizes."""
    found: list[Finding] = []
    if shape.steps_per_epoch < FEW_STEPS:
        found.append(
            Finding(
                "few_steps",
                f"An epoch has only {shape.steps_per_epoch} steps, fewer than {FEW_STEPS}: schedules in epochs become "
                "coarse and the run has few updates. Lower train.batch_size or raise train.epochs.",
                0,
            )
        )
    if shape.warmup_steps >= shape.last_step:
        found.append(
            Finding(
                "long_warmup",
                f"The warm-up takes {shape.warmup_steps:g} steps but the run ends after {shape.last_step}: the "
                "learning rate never reaches its peak. Lower train.lr.warmup_epochs or raise train.epochs.",
                0,
            )
        )
    if shape.grid is not None:
        found += small_grid(shape.grid)
    return found


def small_grid(grid: int) -> list[Finding]:
    """The finding of images with fewer than 4 patches per side, where masking has nothing to hide behind."""
    if grid >= SMALL_GRID:
        return []
    return [
        Finding(
            "small_grid",
            f"The images have only {grid} patches per side, fewer than {SMALL_GRID}: masking has nothing to hide "
            "behind. Lower model.patch_size or raise data.image_size.",
            0,
        )
    ]


@dataclass
class Health:
    """The watcher of one run. `check` and `check_features` give new findings; the journal keeps each kind once."""

    shape: RunShape
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=SPIKE_MEMORY))
    waits: deque[float] = field(default_factory=lambda: deque(maxlen=WAIT_RECORDS))
    num_losses: int = 0
    first_losses: list[float] = field(default_factory=list)
    last_losses: deque[float] = field(default_factory=lambda: deque(maxlen=FLAT_RECORDS))
    last_mean_losses: deque[float] = field(default_factory=lambda: deque(maxlen=FLAT_RECORDS))
    moved: bool = False
    ranks: list[float] = field(default_factory=list)
    rank_losses: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    outputs: OutputWatch | None = None

    def __post_init__(self) -> None:
        """Outputs are watched where there are any."""
        shape = self.shape
        if shape.num_outputs is not None:
            self.outputs = OutputWatch(
                shape.num_outputs, shape.rows, shape.warmup_steps, shape.steps_per_epoch, shape.outputs_of
            )

    def check(self, record: Mapping[str, float | int]) -> list[Finding]:
        """Findings at one logging step; `record` is a line of metrics.jsonl.

        Reads `step`, `loss`, `lr` and, where present, `grad_norm`, `data_wait_share` and `mean_loss` (a method that
        knows the loss of predicting the mean may give it as a metric), and what `OutputWatch.check` reads.
        """
        step, loss = int(record["step"]), float(record["loss"])
        found = self._gradient(step, record.get("grad_norm")) + self._waiting(step, record.get("data_wait_share"))
        if self.outputs is not None:
            found += self.outputs.check(record)
        if step <= self.shape.warmup_steps:
            return found
        if len(self.first_losses) < FLAT_RECORDS:
            self.first_losses.append(loss)
        self.last_losses.append(loss)
        self.num_losses += 1
        mean_loss = record.get("mean_loss", self.shape.mean_loss)
        if mean_loss is not None:
            self.last_mean_losses.append(mean_loss)
        return found + self._flat(step) + self._mean(step)

    def replay(self, records: Iterable[Mapping[str, float | int | None]]) -> None:
        """Take in what earlier sessions of the run have logged: a resumed run judges as an unbroken one."""
        for past in records:
            record = {name: value for name, value in past.items() if value is not None}
            if "loss" not in record:
                continue
            self.check(record)
            if "rankme" in record and "feature_std" in record:
                self.check_features(
                    int(record["step"]), float(record["loss"]), float(record["rankme"]), float(record["feature_std"])
                )

    def check_features(self, step: int, loss: float, rank: float, spread: float) -> list[Finding]:
        """Findings at one look at the features of fixed images: effective rank and spread of directions."""
        found: list[Finding] = []
        self.ranks.append(rank)
        self.rank_losses.append(loss)
        self.spreads.append(spread)
        recent = self.ranks[-RANK_FALLS - 1 :]
        falling = len(recent) > RANK_FALLS and all(late < early for early, late in pairwise(recent))
        if falling and rank < RANK_LOSS * max(self.ranks) and loss < self.rank_losses[-RANK_FALLS - 1]:
            found.append(
                Finding(
                    "rank_falling",
                    f"The effective rank of the features (RankMe) has fallen from {max(self.ranks):.1f} to {rank:.1f} "
                    "while the loss falls: dimensional collapse. Lower train.optimizer.weight_decay or train.lr.base, "
                    "or change the crops.",
                    step,
                )
            )
        if len(self.spreads) > 1 and spread < STD_LOSS * max(self.spreads):
            found.append(
                Finding(
                    "features_alike",
                    "The features of different images point the same way: their spread fell from "
                    f"{max(self.spreads):.3f} to {spread:.3f}: collapse. Lower train.lr.base or hide "
                    "more of the image.",
                    step,
                )
            )
        return found

    def _gradient(self, step: int, norm: float | int | None) -> list[Finding]:
        if norm is None or not isfinite(norm):
            return []
        usual = median(self.norms) if len(self.norms) >= SPIKE_LEAST else None
        self.norms.append(float(norm))
        if usual is None or norm <= SPIKE_FACTOR * usual:
            return []
        return [
            Finding(
                "gradient_spike",
                f"The gradient norm is {norm:.3g}, {norm / max(usual, 1e-30):.0f} times its running median of "
                f"{usual:.3g}: instability ahead. Lower train.lr.base, set the second of train.optimizer.betas to "
                "0.95, lengthen train.lr.warmup_epochs, or set train.clip_norm.",
                step,
            )
        ]

    def _waiting(self, step: int, share: float | int | None) -> list[Finding]:
        if share is None:
            return []
        self.waits.append(float(share))
        if len(self.waits) < WAIT_RECORDS or min(self.waits) <= WAIT_SHARE:
            return []
        return [
            Finding(
                "data_wait",
                f"{100 * fmean(self.waits):.0f} % of the time is spent waiting for data: the loader is the "
                "bottleneck. Raise runtime.workers up to the number of cores, or store smaller images.",
                step,
            )
        ]

    def _flat(self, step: int) -> list[Finding]:
        if self.outputs is not None:  # A loss against a moving teacher may stay where it is in a healthy run.
            return []
        # With fewer losses some would be first and last at once.
        if self.moved or step < self.shape.warmup_steps + FLAT_STEPS or self.num_losses < 2 * FLAT_RECORDS:
            return []
        early, late = fmean(self.first_losses), fmean(self.last_losses)
        self.moved = abs(late - early) > FLAT_CHANGE * abs(early)
        if self.moved:
            return []
        return [
            Finding(
                "flat_loss",
                f"The loss is flat from the start (now {late:.4g}, at first {early:.4g}). Usual causes: a "
                "method.mask_ratio near 0 or 1, normalisation applied twice (data.mean, data.std), or train.lr.base "
                "too small after scaling by the batch.",
                step,
            )
        ]

    def _mean(self, step: int) -> list[Finding]:
        late_enough = step >= max(FLAT_STEPS, self.shape.warmup_steps + MEAN_OF_RUN * self.shape.last_step)
        if not late_enough or len(self.last_mean_losses) < FLAT_RECORDS:
            return []
        # Both over the same records: they fall together where a branch of the loss ends.
        loss, mean_loss = fmean(self.last_losses), fmean(self.last_mean_losses)
        if loss < MEAN_SHARE * mean_loss:
            return []
        return [
            Finding(
                "predicts_mean",
                f"The loss, {loss:.4g}, is near {mean_loss:.4g}, what predicting the mean of the targets would give: "
                "the decoder has learned nothing more yet. Too few steps (train.epochs), train.lr.base too low, or "
                "method.mask_ratio too high for this patch size.",
                step,
            )
        ]
