"""How large a share of the patches a mask hides, where that is itself random: iBOT's and AttMask's ranges of ratios."""

import math
import random
from typing import Annotated

import torch
from jaxtyping import Float, Float64
from pydantic import Field
from torch import Tensor

from halfseen.errors import ConfigError

Ratio = Annotated[float, Field(ge=0, lt=1)]
Ratios = Ratio | Annotated[tuple[Ratio, ...], Field(min_length=1)]
"""One ratio, or several of which each mask takes one at random."""

RATIO_WORDS = (
    "hidden share of the patches; of a list each mask takes one entry at random, so [0, 0.3] hides nothing half of the "
    "time (published iBOT, with pred_ratio_var [0, 0.2])"
)
VAR_WORDS = "the share is uniform in pred_ratio -+ this; one number, or as many as pred_ratio has"


def ratio_ranges(pred_ratio: Ratios, pred_ratio_var: Ratios) -> tuple[tuple[float, float], ...]:
    """(ratio, half width) of every range that a ratio may come from.

    Raises:
        ValueError: lists of different lengths, or a range that leaves [0, 1].
    """
    ratios = pred_ratio if isinstance(pred_ratio, tuple) else (pred_ratio,)
    widths = pred_ratio_var if isinstance(pred_ratio_var, tuple) else (pred_ratio_var,) * len(ratios)
    if isinstance(pred_ratio_var, tuple) and (len(widths) != len(ratios) or not isinstance(pred_ratio, tuple)):
        raise ValueError(
            f"pred_ratio_var: got a list of {len(widths)} for {len(ratios)} pred_ratio; expected a list where "
            "pred_ratio is one, of the same length, or one number for all."
        )
    for ratio, width in zip(ratios, widths, strict=True):
        if ratio < width or ratio + width > 1:
            raise ValueError(
                f"pred_ratio_var: got {width:g} around a pred_ratio of {ratio:g}, but {ratio - width:g} to "
                f"{ratio + width:g} must lie within 0 and 1. Write at most {min(ratio, 1 - ratio):g}."
            )
    return tuple(zip(ratios, widths, strict=True))


def largest_ratio(pred_ratio: Ratios, pred_ratio_var: Ratios) -> float:
    """The largest ratio that may be drawn."""
    return max(ratio + width for ratio, width in ratio_ranges(pred_ratio, pred_ratio_var))


def check_hides(pred_ratio: Ratios, pred_ratio_var: Ratios, num_patches: int, key: str) -> None:
    """See that a mask can hide a patch at all; a ratio that is 0 throughout is taken at its word.

    Raises:
        ConfigError: a grid so small that even the largest ratio hides nothing.
    """
    largest = largest_ratio(pred_ratio, pred_ratio_var)
    if largest > 0 and int(largest * num_patches) == 0:
        raise ConfigError(
            f"{key}.pred_ratio: {largest:g} of {num_patches} patches, the most that is drawn, hides none of them. "
            f"Choose at least {math.ceil(1000 / num_patches) / 1000:g}, smaller patches or a larger image."
        )


def draw_ratio(pred_ratio: Ratios, pred_ratio_var: Ratios, generator: random.Random) -> float:
    """One hidden share: each range gives a number, then one of them is chosen.

    A range without width draws nothing, nor does a single number choose: seeded masks of the original depend on both.
    """
    drawn = [
        generator.uniform(ratio - width, ratio + width) if width > 0 else ratio
        for ratio, width in ratio_ranges(pred_ratio, pred_ratio_var)
    ]
    return generator.choice(drawn) if isinstance(pred_ratio, tuple) else drawn[0]


def ratios_from_noise(
    pred_ratio: Ratios, pred_ratio_var: Ratios, noise: Float[Tensor, "*rows 2"]
) -> Float64[Tensor, "*rows"]:
    """Many hidden shares at once, from uniform noise in [0, 1): the first number chooses a range, the second within.

    float64, because a share is multiplied and truncated: one rounding less than a half of the unit decides a patch.
    """
    ranges = torch.tensor(ratio_ranges(pred_ratio, pred_ratio_var), dtype=torch.float64)
    choice, position = noise.double().unbind(-1)
    ratio, width = ranges[(choice * len(ranges)).long()].unbind(-1)
    return ratio + width * (2 * position - 1)
