"""MAE: most patches are dropped, the encoder sees the rest, a small decoder predicts the pixels of the dropped ones.

Paper: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377.

    views     uint8 [B, 3, S, S] -> normalised images [B, 3, S, S]
    mask      keep the int(N (1 - 0.75)) patches of smallest noise
    encode    visible patches only, with fixed sine-cosine positions -> [B, 1 + n, D]
    predict   decoder over visible tokens and mask tokens -> [B, N - n, 3 * patch^2], hidden patches only
    compare   mean squared error to the pixels, standardised patch by patch if `norm_pix_loss`

With `target.kind=hog` it predicts histograms of oriented gradients, [B, N - n, (patch / cell)^2 * 3 * bins]: the target
of MaskFeat, arXiv 2112.09133.

Deviations, equal in value: hidden patches are never projected; the decoder's head runs on hidden patches only, and
tokens are not shuffled back, since attention does not mind their order.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from halfseen.backbones.base import Encoder, Features
from halfseen.backbones.decoders import MAEDecoder
from halfseen.backbones.initialise import init_mae
from halfseen.errors import ConfigError
from halfseen.idle import Need, refuse_idle
from halfseen.masking.random import RandomSplit, count_visible, random_visible_ids
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
from halfseen.ops.losses import masked_mse
from halfseen.ops.patches import gather_tokens, patch_grid, patchify, pixel_mask
from halfseen.ops.pixels import Channels, normalise
from halfseen.ops.randomness import step_noise, torch_generator
from halfseen.targets.hog import PatchHOG, PatchHOGConfig, PatchTarget
from halfseen.targets.keypoints import KeypointWeight, LossWeight, UniformWeight
from halfseen.targets.pixels import PixelConfig, pixel_target, restore_patches, standardise_patches
from halfseen.types import Batch, GroupKey, Progress, Reconstruction, StepOutput, ViewPlan


class MAEConfig(BaseModel):
    """What MAE may be told; the defaults are the official code's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["mae"] = Field("mae", description="the method: mae")
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of patches that are hidden, r")
    target: PatchTarget = Field(
        PixelConfig(kind="pixels"),
        description="what is predicted of each hidden patch: its pixels, or hog (histograms of its gradients)",
    )
    norm_pix_loss: bool = Field(
        False,
        description="standardise the target pixels of each patch; the best published weights do, the code's default "
        "does not",
    )
    decoder_embed_dim: int = Field(512, ge=4, multiple_of=4, description="width of the decoder's tokens")
    decoder_depth: int = Field(8, ge=1, description="number of decoder blocks")
    decoder_num_heads: int = Field(16, ge=1, description="attention heads of the decoder; must divide its width")
    decoder_mlp_ratio: float = Field(4.0, gt=0, description="width of the decoder's MLPs over its token width")
    decoder_norm_eps: float = Field(1e-6, gt=0, lt=1e-2, description="epsilon of the decoder's LayerNorms")
    loss_weight: LossWeight = Field(
        UniformWeight(kind="uniform"),
        description="how much each hidden pixel counts: uniform, or keypoints as in KAMIM",
    )
    attention_mask: AttentionGuide | None = Field(
        None,
        description="hide what an encoder attends to instead of random places, the same number of them (AttMask); "
        "null = random",
    )
    crop_scale: CropScale = (0.2, 1.0)
    crop_ratio: CropRatio = (3 / 4, 4 / 3)
    hflip: HFlip = 0.5
    vflip: VFlip = 0.0
    interpolation: Interpolation = "bicubic"
    antialias: Antialias = True

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "MAEConfig":
        pixels = isinstance(self.target, PixelConfig)
        refuse_idle(self, (Need(key, pixels, "target.kind=hog") for key in ("norm_pix_loss", "loss_weight")))
        return self


class MAE(Method):
    """MAE around a plain ViT.

    Args:
        config: the method's settings.
        encoder: initialised here as the original; its positions become the fixed sine-cosine table.
        image_size: side of the views in pixels.
        mean, std: normalisation of the pixels, per colour, on the scale 0 to 1.
        seed: of the initial weights.
    Raises:
        ConfigError: an encoder that can't drop patches, decoder heads that don't divide its width, a mask that hides
            all or nothing, weight cells that don't divide the image, or HOG cells that don't divide a patch.
        ShapeError: an image that is not made of whole patches.
    """

    name = "mae"

    def __init__(
        self, config: MAEConfig, encoder: Encoder, image_size: int, mean: Channels, std: Channels, seed: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.mean, self.std = mean, std
        self.grid = patch_grid(image_size, image_size, encoder.patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.num_visible = count_visible(self.num_patches, config.mask_ratio)
        if config.decoder_embed_dim % config.decoder_num_heads:
            raise ConfigError(
                f"method.decoder_num_heads: {config.decoder_num_heads} heads don't divide the decoder's width of "
                f"{config.decoder_embed_dim} (method.decoder_embed_dim). Choose a divisor."
            )
        self.view = one_crop(config, image_size)
        weight = config.loss_weight
        self.extras = weight.extras(image_size, "method.loss_weight") if isinstance(weight, KeypointWeight) else None

        self.hog = None
        side, channels = encoder.patch_size, 3
        if isinstance(config.target, PatchHOGConfig):
            self.hog = PatchHOG(config.target, encoder.patch_size, torch_generator(seed, "hog"))
            side, channels = self.hog.cells_per_side, self.hog.channels
        self.encoder = encoder
        self.decoder = MAEDecoder(
            encoder.embed_dim,
            self.grid,
            side,
            embed_dim=config.decoder_embed_dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_num_heads,
            mlp_ratio=config.decoder_mlp_ratio,
            num_prefix_tokens=encoder.num_prefix_tokens,
            norm_eps=config.decoder_norm_eps,
            channels=channels,
        )
        with torch.no_grad():
            init_mae(encoder, self.decoder, torch_generator(seed, "weights"))
        guide = config.attention_mask
        self.guide = None if guide is None else Guide(guide, encoder, mean, std)

    def view_plan(self) -> ViewPlan:
        """One view, and keypoint densities if the loss is weighted by them."""
        return ViewPlan(views=(self.view,), extras=self.extras)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = normalise(batch.views[0], self.mean, self.std)
        noise = step_noise(progress, len(images), self.num_patches, "mask")
        if self.guide is not None:
            noise = self.guide.noise(images, noise, progress)
        split = random_visible_ids(noise, self.num_visible).to(images.device)
        return self.compare(images, split, batch.extras)

    def compare(self, images: Float[Tensor, "B 3 H W"], split: RandomSplit, extras: Mapping[str, Tensor]) -> StepOutput:
        """Loss of normalised images of which the patches `split.visible_ids` are seen."""
        patch_size = self.encoder.patch_size
        features: Features = self.encoder(images, visible_ids=split.visible_ids)
        prediction = self.decoder(features.prefix, features.patches, split.visible_ids, split.hidden_ids)
        if self.hog is None:
            target = pixel_target(images, patch_size, ids=split.hidden_ids, standardise=self.config.norm_pix_loss)
        else:
            target = self.hog(images, split.hidden_ids)
        weights = None
        if isinstance(self.config.loss_weight, KeypointWeight):
            weights = gather_tokens(self.config.loss_weight.of_patches(extras, patch_size), split.hidden_ids)
        loss = masked_mse(prediction, target, weights=weights)
        with torch.no_grad():
            metrics = {
                "mse": loss.detach() if weights is None else masked_mse(prediction, target),
                "mean_loss": masked_mse(target.mean().expand_as(target), target, weights=weights),
                "hidden_share": split.mask.float().mean(),
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
        """No decay for vectors and biases; class and mask token (3-D) are decayed, as in the official code."""
        return GroupKey(decay=parameter.ndim > 1 and not name.endswith(".bias"))

    def sample_masks(self, count: int, seed: int) -> Bool[Tensor, "count 1 H W"]:
        """Hidden pixels of `count` images, patch by patch."""
        noise = torch.rand(count, self.num_patches, generator=torch_generator(seed, "masks"))
        return pixel_mask(random_visible_ids(noise, self.num_visible).mask, self.grid, self.encoder.patch_size)

    @torch.no_grad()
    def reconstruct(
        self, images: Float[Tensor, "B 3 H W"], seed: int, mask_ratio: float | None = None
    ) -> Reconstruction | None:
        """Predictions of all patches; standardised ones are turned back with the statistics of the true patches.

        None for HOG, which makes no picture.
        """
        if self.hog is not None:
            return None
        patch_size = self.encoder.patch_size
        visible = self.num_visible if mask_ratio is None else count_visible(self.num_patches, mask_ratio)
        noise = torch.rand(len(images), self.num_patches, generator=torch_generator(seed, "reconstruct"))
        split = random_visible_ids(noise, visible).to(images.device)
        features: Features = self.encoder(images, visible_ids=split.visible_ids)
        patches = self.decoder.predict_all(features.prefix, features.patches, split.visible_ids, split.hidden_ids)
        note = "Predicted pixels as they are; the loss saw hidden ones only."
        if self.config.norm_pix_loss:
            patches = restore_patches(patches.float(), standardise_patches(patchify(images.float(), patch_size))[1])
            note = (
                "Trained on patches standardised one by one; mean and contrast of each patch are taken from the true "
                "image, only its structure is predicted."
            )
        return Reconstruction(
            images=images,
            prediction=self.decoder.picture(patches).float(),
            pixel_mask=pixel_mask(split.mask, self.grid, patch_size),
            note=note,
        )
