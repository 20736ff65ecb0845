"""KAMIM: SimMIM whose L1 counts more where hand-crafted detectors find many keypoints.

Paper: Keypoint Aware Masked Image Modelling, arXiv 2407.13873.

    views     uint8 [B, 3, S, S]; the loader also ships keypoint densities [B, S / w_ps, S / w_ps]
    mask      cells of 32 px, ceil(0.6 * cells) of them hidden, spread to the encoder's patches [B, N]
    encode    patch embeddings at hidden places are the mask token -> tokens [B, N', D]
    predict   1x1 convolution and pixel shuffle, hidden tokens only -> [B, n, 3 * stride^2]
    compare   sum of w |prediction - image| over the number of hidden pixels and colours, w = exp((d - d_min) / T)

The loss is not divided by the weights, as published: it is larger than SimMIM's by their mean (about 20 times with
FAST at 8 px and T 0.25), which the gradient clip hides from the optimiser. `detector: null` is the paper's own SimMIM.
Deviation: hidden cells are drawn for the whole batch from the step's noise, not per sample in the loader.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from halfseen.backbones.base import Encoder
from halfseen.backbones.decoders import PixelShuffleDecoder
from halfseen.backbones.initialise import init_kamim
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
from halfseen.ops.losses import join_weights, masked_l1
from halfseen.ops.patches import gather_tokens, pixel_mask
from halfseen.ops.pixels import Channels, normalise
from halfseen.ops.randomness import step_noise, torch_generator
from halfseen.targets.keypoints import ChannelOrder, Detector, Footprint, KeypointWeight
from halfseen.targets.pixels import pixel_target
from halfseen.types import Batch, GroupKey, Progress, Reconstruction, StepOutput, ViewPlan

_KEYPOINT_KEYS = ("weight_patch_size", "temperature", "footprint", "channel_order", "normalize_weights")


class KAMIMConfig(BaseModel):
    """What KAMIM may be told; the defaults are those of the published checkpoints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["kamim"] = Field("kamim", description="the method: kamim")
    mask_ratio: float = Field(0.6, gt=0, lt=1, description="share of mask cells that are hidden, rounded up")
    mask_cell_size: int | None = Field(
        32,
        ge=1,
        description="side of a mask cell in pixels, P: a multiple of the patch size that divides the image side; "
        "null = one model patch",
    )
    detector: Detector | None = Field(
        "fast", description="keypoint detector with OpenCV's defaults: fast, sift or orb; null = no weights, SimMIM"
    )
    weight_patch_size: int = Field(
        8, ge=1, description="side of a weight cell in pixels, w_ps; the image side must be a multiple"
    )
    temperature: float = Field(
        0.25, gt=0, description="T: weights are exp(density / T); smaller counts keypoints more, at most exp(1 / T)"
    )
    footprint: Footprint = Field(
        "ring",
        description="pixels that a keypoint marks: ring = OpenCV's drawn circle, as the published numbers; "
        "point = the nearest pixel, as the paper's words",
    )
    channel_order: ChannelOrder = Field(
        "reference",
        description="gray picture for the detector: reference = red and blue exchanged, as the original; rgb = luma",
    )
    normalize_weights: Literal["none", "mean"] = Field(
        "none", description="divide the weights of an image by nothing (original) or by their mean"
    )
    decay: Literal["all", "matrices"] = Field(
        "all", description="what weight decay acts on: every parameter (original), or only those with two axes or more"
    )
    crop_scale: CropScale = (0.67, 1.0)
    crop_ratio: CropRatio = (3 / 4, 4 / 3)
    hflip: HFlip = 0.5
    vflip: VFlip = 0.5
    interpolation: Interpolation = "bilinear"
    antialias: Antialias = Field(
        False, description="filter with full support when a crop is shrunk, as Pillow does; the original does not"
    )

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "KAMIMConfig":
        refuse_idle(self, (Need(key, self.detector is not None, "detector=null") for key in _KEYPOINT_KEYS))
        return self

    @property
    def loss_weight(self) -> KeypointWeight | None:
        """The loss-weight part that these settings describe; None without a detector."""
        if self.detector is None:
            return None
        return KeypointWeight(
            kind="keypoints",
            detector=self.detector,
            weight_patch_size=self.weight_patch_size,
            temperature=self.temperature,
            footprint=self.footprint,
            channel_order=self.channel_order,
            normalize_weights=self.normalize_weights,
        )


class KAMIM(Method):
    """KAMIM around any encoder that can replace patches; published with plain ViTs and Swins.

    Args:
        config: the method's settings.
        encoder: initialised here as the original.
        image_size: side of the views in pixels.
        mean, std: normalisation of the pixels, per colour, on the scale 0 to 1.
        seed: of the initial weights.
    Raises:
        ConfigError: image, cell, patch and weight sizes that don't go together, or a mask that hides all or nothing.
    """

    name = "kamim"

    def __init__(
        self, config: KAMIMConfig, encoder: Encoder, image_size: int, mean: Channels, std: Channels, seed: int = 0
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
        self.loss_weight = config.loss_weight
        self.extras = self.loss_weight.extras(image_size, "method") if self.loss_weight else None

        self.encoder = encoder
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.mask_dim))
        self.decoder = PixelShuffleDecoder(encoder.embed_dim, encoder.stride)
        with torch.no_grad():
            init_kamim(encoder, self.mask_token, self.decoder, torch_generator(seed, "weights"))

    def view_plan(self) -> ViewPlan:
        """One view, and its keypoint densities."""
        return ViewPlan(views=(self.view,), extras=self.extras)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = normalise(batch.views[0], self.mean, self.std)
        noise = step_noise(progress, len(images), self.cells.num_cells, "mask")
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
        target = pixel_target(images, stride, ids=tokens.ids, order="channels_first")
        weights = tokens.weights
        if self.loss_weight is not None:
            of_keypoints = gather_tokens(self.loss_weight.of_patches(extras, stride), tokens.ids)  # [B, n, k, k]
            weights = join_weights(weights, of_keypoints)
        hidden_pixels = len(images) * self.cells.num_hidden_patches * encoder.patch_size**2

        def l1(predicted: Tensor, weights: Tensor | None) -> Tensor:
            return masked_l1(predicted, target, num_hidden_pixels=hidden_pixels, weights=weights)

        loss = l1(prediction, weights)
        with torch.no_grad():
            l1_mean = l1(prediction, tokens.weights)
            metrics = {
                "l1_mean": l1_mean,
                "weight_gain": loss.detach() / l1_mean,
                "mean_loss": l1(target.mean().expand_as(target), weights),
                "hidden_share": mask.float().mean(),
                "prediction_std": prediction.float().std(),
                "target_std": target.std(),
            }
        return StepOutput(loss, metrics)

    def encoders(self) -> Mapping[str, Encoder]:
        """The one encoder."""
        return {"student": self.encoder}

    def parameter_group(self, name: str, parameter: nn.Parameter) -> GroupKey:
        """Everything is decayed, biases, norms, tokens and positions too, unless `decay` says "matrices"."""
        return GroupKey(decay=self.config.decay == "all" or (parameter.ndim > 1 and not name.endswith(".bias")))

    def sample_masks(self, count: int, seed: int) -> Bool[Tensor, "count 1 H W"]:
        """Hidden pixels of `count` images, cell by cell."""
        noise = torch.rand(count, self.cells.num_cells, generator=torch_generator(seed, "masks"))
        mask = self.cells.patch_mask(self.cells.hide(noise))
        return pixel_mask(mask, self.cells.patch_grid, self.encoder.patch_size)

    @torch.no_grad()
    def reconstruct(
        self, images: Float[Tensor, "B 3 H W"], seed: int, mask_ratio: float | None = None
    ) -> Reconstruction:
        """The whole picture as the decoder sees it, hidden and visible parts alike."""
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
        return CellGrid.of(self.image_size, cell_size, patch_size, mask_ratio)
