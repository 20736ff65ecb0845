"""LocalMIM: four depths of the encoder predict the hidden patches, shallow ones finely, deep ones coarsely.

Paper: Masked Image Modeling with Local Multi-Scale Reconstruction, arXiv 2303.05251.

    views     uint8 [B, 3, S, S] -> normalised images [B, 3, S, S]
    mask      keep the int(N (1 - 0.75)) patches of smallest noise; for a Swin one mask for the whole batch
    encode    visible patches only; tokens [B, 1 + n, D] after blocks 2, 4, L - 2 and L, each through a norm of its own
    predict   at each of these taps a decoder of one block, then 4, 2, 1 or 1/2 cells along a patch -> [B, cells, V]
    target    HOG of the image at that cell size, or its pixels
    compare   mean squared error over the cells of hidden patches, added up over the taps

A Swin's four stages have the scales already: taps are its maps after each stage and the merging that follows.

Deviations, equal in value: hidden patches are never projected; decoders work for hidden patches where they can; the
last tap's norm is the encoder's own final norm, so an exported encoder gives the features that the last decoder saw.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Annotated, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from halfseen.backbones.base import Encoder, Features
from halfseen.backbones.initialise import init_localmim
from halfseen.backbones.scale_decoders import SCALES, ScaleDecoder, scale_head
from halfseen.backbones.swin import SwinEncoder
from halfseen.backbones.visible_swin import Coords, check_visible, encode_visible, mask_grid, tap_shapes
from halfseen.backbones.vit import ViTEncoder
from halfseen.errors import ConfigError
from halfseen.idle import Need, refuse_idle
from halfseen.masking.random import (
    RandomSplit,
    count_hidden_localmim,
    count_visible,
    mask_by_rank,
    random_visible_ids,
)
from halfseen.methods.base import (
    Antialias,
    CropRatio,
    CropScale,
    HFlip,
    Interpolation,
    Method,
    VFlip,
    one_crop,
)
from halfseen.ops.local_backward import backward_at_once
from halfseen.ops.losses import cell_mse
from halfseen.ops.patches import patch_grid, patchify, pixel_mask, unpatchify
from halfseen.ops.pixels import Channels, normalise
from halfseen.ops.randomness import step_noise, torch_generator
from halfseen.targets.hog import HOGConfig, HOGTarget
from halfseen.targets.pixels import PixelConfig, pixel_target, restore_patches, standardise_patches
from halfseen.types import Batch, GroupKey, Progress, Reconstruction, StepOutput, ViewPlan

Target = Annotated[HOGConfig | PixelConfig, Field(discriminator="kind")]

DEFAULT_SCALES = (4.0, 2.0, 1.0, 0.5)

Hidden = RandomSplit | Bool[Tensor, "N"]
"""What is hidden: for a ViT a split of each image's patches; for a Swin one mask for all, on the CPU, True = hidden."""


class LocalMIMConfig(BaseModel):
    """What LocalMIM may be told; the defaults are the official ViT code's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["localmim"] = Field("localmim", description="the method: localmim")
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of patches that are hidden, r")
    taps: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="ViT: blocks (from 1, ascending) after which a decoder predicts; the last must be the model's "
        "last; null = 2, 4, depth - 2 and depth. A Swin's taps are its stages",
    )
    scales: tuple[float, ...] = Field(
        DEFAULT_SCALES,
        min_length=1,
        description="ViT: predicted cells per patch along one axis at each tap: 8, 4, 2, 1 or 0.5. A cell has "
        "patch_size / scale pixels, which must be whole",
    )
    branch_weights: tuple[float, ...] | None = Field(
        None, description="factor of each tap's loss in the sum, first tap first; null = 1 for all"
    )
    loss_reduction: Literal["sum", "mean"] = Field(
        "sum", description="how the losses of the taps become one, in training and in the log: sum (paper) or mean"
    )
    target: Target = Field(
        HOGConfig(kind="hog"), description="what is predicted of each cell: hog (its gradients' histograms) or pixels"
    )
    norm_pix_loss: bool = Field(
        False, description="for pixels: standardise those of each cell; the published Swin does, the code's default not"
    )
    decoder_embed_dim: int = Field(
        256, ge=4, multiple_of=4, description="width of the decoders' tokens; 128 for Swins, halved at their first tap"
    )
    decoder_depth: int = Field(1, ge=1, description="blocks of each decoder")
    decoder_num_heads: int = Field(
        8, ge=1, description="attention heads of the decoders; must divide their width; 4 for Swins"
    )
    coords: Coords = Field(
        "reference",
        description="Swin: where visible tokens are taken to lie: reference (the official code's places, wrong in the "
        "middle stages) or fixed (where they lie in the image; recommended unless a published run is continued)",
    )
    exact_ratio: bool = Field(
        False, description="Swin: hide int(r N) patches; false hides one more, as the official code does"
    )
    crop_scale: CropScale = (0.2, 1.0)
    crop_ratio: CropRatio = (3 / 4, 4 / 3)
    hflip: HFlip = 0.5
    vflip: VFlip = 0.0
    interpolation: Interpolation = "bicubic"
    antialias: Antialias = True

    @model_validator(mode="after")
    def _check(self) -> "LocalMIMConfig":
        if self.taps is not None:
            if self.taps[0] < 1 or any(first >= second for first, second in pairwise(self.taps)):
                raise ValueError(f"taps: got {list(self.taps)}; block numbers from 1 on must ascend, each once.")
            if len(self.taps) != len(self.scales):
                raise ValueError(
                    f"scales: got {len(self.scales)} for {len(self.taps)} taps. Give one scale for each block in taps."
                )
        unknown = [scale for scale in self.scales if scale not in SCALES]
        if unknown:
            raise ValueError(f"scales: got {unknown}, allowed are 8, 4, 2, 1 and 0.5 cells per patch along one axis.")
        if self.branch_weights is not None and min(self.branch_weights, default=0) <= 0:
            raise ValueError(
                f"branch_weights: got {list(self.branch_weights)}; each must be above 0. To do without a tap, leave it "
                "out of taps and scales."
            )
        refuse_idle(self, [Need("norm_pix_loss", isinstance(self.target, PixelConfig), "target.kind=hog")])
        return self


class Tap(NamedTuple):
    """A place in the encoder where a decoder predicts.

    Attributes:
        block: number of the last block before it, from 1 over all stages.
        side: tokens along one axis of the encoder's map there.
        width: of these tokens.
        scale: cells per token along one axis.
        decoder_dim: width of its decoder.
    """

    block: int
    side: int
    width: int
    scale: float
    decoder_dim: int

    @property
    def cells(self) -> int:
        """Predicted cells along one axis."""
        return int(self.side * self.scale)


class Seen(NamedTuple):
    """What is visible at one tap.

    Attributes:
        tokens: float [B, P + n, C], prefix and visible tokens after the tap's norm.
        visible_ids: int64 [B, n], row-major places of the visible tokens; [1, n] where all images share them.
        hidden_ids: int64 [B, m] or [1, m], those of the hidden ones.
    """

    tokens: Tensor
    visible_ids: Tensor
    hidden_ids: Tensor


class LocalMIM(Method):
    """LocalMIM around a plain ViT or a Swin.

    Args:
        config: the method's settings.
        encoder: initialised here as the original; a ViT's positions become the fixed sine-cosine table.
        image_size: side of the views in pixels.
        mean, std: normalisation of the pixels, per colour, on the scale 0 to 1.
        seed: of the initial weights and of HOG's bias.
    Raises:
        ConfigError: an encoder that can't drop patches, taps that it doesn't have, scales that don't fit patch and
            grid, decoder heads that don't divide its width, a mask that hides all or nothing, or settings of the other
            kind of encoder.
        ShapeError: an image that is not made of whole patches.
    """

    name = "localmim"

    def __init__(
        self, config: LocalMIMConfig, encoder: Encoder, image_size: int, mean: Channels, std: Channels, seed: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.mean, self.std = mean, std
        if isinstance(encoder, SwinEncoder):
            places = _stages(config, encoder)
            self.grid, self.mask_size = mask_grid(encoder), encoder.stride
            self.num_hidden = count_hidden_localmim(self.num_patches, config.mask_ratio, config.exact_ratio)
        elif isinstance(encoder, ViTEncoder):
            self.grid, self.mask_size = patch_grid(image_size, image_size, encoder.patch_size), encoder.patch_size
            places = _blocks(config, encoder, self.grid[0])
            self.num_hidden = self.num_patches - count_visible(self.num_patches, config.mask_ratio)
        else:
            raise ConfigError(
                "model.name: LocalMIM drops patches, which this model can't. Choose a plain ViT (vit_*) or a Swin "
                "(swin_*)."
            )
        _check(config, places)
        final_norm = encoder.trunk.norm
        if not isinstance(final_norm, nn.LayerNorm):
            raise ConfigError(
                "model.final_norm: got pooled, but LocalMIM's last tap needs a norm over every token. Leave it out."
            )
        self.taps = tuple(place.block for place in places)
        self.cell_sizes = tuple(image_size // place.cells for place in places)
        self.gone = 0
        self.view = one_crop(config, image_size)
        self.encoder = encoder
        # The last tap's norm is the encoder's own.
        self.norm = nn.ModuleList(nn.LayerNorm(place.width, eps=final_norm.eps) for place in places[:-1])
        self.decoder = nn.ModuleList(
            self._build_decoder(place, size) for place, size in zip(places, self.cell_sizes, strict=True)
        )
        with torch.no_grad():
            init_localmim(encoder, self.norm, self.decoder, torch_generator(seed, "weights"))
        target = config.target
        self.hog: HOGTarget | None = None
        if isinstance(target, HOGConfig):
            self.hog = HOGTarget(self.cell_sizes, target.bins, target.bias, torch_generator(seed, "hog"), target.fp32)

    @property
    def num_patches(self) -> int:
        """Patches of an image on the grid of the mask."""
        return self.grid[0] * self.grid[1]

    @property
    def live(self) -> range:
        """Numbers of the branches that still predict, from 0."""
        return range(self.gone, len(self.taps))

    def view_plan(self) -> ViewPlan:
        """One view."""
        return ViewPlan(views=(self.view,))

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = normalise(batch.views[0], self.mean, self.std)
        return self.compare(images, self._hide(progress, len(images), images.device))

    def compare(self, images: Float[Tensor, "B 3 H W"], hidden: Hidden) -> StepOutput:
        """Loss of normalised images of which `hidden` isn't seen."""
        # First, because what it computes in between would otherwise stand in memory beside the encoder's activations.
        histograms = None if self.hog is None else self.hog(images, start=self.gone)
        seen = self.see(images, hidden, self.live)
        return self.score(seen, self._targets(images, seen, histograms))

    def score(self, seen: Sequence[Seen], targets: Iterable[Float[Tensor, "B _ _"]]) -> StepOutput:
        """Loss of the living branches, from what they see and the targets of the cells that each predicts."""
        losses, mean_losses = [], []
        for branch, at, target in zip(self.live, seen, targets, strict=True):
            decoder = self._branch(branch)
            weights = decoder.weights(at.hidden_ids)
            term = partial(_branch_loss, decoder, at, target, weights)
            losses.append(backward_at_once(term, at.tokens, list(decoder.parameters())))
            mean_losses.append(cell_mse(target.mean().expand_as(target), target, weights))
        loss = self._join(losses)
        metrics = {
            f"loss_block{self.taps[branch]}": one.detach() for branch, one in zip(self.live, losses, strict=True)
        }
        metrics["mean_loss"] = self._join(mean_losses)
        metrics["hidden_share"] = mean_losses[0].new_full((), self.num_hidden / self.num_patches)
        return StepOutput(loss, metrics)

    def see(self, images: Float[Tensor, "B 3 H W"], hidden: Hidden, branches: Sequence[int]) -> list[Seen]:
        """Visible tokens at the taps of some branches, given in ascending order."""
        if isinstance(hidden, RandomSplit):
            return self._see_blocks(images, hidden, branches)
        return self._see_stages(images, hidden, branches)

    def encoders(self) -> Mapping[str, Encoder]:
        """The one encoder."""
        return {"student": self.encoder}

    def parameter_group(self, name: str, parameter: nn.Parameter) -> GroupKey:
        """No decay for vectors and biases; for a Swin none for bias tables and mask tokens either, as officially."""
        decay = parameter.ndim > 1 and not name.endswith(".bias")
        if isinstance(self.encoder, SwinEncoder):
            decay = decay and "position_bias" not in name and "token" not in name
        return GroupKey(decay=decay)

    def freezing_unit(self, name: str) -> int:
        """A branch freezes with the block after which it leaves."""
        part, *rest = name.split(".")
        return self.taps[int(rest[0])] if part in ("norm", "decoder") else super().freezing_unit(name)

    def drop_branches(self, count: int) -> None:
        """The first branches are neither computed nor part of the loss from now on; the last one always stays."""
        self.gone = min(count, len(self.taps) - 1)

    def sample_masks(self, count: int, seed: int) -> Bool[Tensor, "count 1 H W"]:
        """Hidden pixels of `count` images; for a Swin each of them stands for a batch."""
        noise = torch.rand(count, self.num_patches, generator=torch_generator(seed, "masks"))
        if isinstance(self.encoder, SwinEncoder):
            mask = mask_by_rank(noise.argsort(dim=1), self.num_hidden)
        else:
            mask = random_visible_ids(noise, self.num_patches - self.num_hidden).mask
        return pixel_mask(mask, self.grid, self.mask_size)

    @torch.no_grad()
    def reconstruct(
        self, images: Float[Tensor, "B 3 H W"], seed: int, mask_ratio: float | None = None
    ) -> Reconstruction | None:
        """The finest predictions, of all patches; None for HOG, which can't be turned into pixels."""
        if isinstance(self.config.target, HOGConfig):
            return None
        branch = min(range(len(self.taps)), key=self.cell_sizes.__getitem__)
        size = self.cell_sizes[branch]
        hidden, mask = self._hide_for_show(len(images), seed, mask_ratio, images.device)
        (seen,) = self.see(images, hidden, [branch])
        cells = self._branch(branch).predict_all(*seen).float()
        note = f"Predicted pixels after block {self.taps[branch]}, the finest of {len(self.taps)} predictions."
        if self.config.norm_pix_loss:
            cells = restore_patches(cells, standardise_patches(patchify(images.float(), size))[1])
            note += (
                f" Trained on cells of {size} px standardised one by one; mean and contrast of each are taken from the "
                "true image, only its structure is predicted."
            )
        side = self.image_size // size
        return Reconstruction(
            images=images,
            prediction=unpatchify(cells, (side, side), size),
            pixel_mask=pixel_mask(mask, self.grid, self.mask_size),
            note=note,
        )

    def _branch(self, number: int) -> ScaleDecoder:
        return cast(ScaleDecoder, self.decoder[number])

    def _build_decoder(self, place: Tap, cell_size: int) -> ScaleDecoder:
        config, width = self.config, place.decoder_dim
        out_dim = 3 * (config.target.bins if isinstance(config.target, HOGConfig) else cell_size**2)
        swin = isinstance(self.encoder, SwinEncoder)
        return ScaleDecoder(
            place.width,
            place.side,
            nn.Linear(width, out_dim) if swin else scale_head(width, place.scale, out_dim),
            embed_dim=width,
            depth=config.decoder_depth,
            num_heads=config.decoder_num_heads,
            num_prefix_tokens=self.encoder.num_prefix_tokens,
        )

    def _hide(self, progress: Progress, rows: int, device: torch.device) -> Hidden:
        if isinstance(self.encoder, SwinEncoder):
            # One mask for each micro-batch of each process, which is what `row_start` tells apart.
            generator = torch_generator(progress.seed, progress.step, progress.row_start, "mask")
            return mask_by_rank(torch.randperm(self.num_patches, generator=generator), self.num_hidden)
        noise = step_noise(progress, rows, self.num_patches, "mask")
        return random_visible_ids(noise, self.num_patches - self.num_hidden).to(device)

    def _hide_for_show(
        self, rows: int, seed: int, mask_ratio: float | None, device: torch.device
    ) -> tuple[Hidden, Bool[Tensor, "B N"]]:
        """A mask as `_hide` draws it, at another ratio if one is given; and which patches of each image it hides."""
        config, N = self.config, self.num_patches
        ratio = config.mask_ratio if mask_ratio is None else mask_ratio
        generator = torch_generator(seed, "reconstruct")
        if isinstance(self.encoder, SwinEncoder):
            hidden = count_hidden_localmim(N, ratio, config.exact_ratio)
            mask = mask_by_rank(torch.randperm(N, generator=generator), hidden)
            return mask, mask.to(device).expand(rows, -1)
        split = random_visible_ids(torch.rand(rows, N, generator=generator), count_visible(N, ratio)).to(device)
        return split, split.mask

    def _see_blocks(self, images: Tensor, split: RandomSplit, branches: Sequence[int]) -> list[Seen]:
        last = len(self.taps) - 1
        before = [branch for branch in branches if branch != last]
        features: Features = self.encoder(
            images, visible_ids=split.visible_ids, layers=[self.taps[branch] for branch in before]
        )
        tokens = [
            self.norm[branch](torch.cat([raw.prefix, raw.patches], dim=1))
            for branch, raw in zip(before, features.layers, strict=True)
        ]
        if last in branches:
            tokens.append(torch.cat([features.prefix, features.patches], dim=1))
        return [Seen(each, split.visible_ids, split.hidden_ids) for each in tokens]

    def _see_stages(self, images: Tensor, mask: Tensor, branches: Sequence[int]) -> list[Seen]:
        assert isinstance(self.encoder, SwinEncoder)
        maps = encode_visible(self.encoder, images, mask, self.config.coords)
        norms = [*self.norm, self.encoder.trunk.norm]
        seen = []
        for branch in branches:
            found = maps[branch]
            seen.append(Seen(norms[branch](found.tokens), found.visible_ids, found.hidden_ids))
        return seen

    def _targets(self, images: Tensor, seen: Sequence[Seen], histograms: Sequence[Tensor] | None) -> Iterator[Tensor]:
        """The targets of the cells that each living branch predicts, in their order, out of HOG's or of pixels."""
        cells = [self._branch(branch).cells(at.hidden_ids) for branch, at in zip(self.live, seen, strict=True)]
        if histograms is None:
            for branch, ids in zip(self.live, cells, strict=True):
                every = ids.expand(len(images), -1)
                yield pixel_target(images, self.cell_sizes[branch], ids=every, standardise=self.config.norm_pix_loss)
            return
        rows = torch.arange(len(images), device=images.device)[:, None]
        for scale, ids in zip(histograms, cells, strict=True):
            yield scale[rows, ids]

    def _join(self, losses: Sequence[Tensor]) -> Tensor:
        """The losses of the living branches as one."""
        weights = self.config.branch_weights or (1.0,) * len(self.taps)
        total = torch.stack([weights[branch] * loss for branch, loss in zip(self.live, losses, strict=True)]).sum()
        return total / len(losses) if self.config.loss_reduction == "mean" else total


def _branch_loss(
    decoder: ScaleDecoder, seen: Seen, target: Tensor, weights: Tensor | None, tokens: Tensor
) -> Float[Tensor, ""]:
    """A branch's error with `tokens` in place of those of `seen`."""
    return cell_mse(decoder(tokens, seen.visible_ids, seen.hidden_ids), target, weights)


def _blocks(config: LocalMIMConfig, encoder: ViTEncoder, side: int) -> list[Tap]:
    """A ViT's taps.

    Raises:
        ConfigError: taps that don't ascend or end below the last block, scales that don't divide the patch, or
            settings for Swins.
    """
    depth = encoder.num_layers
    idle = [key for key in ("coords", "exact_ratio") if _departs(config, key)]
    if idle:
        raise ConfigError(f"method.{idle[0]}: has no effect on a ViT, only on a Swin. Leave it out.")
    blocks = config.taps or (2, 4, depth - 2, depth)
    if config.taps is None:
        if len(config.scales) != 4:
            raise ConfigError(
                f"method.taps: got none for {len(config.scales)} method.scales, and the default taps are four. Write "
                f"which blocks have these scales; the last is {depth}."
            )
        if depth < 7:
            raise ConfigError(
                f"method.taps: the default ones, 2, 4, depth - 2 and depth, are {', '.join(map(str, blocks))} in a "
                f"model of {depth} blocks and don't ascend. Use model.depth of at least 7, or write taps and their "
                f"scales, e.g. method.taps=[{max(1, depth // 2)},{depth}] method.scales=[2,1]."
            )
    if blocks[-1] != depth:
        raise ConfigError(
            f"method.taps: the last is {blocks[-1]}, but the model has {depth} blocks: "
            + ("no such block." if blocks[-1] > depth else "those above would learn nothing.")
            + f" End with {depth}, or set model.depth={blocks[-1]}."
        )
    for scale in config.scales:
        if not (encoder.patch_size / scale).is_integer():
            fitting = [f"{each:g}" for each in SCALES if (encoder.patch_size / each).is_integer()]
            raise ConfigError(
                f"method.scales: {scale:g} cells along a patch of {encoder.patch_size} px are not whole pixels. Scales "
                f"that fit: {', '.join(fitting)}; or choose another model.patch_size."
            )
    width = config.decoder_embed_dim
    return [
        Tap(block, side, encoder.embed_dim, scale, width) for block, scale in zip(blocks, config.scales, strict=True)
    ]


def _stages(config: LocalMIMConfig, encoder: SwinEncoder) -> list[Tap]:
    """A Swin's taps: one after each stage.

    Raises:
        ConfigError: windows that don't tile a stage, or settings for ViTs.
    """
    idle = [key for key in ("taps", "scales") if _departs(config, key)]
    if idle:
        raise ConfigError(
            f"method.{idle[0]}: has no effect on a Swin, whose taps are its stages, each with the scale it has. Leave "
            "it out; over a recipe for a ViT, write method.taps=null method.scales=[4,2,1,0.5]."
        )
    check_visible(encoder)
    blocks = accumulate(len(stage.blocks) for stage in encoder.trunk.layers)
    widths = [config.decoder_embed_dim // 2, *[config.decoder_embed_dim] * (len(encoder.trunk.layers) - 1)]
    return [
        Tap(block, shape.side, shape.width, 1.0, width)
        for block, shape, width in zip(blocks, tap_shapes(encoder), widths, strict=True)
    ]


def _departs(config: LocalMIMConfig, key: str) -> bool:
    return bool(getattr(config, key) != type(config).model_fields[key].default)


def _check(config: LocalMIMConfig, places: Sequence[Tap]) -> None:
    """See that decoders and weights fit the taps.

    Raises:
        ConfigError: if they don't.
    """
    for place in places:
        width, heads = place.decoder_dim, config.decoder_num_heads
        if width % heads or width % 4 or width % max(1, int(place.scale)):
            raise ConfigError(
                f"method.decoder_embed_dim: the decoder after block {place.block} has {width} channels, which "
                f"method.decoder_num_heads={heads}, 4 (positions) and {max(1, int(place.scale))} (scale) must divide. "
                "Choose another width or number of heads."
            )
    if config.branch_weights is not None and len(config.branch_weights) != len(places):
        raise ConfigError(
            f"method.branch_weights: got {len(config.branch_weights)} for {len(places)} taps (after blocks "
            f"{', '.join(str(place.block) for place in places)}). Give one for each."
        )
