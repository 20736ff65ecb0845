"""Attention as the mask of methods that hide a fixed share of every image: SimMIM and MAE.

Their masks come from noise: where it is largest, a patch is hidden. A guide puts an encoder's attention in the place of
that noise, so the number of hidden patches stays what the method asks for. The encoder is a moving average of the
method's own, or a given one.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from halfseen.backbones.base import Encoder
from halfseen.backbones.teacher import averaged_copy
from halfseen.backbones.weights import load_encoder
from halfseen.errors import ConfigError
from halfseen.idle import Need, refuse_idle
from halfseen.masking.attention import AttentionMask, attention_scores, drawn_hints, hide_by_score
from halfseen.ops.moving_average import pair_by_name, update_average
from halfseen.ops.pixels import Channels
from halfseen.ops.randomness import step_noise
from halfseen.types import Progress


class AttentionGuide(BaseModel):
    """Hide what an encoder's class token attends to (`method.attention_mask`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    select: Literal["high", "hint", "low"] = Field(
        "high",
        description="hidden patches: high = those of highest score, hint = as high but some of the very highest stay "
        "visible, low = those of lowest score",
    )
    score: Literal["raw", "log", "power", "rollout"] = Field(
        "raw",
        description="score of a patch: raw = attention of the class token, mean over the heads; log = mean over the "
        "heads of its logarithm; power = mean of its power; rollout = attention followed through several blocks",
    )
    layer: int | None = Field(None, ge=1, description="block whose attention is taken, from 1; null = the last one")
    power: float = Field(0.5, gt=0, description="exponent for score power; below 1 it flattens heads with sharp peaks")
    rollout: Literal["all", "mid", "last"] = Field(
        "all", description="blocks for score rollout: all, the middle third (mid) or the last third (last)"
    )
    guided_share: float = Field(
        1.0, gt=0, le=1, description="probability that an image is masked by attention; the others are masked at random"
    )
    show_max: float = Field(
        0.1, gt=0, lt=1, description="for select hint: share of the patches, highest first, among which hints are drawn"
    )
    show_ratio: float = Field(0.5, gt=0, lt=1, description="for select hint: share of these patches that stay visible")
    encoder: str | None = Field(
        None,
        description="whose attention: a run, a halfseen encoder or an official checkpoint, which sees the images in "
        "its own normalisation (ImageNet's for official ones); null = a moving average of the encoder that is trained",
    )
    momentum: float = Field(
        0.996, ge=0, le=1, description="share of the moving average that stays at each update, without a given encoder"
    )

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "AttentionGuide":
        score, select = f"score={self.score}", f"select={self.select}"
        refuse_idle(
            self,
            (
                Need("power", self.score == "power", score),
                Need("rollout", self.score == "rollout", score),
                Need("layer", self.score != "rollout", score),
                Need("show_max", self.select == "hint", select),
                Need("show_ratio", self.select == "hint", select),
                Need("momentum", self.encoder is None, "a given encoder"),
            ),
        )
        return self

    def mask(self) -> AttentionMask:
        """The part of the settings that says which score is taken."""
        return AttentionMask(select="high", score=self.score, layer=self.layer, power=self.power, rollout=self.rollout)


class Guide(nn.Module):
    """The encoder that looks, and the noise that it makes.

    It stays in evaluation mode whatever mode the method is in: it only looks, and batch norms of a convolutional stem
    must not take the statistics of a batch for those of the data.

    Attributes:
        encoder: the one that looks.
        mean, std: normalisation of the images that it sees.

    Args:
        config: the settings.
        encoder: the one that is being trained.
        mean, std: normalisation of the images that `noise` is given.
        cell_patches: patches along one side of a mask cell; a cell's score is the mean of its patches'.
    Raises:
        ConfigError: an encoder without class-token attention, of another patch size, without trained weights, or hints
            that show nothing.
        WeightsError: a given encoder that isn't there or can't be read.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, config: AttentionGuide, encoder: Encoder, mean: Channels, std: Channels, cell_patches: int = 1
    ) -> None:
        super().__init__()
        self.config = config
        self.mask = config.mask()
        self.cell_patches = cell_patches
        looking, self.mean, self.std = encoder, mean, std
        if config.encoder is not None:
            given = load_encoder(config.encoder)
            looking, self.mean, self.std = given.encoder, given.mean, given.std
            if given.role == "random":
                raise ConfigError(
                    f"method.attention_mask.encoder: '{config.encoder}' names a network without trained weights, whose "
                    "attention means nothing. Give a run, or a file of weights."
                )
        if not looking.has_class_token:
            raise ConfigError(
                "method.attention_mask: this model has no class token whose attention could be followed. Choose a "
                "plain vit_* model with a class token, or leave it out."
            )
        if looking.patch_size != encoder.patch_size:
            raise ConfigError(
                f"method.attention_mask.encoder: '{config.encoder}' has patches of {looking.patch_size} px, the model "
                f"of {encoder.patch_size} px. Give one with equal patches."
            )
        self.encoder = averaged_copy(looking).eval()
        # From the images as given to those that the encoder knows; exactly 1 and 0 where these are the same.
        given_mean, given_std, own_mean, own_std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std, self.mean, self.std)
        )
        self.register_buffer("scale", (given_std / own_std).float(), persistent=False)
        self.register_buffer("shift", ((given_mean - own_mean) / own_std).float(), persistent=False)
        cells = (encoder.image_size // encoder.patch_size // cell_patches) ** 2
        self.mask.check_layer(looking.num_layers, "method.attention_mask")
        self.num_top = int(cells * config.show_max)
        self.num_shown = int(self.num_top * config.show_ratio)
        if config.select == "hint" and self.num_shown == 0:
            raise ConfigError(
                f"method.attention_mask.show_max: {config.show_max:g} of {cells} places are {self.num_top}, and "
                f"show_ratio={config.show_ratio:g} of them shows none: hint would be high. Raise one of them, or write "
                "select=high."
            )

    def train(self, mode: bool = True) -> "Guide":
        """As of every module, except that the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def noise(
        self, images: Float[Tensor, "B 3 H W"], noise: Float[Tensor, "B n"], progress: Progress
    ) -> Float[Tensor, "B n"]:
        """Noise that is largest where a patch (or cell) is to be hidden.

        Args:
            images: the normalised images that will be masked.
            noise: the method's own, on the CPU; it stays for images that are not guided.
            progress: where the run stands.
        Returns:
            on the images' device.
        """
        B, num_cells = noise.shape
        depth = self.encoder.num_layers
        blocks = tuple(sorted(set(self.mask.blocks(depth))))
        seen = images * self.scale + self.shift
        found = self.encoder(seen, attention_layers=blocks, attention_rows=self.mask.rows)
        num_patches = found.grid[0] * found.grid[1]
        maps = dict(zip(blocks, found.attention, strict=True))
        scores = attention_scores(self.mask, maps, num_patches, depth)
        if self.cell_patches > 1:
            scores = nn.functional.avg_pool2d(scores.reshape(B, *found.grid), self.cell_patches).flatten(1)
        if self.config.select == "low":
            scores = -scores
        drawn = step_noise(progress, B, 1 + num_cells, "attention_mask").to(images.device, non_blocking=True)
        if self.config.select == "hint":
            top = hide_by_score(scores, self.num_top)
            scores = scores.masked_fill(drawn_hints(top, drawn[:, 1:], self.num_shown), -torch.inf)
        guided: Bool[Tensor, "B 1"] = drawn[:, :1] < self.config.guided_share
        return torch.where(guided, scores, noise.to(images.device, non_blocking=True))

    def start(self, encoder: Encoder) -> None:
        """Make the average equal to the encoder that is being trained."""
        self._follow(encoder, 0.0)

    def follow(self, encoder: Encoder) -> None:
        """Move the average towards the encoder that is being trained."""
        self._follow(encoder, self.config.momentum)

    @torch.no_grad()
    def _follow(self, encoder: Encoder, momentum: float) -> None:
        """Nothing with a given encoder. Running statistics, averages already, are taken over as they are."""
        if self.config.encoder is not None:
            return
        update_average(pair_by_name(encoder, self.encoder), momentum)
        for own, followed in zip(self.encoder.buffers(), encoder.buffers(), strict=True):
            own.copy_(followed)
