"""Masks from attention: what the teacher's class token looks at is hidden, left as a hint, or spared.

    attention of some blocks -> score per patch -> ranks -> mask, minus hints, for a share of the images

AttMask takes the last block's raw scores; other blocks, logarithms, powers and rollout are the variants of a thesis
that builds on it. Everything is vectorised over the batch and stays on the device; randomness comes in as numbers that
were drawn beforehand, on the CPU (`draw_attention`). Numbers of blocks count from 1, as in `Encoder.forward`.

Sources: AttMask, arXiv 2203.12719; attention rollout, arXiv 2005.00928; the thesis' code is called "the reference".
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from halfseen.errors import ConfigError
from halfseen.idle import Need, refuse_idle
from halfseen.masking.ratios import (
    RATIO_WORDS,
    VAR_WORDS,
    Ratios,
    check_hides,
    largest_ratio,
    ratio_ranges,
    ratios_from_noise,
)
from halfseen.ops.randomness import step_noise, torch_generator
from halfseen.types import Progress

Select = Literal["high", "hint", "low"]
Score = Literal["raw", "log", "power", "rollout"]
RolloutBlocks = Literal["all", "mid", "last"]
AttentionRows = Literal["class", "head_mean"]


class AttentionMask(BaseModel):
    """Hide patches by the attention that the class token pays them; the defaults are AttMask-High."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["attention"] = Field(
        default="attention", description="masks: attention = by what the teacher attends to"
    )
    select: Select = Field(
        default="high",
        description="hidden patches: high = those of highest score, hint = as high but some of the very highest stay "
        "visible, low = those of lowest score",
    )
    score: Score = Field(
        default="raw",
        description="score of a patch: raw = attention of the class token, mean over the heads; log = mean over the "
        "heads of its logarithm; power = mean of its power; rollout = attention followed through several blocks",
    )
    layer: int | None = Field(
        default=None,
        ge=1,
        description="block whose attention gives raw, log and power scores, counted from 1 (the thesis' layer_mask "
        "counts from 0: 11 is 12 here); null = the last one",
    )
    power: float = Field(
        default=0.5, gt=0, description="exponent for score power; below 1 it flattens heads with sharp peaks"
    )
    rollout: RolloutBlocks = Field(
        default="all", description="blocks for score rollout: all, the middle third (mid) or the last third (last)"
    )
    rollout_order: Literal["paper", "reference"] = Field(
        default="paper",
        description="order of the product for score rollout: paper = from the last block down; reference = as in the "
        "thesis' code: from the first block up, except `last` where each crop has a mask of its own or pairs are "
        "chosen for the contrastive term",
    )
    leaky_batch_accumulation: bool = Field(
        default=False,
        description="for scores log and power, add the maps of all earlier images to each image's own, as in the "
        "thesis' code; masks then depend on the composition of the batch on each process",
    )
    pred_ratio: Ratios = Field(default=0.3, description=RATIO_WORDS)
    pred_ratio_var: Ratios = Field(default=0.2, description=VAR_WORDS)
    ratio_scope: Literal["batch", "image"] = Field(
        default="batch",
        description="how often a share is drawn: batch = once per step (AttMask), image = per crop (thesis)",
    )
    masking_prob: float = Field(
        default=0.5, gt=0, le=1, description="probability that a crop gets a mask at all; the others stay whole"
    )
    show_max: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="for select hint, share of the patches, highest first, among which hints are drawn; a random part "
        "of them becomes visible: show_max times a share drawn like pred_ratio, of all patches",
    )

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "AttentionMask":
        ratio_ranges(self.pred_ratio, self.pred_ratio_var)
        score = f"score={self.score}"
        refuse_idle(
            self,
            (
                Need("power", self.score == "power", score),
                Need("layer", self.score != "rollout", score),
                Need("rollout", self.score == "rollout", score),
                Need("rollout_order", self.score == "rollout", score),
                Need("leaky_batch_accumulation", self.score in ("log", "power"), score),
                Need("show_max", self.select == "hint", f"select={self.select}"),
            ),
        )
        return self

    @property
    def rows(self) -> AttentionRows:
        """The rows of attention that the score needs: the class token's of each head, or all as a mean of heads."""
        return "head_mean" if self.score == "rollout" else "class"

    def blocks(self, depth: int, last_descends: bool = False) -> tuple[int, ...]:
        """The blocks that the score is made of, in the order of their product.

        Args:
            depth: blocks of the encoder.
            last_descends: what the reference does with rollout `last`, see `rollout_blocks`.
        """
        if self.score == "rollout":
            return rollout_blocks(self.rollout, self.rollout_order, depth, last_descends)
        return (depth if self.layer is None else self.layer,)

    def check_layer(self, depth: int, key: str) -> None:
        """See that the encoder has the block.

        Raises:
            ConfigError: a number above `depth`.
        """
        if self.layer is not None and self.layer > depth:
            raise ConfigError(f"{key}.layer: got {self.layer}, but the encoder has blocks 1 to {depth}.")

    def check(self, num_patches: int, depth: int, key: str) -> None:
        """See that the mask fits an encoder; `key` names it in errors.

        Raises:
            ConfigError: a block that isn't there, or a grid so small that nothing is ever hidden or shown.
        """
        self.check_layer(depth, key)
        check_hides(self.pred_ratio, self.pred_ratio_var, num_patches, key)
        largest = largest_ratio(self.pred_ratio, self.pred_ratio_var)
        if self.select == "hint" and largest > 0 and int(self.show_max * largest * num_patches) == 0:
            least = math.ceil(100 / (largest * num_patches)) / 100
            raise ConfigError(
                f"{key}.show_max: {self.show_max:g} of {num_patches} patches, times a share of at most {largest:g}, "
                f"never shows one: hint would be high. Write at least {least:g}, or select=high."
            )


def rollout_blocks(
    blocks: RolloutBlocks, order: Literal["paper", "reference"], depth: int, last_descends: bool = False
) -> tuple[int, ...]:
    """Blocks of a rollout, from 1, in the order in which their matrices are multiplied.

    The thirds of 12 blocks are 5-8 (mid) and 9-12 (last). The paper's rollout descends: row i of A_L ... A_1 says where
    output token i has its information from. The reference ascends.

    Args:
        blocks: which of them.
        order: paper or reference.
        depth: blocks of the encoder.
        last_descends: the reference's exception: `last` descends where each crop has a mask of its own, and when it
            selects pairs for its contrastive term.
    """
    third, two_thirds = depth // 3, 2 * depth // 3
    start, stop = {"all": (0, depth), "mid": (third, max(two_thirds, third + 1)), "last": (two_thirds, depth)}[blocks]
    ascending = tuple(range(start + 1, stop + 1))
    descends = order == "paper" or (blocks == "last" and last_descends)
    return ascending[::-1] if descends else ascending


def head_scores(
    attention: Float[Tensor, "B heads T"], num_patches: int, score: Literal["raw", "log", "power"], power: float = 0.5
) -> Float32[Tensor, "B N"]:
    """Scores of patches from the class token's attention in one block: a mean over the heads.

    Args:
        attention: the class token's row of each head; prefix tokens come first. They are left out and what remains is
            not normalised again.
        num_patches: N, the last tokens.
        score: of the attention itself, its natural logarithm (-inf where it underflowed) or its power.
        power: the exponent.
    """
    patches = attention[..., -num_patches:].float()
    if score == "log":
        patches = patches.log()
    elif score == "power":
        patches = patches.pow(power)
    return patches.mean(dim=1)


def rollout_scores(matrices: Sequence[Float[Tensor, "B T T"]], num_patches: int) -> Float32[Tensor, "B N"]:
    """Scores of patches by attention rollout: the class token's row of the product of all (A + I).

    A chain of vector-matrix products; no T x T product is formed. Each factor lacks the paper's 1/2, so that m blocks
    give 2^m times its value and the same ranks.

    Args:
        matrices: attention of each block, mean over the heads, in the order of the product.
        num_patches: N, the last tokens.
    """
    B, _, T = matrices[0].shape
    device = matrices[0].device
    with torch.autocast(device.type, enabled=False):
        row = torch.zeros(B, 1, T, device=device)
        row[..., 0] = 1.0
        for matrix in matrices:
            row = torch.baddbmm(row, row, matrix.float())
    return row[:, 0, -num_patches:]


def attention_scores(
    config: AttentionMask,
    attention: Mapping[int, Float[Tensor, "B heads T"] | Float[Tensor, "B T T"]],
    num_patches: int,
    depth: int,
    last_descends: bool = False,
) -> Float32[Tensor, "B N"]:
    """The scores that a mask is made from.

    Args:
        config: which score.
        attention: by block number, float32; the rows that the score needs, see `AttentionMask.rows`.
        num_patches: N.
        depth: blocks of the encoder.
        last_descends: see `rollout_blocks`.
    """
    maps = [attention[block] for block in config.blocks(depth, last_descends)]
    if config.score == "rollout":
        return rollout_scores(maps, num_patches)
    scores = head_scores(maps[0], num_patches, config.score, config.power)
    return scores.cumsum(dim=0) if config.leaky_batch_accumulation else scores


def hide_by_score(
    scores: Float[Tensor, "B N"], num_hidden: int | Int64[Tensor, "B"], lowest: bool = False
) -> Bool[Tensor, "B N"]:
    """Hide exactly `num_hidden` patches of each image: those of highest (or lowest) score.

    Of equal scores the earlier patch comes first.
    """
    B, N = scores.shape
    order = scores.argsort(dim=1, descending=not lowest, stable=True)
    places = torch.arange(N, device=scores.device).expand(B, -1)
    ranks = torch.empty_like(order).scatter_(1, order, places)
    return ranks < (num_hidden if isinstance(num_hidden, int) else num_hidden.unsqueeze(1))


def reveal_hints(
    mask: Bool[Tensor, "B N"],
    top: Bool[Tensor, "B N"],
    noise: Float[Tensor, "B N"],
    num_shown: int | Int64[Tensor, "B"],
) -> Bool[Tensor, "B N"]:
    """The mask without `num_shown` patches of each `top` set, those of largest noise among it.

    A top set may be larger than the mask; then fewer hidden patches are shown. Showing none changes nothing.

    Args:
        mask: True = hidden.
        top: the patches that hints come from.
        noise: uniform in [0, 1).
        num_shown: at most the size of the top set.
    """
    return mask & ~drawn_hints(top, noise, num_shown)


def drawn_hints(
    top: Bool[Tensor, "B N"], noise: Float[Tensor, "B N"], num_shown: int | Int64[Tensor, "B"]
) -> Bool[Tensor, "B N"]:
    """The `num_shown` patches of each `top` set that have the largest noise among it."""
    return hide_by_score(noise.masked_fill(~top, -1.0), num_shown) & top


class AttentionDraws(NamedTuple):
    """The random part of a stack of masks.

    Attributes:
        keep: bool [B], whether an image is masked at all.
        num_hidden: int64 [B], patches to hide if it is.
        num_shown: int64 [B], hints.
        hint_noise: float32 [B, N] in [0, 1), for choosing them; None where there are no hints.
    """

    keep: Tensor
    num_hidden: Tensor
    num_shown: Tensor
    hint_noise: Tensor | None

    def to(self, device: torch.device) -> "AttentionDraws":
        """The same numbers on another device."""
        keep, num_hidden, num_shown = (part.to(device, non_blocking=True) for part in self[:3])
        noise = None if self.hint_noise is None else self.hint_noise.to(device, non_blocking=True)
        return AttentionDraws(keep, num_hidden, num_shown, noise)


def draw_attention(
    config: AttentionMask, progress: Progress, rows: int, crops: Sequence[int], num_patches: int
) -> AttentionDraws:
    """The random numbers of one step's masks, on the CPU: all images of the first crop, then of the next.

    They are a function of seed, step, crop and row of the global batch, so it doesn't matter how many processes and
    micro-batches share a step. A ratio of scope `batch` is the same for all crops of the step.

    Args:
        config: the mask.
        progress: where the run stands.
        rows: images of this micro-batch.
        crops: numbers of the crops, from 0.
        num_patches: N.
    """
    hints = config.select == "hint"
    columns = 5 + num_patches if hints else 5
    noise = torch.cat([step_noise(progress, rows, columns, f"attention_mask/{crop}") for crop in crops])
    of_ratios = noise[:, 1:5]
    if config.ratio_scope == "batch":
        generator = torch_generator(progress.seed, progress.step, "attention_ratio")
        of_ratios = torch.rand(4, generator=generator).expand(len(noise), 4)
    of_mask = ratios_from_noise(config.pred_ratio, config.pred_ratio_var, of_ratios[:, :2])
    # The share of hints is drawn for itself, independent of the mask's.
    of_hints = ratios_from_noise(config.pred_ratio, config.pred_ratio_var, of_ratios[:, 2:])
    return AttentionDraws(
        keep=noise[:, 0] <= config.masking_prob,
        num_hidden=(of_mask * num_patches).long(),
        num_shown=(config.show_max * of_hints * num_patches).long(),
        hint_noise=noise[:, 5:] if hints else None,
    )


def attention_mask(config: AttentionMask, scores: Float[Tensor, "B N"], draws: AttentionDraws) -> Bool[Tensor, "B N"]:
    """Masks from scores, True = hidden.

    Args:
        config: which patches are hidden and shown.
        scores: from `attention_scores`; no gradient flows through the mask.
        draws: on the device of the scores.
    """
    mask = hide_by_score(scores, draws.num_hidden, lowest=config.select == "low")
    if draws.hint_noise is not None:
        top = hide_by_score(scores, int(scores.shape[1] * config.show_max))
        mask = reveal_hints(mask, top, draws.hint_noise, draws.num_shown)
    return mask & draws.keep.unsqueeze(1)
