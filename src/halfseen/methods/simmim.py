"""SimMIM: hidden patches are replaced by a mask token inside the encoder, and their raw pixels regressed with L1.

Papers: SimMIM, arXiv 2111.09886 (the defaults here: official ViT and Swin); Diminishing Returns in Self-Supervised
Learning, arXiv 2512.03862 (ViNy: mask_ratio 0.5, mask_cell_size null, mask_rounding floor, decoder linear,
divide_twice true, every parameter decayed).

    views     uint8 [B, 3, S, S] -> normalised images [B, 3, S, S]
    mask      cells of 32 px, ceil(0.6 * cells) of them hidden, spread to the encoder's patches [B, N]
    encode    patch embeddings at hidden places are the mask token -> tokens [B, N', D]
    predict   one linear layer, hidden tokens only -> [B, n, 3 * stride^2]
    compare   mean |prediction - image| over hidden pixels and colours

With `target.kind=hog` the layer predicts histograms of oriented gradients, [B, n, (stride / cell)^2 * 3 * bins], and
they are compared by squared error: target and loss of MaskFeat, arXiv 2112.09133.

Deviation: hidden cells are drawn for the whole batch from the step's noise, not per sample in the loader; only tokens
that enter the loss are decoded (the same value).
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from halfseen.backbones.base import Encoder
from halfseen.backbones.decoders import LinearPatchDecoder, PixelShuffleDecoder
from halfseen.backbones.initialise import init_simmim
from halfseen.backbones.swin import SwinEncoder
from halfseen.errors import ConfigError
from halfseen.idle import Need, refuse_idle
from halfseen.masking.random import CellGrid
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
from halfseen.methods.guide import AttentionGuide, Guide
from halfseen.ops.losses import join_weights, masked_l1
from halfseen.ops.patches import PixelOrder, gather_tokens, pixel_mask
from halfseen.ops.pixels import Channels, normalise
from halfseen.ops.randomness import step_noise, torch_generator
from halfseen.targets.hog import PatchHOG, PatchHOGConfig, PatchTarget
from halfseen.targets.keypoints import KeypointWeight, LossWeight, UniformWeight
from halfseen.targets.pixels import PixelConfig, pixel_target
from halfseen.types import Batch, GroupKey, Progress, Reconstruction, StepOutput, ViewPlan


class SimMIMConfig(BaseModel):
    """What SimMIM may be told; the defaults are the official code's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["simmim"] = Field("simmim", description="the method: simmim")
    mask_ratio: float = Field(0.6, gt=0, lt=1, description="share of mask cells that are hidden (ViNy: 0.5)")
    mask_cell_size: int | None = Field(
        32,
        ge=1,
        description="side of a mask cell in pixels (mask patch size, m): a multiple of the patch size that divides the "
        "image side; null = one model patch (ViNy)",
    )
    mask_rounding: Literal["ceil", "floor"] = Field(
        "ceil", description="how cells * ratio becomes a number: ceil (official) or floor (ViNy)"
    )
    decoder: Literal["pixel_shuffle", "linear"] = Field(
        "pixel_shuffle",
        description="head from a token to its pixels: pixel_shuffle = 1x1 convolution in (colour, row, column) order "
        "(official); linear = linear layer in (row, column, colour) order (ViNy)",
    )
    target: PatchTarget = Field(
        PixelConfig(kind="pixels"),
        description="what is predicted of each hidden patch: its pixels, or hog (histograms of its gradients, with the "
        "mean squared error)",
    )
    divide_twice: bool = Field(
        False, description="divide the mean error once more by the number of hidden tokens per image (ViNy)"
    )
    loss_weight: LossWeight = Field(
        UniformWeight(kind="uniform"),
        description="how much each hidden pixel counts: uniform, or keypoints as in KAMIM",
    )
    decay_exclude_position_bias: bool = Field(
        False, description="keep relative position bias tables out of the weight decay (the official code decays them)"
    )
    attention_mask: AttentionGuide | None = Field(
        None,
        description="hide what an encoder attends to instead of random places, the same number of them (AttMask); "
        "null = random",
    )
    crop_scale: CropScale = (0.67, 1.0)
    crop_ratio: CropRatio = (3 / 4, 4 / 3)
    hflip: HFlip = 0.5
    vflip: VFlip = Field(0.0, description="probability of a vertical flip (KAMIM's SimMIM: 0.5)")
    interpolation: Interpolation = "bilinear"
    antialias: Antialias = Field(
        True, description="filter with full support when a crop is shrunk, as Pillow does (KAMIM's SimMIM: no)"
    )

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "SimMIMConfig":
        refuse_idle(self, [Need("loss_weight", isinstance(self.target, PixelConfig), "target.kind=hog")])
        return self


class SimMIM(Method):
    """SimMIM around any encoder that can replace patches.

    Args:
        config: the method's settings.
        encoder: initialised here as its original was (official ViT, Swin, ViNy; a plain ViT as KAMIM's).
        image_size: side of the views in pixels.
        mean, std: normalisation of the pixels, per colour, on the scale 0 to 1.
        seed: of the initial weights.
    Raises:
        ConfigError: image, cell, patch and weight sizes that don't go together, a mask that hides all or nothing, HOG
            cells that don't divide an output token's square, or a setting about bias tables for an encoder without
            them.
    """

    name = "simmim"

    def __init__(
        self,
        config: SimMIMConfig,
        encoder: Encoder,
        image_size: int,
        mean: Channels,
        std: Channels,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.mean, self.std = mean, std
        if image_size % encoder.stride:
            raise ConfigError(
                f"data.image_size: {image_size} px is no multiple of {encoder.stride}, the pixels that one output "
                f"token of this model stands for. Choose {max(1, image_size // encoder.stride) * encoder.stride}."
            )
        self.cells = self._cell_grid(config.mask_ratio, encoder.patch_size)
        self.view = one_crop(config, image_size)
        weight = config.loss_weight
        self.extras = weight.extras(image_size, "method.loss_weight") if isinstance(weight, KeypointWeight) else None

        tables = any(name.endswith("relative_position_bias_table") for name, _ in encoder.named_parameters())
        if config.decay_exclude_position_bias and not tables:
            raise ConfigError(
                "method.decay_exclude_position_bias: got true, but this model has no relative position bias tables. "
                "Leave it out, or choose a simmim_vit_* or swin_* model."
            )

        self.encoder = encoder
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.mask_dim))
        self.hog = None
        side, channels = encoder.stride, 3
        if isinstance(config.target, PatchHOGConfig):
            self.hog = PatchHOG(config.target, encoder.stride, torch_generator(seed, "hog"))
            side, channels = self.hog.cells_per_side, self.hog.channels
        self.decoder: PixelShuffleDecoder | LinearPatchDecoder
        self.pixel_order: PixelOrder
        if config.decoder == "pixel_shuffle":
            self.decoder = PixelShuffleDecoder(encoder.embed_dim, side, channels)
            self.pixel_order = "channels_first"
        else:
            self.decoder = LinearPatchDecoder(encoder.embed_dim, side, channels)
            self.pixel_order = "channels_last"
        with torch.no_grad():
            init_simmim(encoder, self.mask_token, self.decoder, torch_generator(seed, "weights"))
        guide = config.attention_mask
        self.guide = None if guide is None else Guide(guide, encoder, mean, std, self.cells.patches_per_cell)

    def view_plan(self) -> ViewPlan:
        """One view, and keypoint densities if the loss is weighted by them."""
        return ViewPlan(views=(self.view,), extras=self.extras)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = normalise(batch.views[0], self.mean, self.std)
        noise = step_noise(progress, len(images), self.cells.num_cells, "mask")
        if self.guide is not None:
            noise = self.guide.noise(images, noise, progress)
        hidden_cells = self.cells.hide(noise).to(images.device, non_blocking=True)
        return self.compare(images, hidden_cells, batch.extras)

    def compare(
        self, images: Float[Tensor, "B 3 H W"], hidden_cells: Int64[Tensor, "B n"], extras: Mapping[str, Tensor]
    ) -> StepOutput:
        """Loss of normalised images whose `hidden_cells` (row-major numbers of mask cells) are hidden."""
        encoder, stride = self.encoder, self.encoder.stride
        mask = self.cells.patch_mask(hidden_cells)
        features = encoder(images, mask=mask, mask_token=self.mask_token)

        tokens = self.cells.tokens_in_loss(hidden_cells, stride // encoder.patch_size)
        prediction = self.decoder(gather_tokens(features.patches, tokens.ids))  # [B, n, 3 * stride^2]
        if self.hog is None:
            target = pixel_target(images, stride, ids=tokens.ids, order=self.pixel_order)
        else:
            target = self.hog(images, tokens.ids)  # [B, n, (stride / cell)^2 * 3 * bins]

        weights = tokens.weights
        if isinstance(self.config.loss_weight, KeypointWeight):
            density = self.config.loss_weight.of_patches(extras, stride)  # [B, N', k, k]
            weights = join_weights(weights, gather_tokens(density, tokens.ids))
        # ViNy's mean error is divided again by the number of hidden tokens of an image.
        hidden_tokens = self.cells.num_hidden_patches * (encoder.patch_size / stride) ** 2
        divisor = hidden_tokens if self.config.divide_twice else 1.0
        hidden_pixels = len(images) * self.cells.num_hidden_patches * encoder.patch_size**2

        def error(predicted: Tensor, weights: Tensor | None) -> Tensor:
            if self.hog is not None:
                return self.hog.mse(predicted, target, weights)
            return masked_l1(
                predicted, target, num_hidden_pixels=hidden_pixels, weights=weights, order=self.pixel_order
            )

        loss = error(prediction, weights) / divisor
        with torch.no_grad():
            metrics = {
                "l1_mean" if self.hog is None else "mse": (
                    loss * divisor if weights is tokens.weights else error(prediction, tokens.weights)
                ),
                "mean_loss": error(target.mean().expand_as(target), weights) / divisor,
                "hidden_share": mask.float().mean(),
                "prediction_std": prediction.float().std(),
                "target_std": target.std(),
            }
        return StepOutput(loss, metrics)

    def encoders(self) -> Mapping[str, Encoder]:
        """The one encoder; the one whose attention guides the masks is a means only."""
        return {"student": self.encoder}

    def start_averages(self) -> None:
        """The guide starts as the encoder does."""
        if self.guide is not None:
            self.guide.start(self.encoder)

    def after_step(self, progress: Progress) -> None:
        """The guide follows."""
        if self.guide is not None:
            self.guide.follow(self.encoder)

    def parameter_group(self, name: str, parameter: nn.Parameter) -> GroupKey:
        """No decay for vectors, biases, class token and positions; for Swin, for the mask token neither.

        The official code decays a ViT's mask token (it is 3-D and not in its list) and all relative position bias
        tables (Swin's exclusion never matches its prefix); `decay_exclude_position_bias` mends the latter.
        """
        own_name = name.rsplit(".", 1)[-1]
        if parameter.ndim <= 1 or name.endswith(".bias") or own_name in ("cls_token", "reg_token", "pos_embed"):
            return GroupKey(decay=False)
        if own_name == "mask_token":
            return GroupKey(decay=not isinstance(self.encoder, SwinEncoder))
        if self.config.decay_exclude_position_bias and own_name == "relative_position_bias_table":
            return GroupKey(decay=False)
        return GroupKey(decay=True)

    def sample_masks(self, count: int, seed: int) -> Bool[Tensor, "count 1 H W"]:
        """Hidden pixels of `count` images, cell by cell."""
        noise = torch.rand(count, self.cells.num_cells, generator=torch_generator(seed, "masks"))
        mask = self.cells.patch_mask(self.cells.hide(noise))
        return pixel_mask(mask, self.cells.patch_grid, self.encoder.patch_size)

    @torch.no_grad()
    def reconstruct(
        self, images: Float[Tensor, "B 3 H W"], seed: int, mask_ratio: float | None = None
    ) -> Reconstruction | None:
        """The whole picture as the decoder sees it, hidden and visible parts alike; None for HOG, no picture."""
        if self.hog is not None:
            return None
        grid = self.cells if mask_ratio is None else self._cell_grid(mask_ratio, self.encoder.patch_size)
        noise = torch.rand(len(images), grid.num_cells, generator=torch_generator(seed, "reconstruct"))
        mask = grid.patch_mask(grid.hide(noise).to(images.device))
        features = self.encoder(images, mask=mask, mask_token=self.mask_token)
        return Reconstruction(
            images=images,
            prediction=self.decoder.picture(features.patches, features.grid).float(),
            pixel_mask=pixel_mask(mask, grid.patch_grid, self.encoder.patch_size),
            note="Predicted pixels as they are; the loss saw hidden ones only.",
        )

    def _cell_grid(self, mask_ratio: float, patch_size: int) -> CellGrid:
        cell_size = patch_size if self.config.mask_cell_size is None else self.config.mask_cell_size
        return CellGrid.of(self.image_size, cell_size, patch_size, mask_ratio, self.config.mask_rounding)
