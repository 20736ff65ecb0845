"""How the crops of an image are hidden: one kind of mask for all global crops or one for each, single or mixed.

Blocks and scattered patches are drawn in the loader, where an image's own generator is; attention masks are made in
the step, where the teacher is. `CropMasks` brings both together, so a method doesn't care where a mask is from:

    extras -> loader -> batch.extras ──┐
    need -> teacher -> attention ──────┴─ draw -> mask [G B, N]
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from torch import Tensor

from halfseen.errors import ConfigError
from halfseen.masking.attention import (
    AttentionMask,
    AttentionRows,
    attention_mask,
    attention_scores,
    draw_attention,
)
from halfseen.masking.block import BlockMask, RandomMask, draw_mask
from halfseen.masking.ratios import check_hides
from halfseen.ops.randomness import numpy_generator
from halfseen.types import Progress

MASK_KEY = "mask"
"""Name of the loader's masks among a batch's extras: bool [B, G, N], all False where the step makes the mask."""

PART_KEY = "mask_part"
"""Name of the chosen parts of mixtures among a batch's extras: uint8 [B, G]."""

SingleMask = BlockMask | RandomMask | AttentionMask


class MixturePart(BaseModel):
    """One of the masks of a mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    probability: float = Field(gt=0, le=1, description="probability that a crop gets this mask; all parts sum to 1")
    mask: Annotated[SingleMask, Field(discriminator="kind")] = Field(description="the mask")


class MixtureMask(BaseModel):
    """Each crop takes one of several masks at random."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mixture"] = Field(
        default="mixture", description="masks: mixture = each crop takes one of several at random"
    )
    parts: tuple[MixturePart, ...] = Field(min_length=2, description="the masks and their probabilities")

    @model_validator(mode="after")
    def _probabilities_sum_to_one(self) -> "MixtureMask":
        total = math.fsum(part.probability for part in self.parts)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"parts: got probabilities that sum to {total:g}, expected 1.")
        return self


MaskConfig = Annotated[BlockMask | RandomMask | AttentionMask | MixtureMask, Field(discriminator="kind")]
"""One mask."""


def _kind_or_list(value: object) -> str | None:
    """What tells a list of masks and the kinds of single ones apart, in files and in Python."""
    if isinstance(value, list | tuple):
        return "list"
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else None


MaskSetting = Annotated[
    Annotated[BlockMask, Tag("block")]
    | Annotated[RandomMask, Tag("random")]
    | Annotated[AttentionMask, Tag("attention")]
    | Annotated[MixtureMask, Tag("mixture")]
    | Annotated[tuple[MaskConfig, ...], Tag("list")],
    Discriminator(_kind_or_list),
]
"""What may stand in a method's settings: one mask for all global crops, or a list with one for each."""


class AttentionNeed(NamedTuple):
    """What masks must know of the teacher: arguments of `Encoder.forward`, a block and its rows for each map.

    Attributes:
        layers: block numbers from 1, ascending; a block of which both kinds of rows are needed stands twice.
        rows: the class token's row of each head, or all rows as a mean over the heads.
    """

    layers: tuple[int, ...]
    rows: tuple[AttentionRows, ...]


def needs_attention(config: MaskConfig | tuple[MaskConfig, ...]) -> bool:
    """Whether any of the masks is made from attention."""
    return bool(_attention_masks(config))


def attention_need(config: MaskConfig | tuple[MaskConfig, ...], depth: int) -> AttentionNeed | None:
    """The attention that masks ask of an encoder with `depth` blocks; None if they need none."""
    masks = _attention_masks(config)
    if not masks:
        return None
    layers, rows = zip(*sorted({(block, mask.rows) for mask in masks for block in mask.blocks(depth)}), strict=True)
    return AttentionNeed(layers, rows)


def _attention_masks(config: MaskConfig | tuple[MaskConfig, ...]) -> list[AttentionMask]:
    crops = config if isinstance(config, tuple) else (config,)
    return [mask for crop in crops for mask in _parts(crop) if isinstance(mask, AttentionMask)]


def _parts(config: MaskConfig) -> tuple[SingleMask, ...]:
    return tuple(part.mask for part in config.parts) if isinstance(config, MixtureMask) else (config,)


@dataclass(frozen=True)
class LoaderMasks:
    """What the loader computes beside the views of an image: the masks that need no teacher. Picklable.

    Attributes:
        crops: the mask of each global crop.
        grid: rows and columns of patches.
    """

    crops: tuple[MaskConfig, ...]
    grid: tuple[int, int]

    def __call__(self, views: tuple[np.ndarray, ...], generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Masks bool [G, N] under `MASK_KEY`, independent of each other; of mixtures also which part was chosen."""
        blocks = random.Random(int(generator.integers(2**63)))
        masks = np.zeros((len(self.crops), *self.grid), dtype=bool)
        chosen = np.zeros(len(self.crops), dtype=np.uint8)
        for crop, config in enumerate(self.crops):
            if isinstance(config, MixtureMask):
                chosen[crop] = generator.choice(len(config.parts), p=_normalised(config))
            part = _parts(config)[chosen[crop]]
            if not isinstance(part, AttentionMask):
                masks[crop] = draw_mask(part, self.grid, blocks, generator)
        drawn = {MASK_KEY: masks.reshape(len(self.crops), -1)}
        return drawn | {PART_KEY: chosen} if self.chooses_attention else drawn

    @property
    def chooses_attention(self) -> bool:
        """Whether the step must know which part of a mixture a crop has taken."""
        return any(isinstance(crop, MixtureMask) and needs_attention(crop) for crop in self.crops)


def _normalised(config: MixtureMask) -> np.ndarray:
    """The probabilities, with a sum of exactly 1."""
    given = np.array([part.probability for part in config.parts])
    return np.asarray(given / given.sum())


class _StepMask(NamedTuple):
    """An attention mask that is made for some neighbouring crops at once; its number in a mixture, else None."""

    crops: range
    part: int | None
    config: AttentionMask

    def span(self, rows: int) -> slice:
        """Where these crops lie in a stack with `rows` images of each crop."""
        return slice(self.crops.start * rows, self.crops.stop * rows)


class CropMasks:
    """The masks of all global crops of a batch.

    Attributes:
        crops: the mask of each global crop.
        need: the attention to ask of the teacher; None if there is no attention mask.
        extras: for `ViewPlan.extras`; None if all masks are made in the step.

    Args:
        config: one mask for all crops, or a tuple with one for each.
        num_crops: global crops G.
        grid: rows and columns of the patches that masks cover: the final grid of a Swin.
        depth: blocks of the teacher.
        has_class_token: whether the teacher has one.
        key: names the setting in errors.
    Raises:
        ConfigError: a number of masks that isn't the number of crops, masks that hide nothing on this grid, or
            attention that the teacher can't give.
    """

    def __init__(
        self,
        config: MaskConfig | tuple[MaskConfig, ...],
        num_crops: int,
        grid: tuple[int, int],
        depth: int,
        has_class_token: bool,
        key: str = "method.mask",
    ) -> None:
        # In the reference, leaky sums and the order of a rollout depend on whether crops have masks of their own.
        self._per_crop = isinstance(config, tuple)
        self.crops = config if isinstance(config, tuple) else (config,) * num_crops
        self.grid, self._depth = grid, depth
        if len(self.crops) != num_crops:
            raise ConfigError(
                f"{key}: got {len(self.crops)} masks for {num_crops} global crops. Give one for each, or a single one "
                "for all."
            )
        if needs_attention(config) and not has_class_token:
            raise ConfigError(
                f"{key}.kind: got attention, but this model has no class token whose attention could be followed. "
                "Choose block or random, or a vit_* model with a class token."
            )
        for crop, mask_of_crop in enumerate(self.crops):
            own_key = f"{key}[{crop}]" if self._per_crop else key
            for mask in _parts(mask_of_crop):
                if isinstance(mask, AttentionMask):
                    mask.check(self.num_patches, depth, own_key)
                else:
                    check_hides(mask.pred_ratio, mask.pred_ratio_var, self.num_patches, own_key)
        self.need = attention_need(config, depth)
        in_loader = any(not isinstance(crop, AttentionMask) for crop in self.crops)
        self.extras = LoaderMasks(self.crops, grid) if in_loader else None
        spans = [range(crop, crop + 1) for crop in range(num_crops)] if self._per_crop else [range(num_crops)]
        self._in_step = tuple(
            _StepMask(span, number if isinstance(self.crops[span.start], MixtureMask) else None, mask)
            for span in spans
            for number, mask in enumerate(_parts(self.crops[span.start]))
            if isinstance(mask, AttentionMask)
        )

    @property
    def num_patches(self) -> int:
        """Patches of a crop, N."""
        return self.grid[0] * self.grid[1]

    def draw(
        self,
        attention: Sequence[Float[Tensor, "GB ..."]],
        extras: Mapping[str, Tensor],
        progress: Progress,
    ) -> Bool[Tensor, "GB N"]:
        """The masks of a batch, True = hidden: all images of the first crop, then of the next.

        Args:
            attention: the teacher's, of all unmasked global crops in the same order; one map for each of
                `need.layers`, empty without a need.
            extras: of the batch.
            progress: where the run stands.
        """
        from_loader = None if self.extras is None else extras[MASK_KEY].transpose(0, 1).flatten(0, 1)
        if from_loader is not None and self.need is None:
            return from_loader
        mask = attention[0].new_zeros(len(attention[0]), self.num_patches, dtype=torch.bool)
        if from_loader is not None:
            mask |= from_loader
        rows = len(mask) // len(self.crops)
        for made in self._in_step:
            scores = self._scores(made, attention, self._per_crop)
            draws = draw_attention(made.config, progress, rows, made.crops, self.num_patches).to(mask.device)
            drawn = attention_mask(made.config, scores, draws)
            span = made.span(rows)
            if made.part is not None:
                # Where a mixture has chosen this part, the loader has hidden nothing.
                drawn &= (extras[PART_KEY].T.flatten()[span] == made.part).unsqueeze(1)
            mask[span] |= drawn
        return mask

    def check_scored(self, key: str) -> None:
        """See that patches have scores to select pairs by, for the setting called `key`.

        Raises:
            ConfigError: a crop whose mask isn't made from attention.
        """
        if any(not isinstance(crop, AttentionMask) for crop in self.crops):
            raise ConfigError(
                f"{key}: it selects patches by the scores of attention masks, but not every global crop has such a "
                "mask. Choose method.mask.kind=attention, or leave it out."
            )

    def pair_scores(self, attention: Sequence[Float[Tensor, "GB ..."]]) -> Float32[Tensor, "GB N"]:
        """The scores by which the contrastive term selects its patches, for all global crops (see `check_scored`).

        They are those of the masks, except that in the reference a rollout over the `last` blocks always descends.
        """
        return torch.cat([self._scores(made, attention, last_descends=True) for made in self._in_step])

    def sample(self, count: int, seed: int) -> Bool[Tensor, "count N"] | None:
        """Masks of the first crop of `count` images as the loader draws them; None if a teacher must look first."""
        if self.extras is None or needs_attention(self.crops[0]):
            return None
        draws = (self.extras((), numpy_generator(seed, "masks", image))[MASK_KEY][0] for image in range(count))
        return torch.from_numpy(np.stack(list(draws)))

    def _scores(self, made: _StepMask, attention: Sequence[Tensor], last_descends: bool) -> Tensor:
        assert self.need is not None
        span = made.span(len(attention[0]) // len(self.crops))
        needed = zip(*self.need, attention, strict=True)
        maps = {block: each[span] for block, rows, each in needed if rows == made.config.rows}
        return attention_scores(made.config, maps, self.num_patches, self._depth, last_descends)
