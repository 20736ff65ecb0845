"""Masks that are drawn crop by crop in the data loader: blocks (iBOT, after BEiT) and single patches.

Each crop has a ratio of its own. The functions take their generators as arguments and keep the original's order of
draws, so its seeded masks come out bit by bit.
"""

import math
import random
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field, model_validator

from halfseen.masking.ratios import RATIO_WORDS, VAR_WORDS, Ratios, draw_ratio, ratio_ranges

_ATTEMPTS = 10
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))


class Shuffler(Protocol):
    """What numpy's `Generator` and `RandomState` have in common here."""

    def shuffle(self, x: np.ndarray) -> None: ...


class BlockMask(BaseModel):
    """Rectangles of random size and shape until the drawn share of the patches is hidden."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["block"] = Field(default="block", description="masks: block = rectangles of random size (iBOT)")
    pred_ratio: Ratios = Field(default=0.3, description=RATIO_WORDS)
    pred_ratio_var: Ratios = Field(default=0.0, description=VAR_WORDS)

    @model_validator(mode="after")
    def _ratios_fit(self) -> "BlockMask":
        ratio_ranges(self.pred_ratio, self.pred_ratio_var)
        return self


class RandomMask(BaseModel):
    """Single patches, each as likely as any other."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["random"] = Field(default="random", description="masks: random = single patches (iBOT's `rand`)")
    pred_ratio: Ratios = Field(
        default=0.65, description=f"{RATIO_WORDS}; single patches need a higher share than blocks"
    )
    pred_ratio_var: Ratios = Field(default=0.05, description=VAR_WORDS)

    @model_validator(mode="after")
    def _ratios_fit(self) -> "RandomMask":
        ratio_ranges(self.pred_ratio, self.pred_ratio_var)
        return self


def block_mask(grid: tuple[int, int], most: float, generator: random.Random) -> Bool[np.ndarray, "rows cols"]:
    """Hide rectangle after rectangle while fewer than `most` patches are hidden.

    A rectangle's area is uniform between a ninth of the smaller side squared and what is still missing, its aspect
    ratio log-uniform between 0.3 and 1 / 0.3. It must hide something new and not too much; after ten failures in a row
    the mask is left as it is, so it never hides more than `most` patches and may hide fewer.

    Args:
        grid: rows and columns of patches.
        most: ratio * rows * cols, not rounded.
        generator: its draws come in the original's order.
    Source: iBOT, arXiv 2111.07832 (official code), after BEiT, arXiv 2106.08254.
    """
    rows, cols = grid
    mask = np.zeros(grid, dtype=bool)
    smallest = (min(rows, cols) // 3) ** 2
    hidden = 0
    while hidden < most:
        new = _hide_rectangle(mask, smallest, most - hidden, generator)
        if not new:
            break
        hidden += new
    return mask


def _hide_rectangle(mask: np.ndarray, smallest: int, missing: float, generator: random.Random) -> int:
    """Hides one rectangle in place; returns how many patches it newly hides, 0 if no attempt fitted."""
    rows, cols = mask.shape
    for _ in range(_ATTEMPTS):
        # Near the end `missing` falls below `smallest`; a uniform number between reversed bounds is meant.
        area = generator.uniform(smallest, missing)
        aspect = math.exp(generator.uniform(*_LOG_ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= cols:
            continue
        top, left = generator.randint(0, rows - height), generator.randint(0, cols - width)
        rectangle = mask[top : top + height, left : left + width]
        new = height * width - int(np.count_nonzero(rectangle))
        if 0 < new <= missing:
            rectangle[:] = True
            return new
    return 0


def scattered_mask(grid: tuple[int, int], num_hidden: int, generator: Shuffler) -> Bool[np.ndarray, "rows cols"]:
    """Hide exactly `num_hidden` single patches: one shuffle of a row of visible, then hidden ones."""
    rows, cols = grid
    mask = np.arange(rows * cols) >= rows * cols - num_hidden
    generator.shuffle(mask)
    return mask.reshape(grid)


def draw_mask(
    config: BlockMask | RandomMask, grid: tuple[int, int], generator: random.Random, shuffler: Shuffler
) -> Bool[np.ndarray, "rows cols"]:
    """One mask with a ratio of its own.

    Args:
        config: block or random.
        grid: rows and columns of patches.
        generator: draws the ratio and the blocks.
        shuffler: scatters the patches of a random mask.
    """
    rows, cols = grid
    most = draw_ratio(config.pred_ratio, config.pred_ratio_var, generator) * rows * cols
    if isinstance(config, BlockMask):
        return block_mask(grid, most, generator)
    return scattered_mask(grid, int(most), shuffler)
