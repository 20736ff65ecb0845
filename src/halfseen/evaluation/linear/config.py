"""What a linear probe is: its features, head, optimiser, schedule, and the rule by which its learning rate is chosen.

`LINEAR_PROTOCOLS` holds the published ones by name; `linear` is ours for daily use.
"""

from itertools import product
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from halfseen.backbones.base import Encoder
from halfseen.errors import ConfigError
from halfseen.evaluation.linear.side_by_side import Candidate, HeadKind, OptimizerKind
from halfseen.evaluation.results import FeatureKind

Augmentation = Literal["none", "crop", "tf-crop", "trivial"]
Schedule = Literal["epoch-cosine", "step-cosine", "warmup-cosine", "kamim"]
Choice = Literal["held-out", "test", "last"]

BASE_WIDTH = 768
"""Width of a base ViT."""

IBOT_GRID = tuple(round(digit * 10.0**power, 10) for power in range(-4, 1) for digit in range(1, 10))


class LinearConfig(BaseModel):
    """How linear classifiers are trained on frozen features, and which of them is reported."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: str = Field("linear", description="Name of the protocol, which names the result's file too.")
    feature: FeatureKind = Field(
        "mean", description="Which tokens make the feature vector; the words are those of evaluate.feature."
    )
    last_blocks: int = Field(
        1, ge=1, description="Blocks whose tokens are concatenated, the last ones (iBOT's n_last_blocks)."
    )
    layer: int | None = Field(
        None, ge=1, description="Block, counted from 1, whose tokens are taken in place of the last one's; null = last."
    )
    augmentation: Augmentation = Field(
        "none",
        description="What happens to training images: none (the features are computed once and kept), crop (random "
        "resized crop of 8 to 100 % of the area, bilinear, and flip), tf-crop (the same in one draw that is clamped to "
        "the image, bicubic), trivial (squashed, TrivialAugmentWide, random erasing, and MixUp or CutMix).",
    )
    head: HeadKind = Field(
        "batch-norm",
        description="plain (linear layer), batch-norm (before it a batch norm without weights), layer-norm (before it "
        "a layer norm) or unit-layer-norm (layer norm and scaling to length 1).",
    )
    weight_std: float | None = Field(
        0.01, gt=0, description="Spread of the normal distribution of the first weights, no unit; null = torch's start."
    )
    optimizer: tuple[OptimizerKind, ...] = Field(
        ("sgd",), min_length=1, description="sgd, lars, nesterov (MSN's, with the rate inside the velocity) or adamw."
    )
    lr: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        min_length=1,
        description="Learning rates that are tried side by side, before scaling by the batch.",
    )
    reference_batch: int | None = Field(
        256, ge=1, description="Images per step for which lr is meant; it scales with the batch; null = never scaled."
    )
    weight_decay: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.0,), min_length=1, description="Weight decays that are tried with every learning rate."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd, lars and nesterov, no unit.")
    clip_norm: float | None = Field(
        None, gt=0, description="Largest norm of a classifier's gradient; null = unbounded."
    )
    schedule: Schedule = Field(
        "epoch-cosine",
        description="Of the learning rate: epoch-cosine (constant within an epoch), step-cosine, warmup-cosine "
        "(MAE's) or kamim (KAMIM's, from 2.5e-6 to 2.5e-6).",
    )
    epochs: int = Field(50, ge=1, description="Passes over the training images.")
    warmup_epochs: float = Field(0.0, ge=0, description="Passes in which the rate rises; warmup-cosine and kamim.")
    extra_epochs: int = Field(0, ge=0, description="Passes after the schedule's end, at its last rate (KAMIM: 10).")
    batch_size: int = Field(512, ge=1, description="Images per step.")
    choose: Choice = Field(
        "held-out",
        description="Which classifier is reported: held-out (learning rate chosen on training images kept apart), test "
        "(best on the test images over rates and epochs, as some originals do: too high) or last (the last epoch of "
        "the only one).",
    )
    held_out: float = Field(
        0.1, gt=0, lt=1, description="Share of each class's training images on which the rate is chosen."
    )
    max_train: int | None = Field(None, ge=2, description="Most training images, a seeded choice; null = all.")
    max_test: int | None = Field(None, ge=1, description="Most test images, a seeded choice; null = all.")
    resize: Literal["crop", "squash"] = Field(
        "crop", description="How an image becomes square in evaluation: crop (centre) or squash (aspect ratio lost)."
    )
    crop_ratio: float = Field(
        0.875, gt=0, le=1, description="Side of the centre crop over the resized shorter side, no unit."
    )
    interpolation: Literal["bilinear", "bicubic"] = Field("bicubic", description="Resampling of the evaluation view.")
    antialias: bool = Field(True, description="Whether the evaluation view is filtered when an image shrinks.")
    forward_batch: int = Field(128, ge=1, description="Images per forward pass of the frozen encoder.")

    @model_validator(mode="after")
    def _choice_has_candidates(self) -> "LinearConfig":
        if len(self.candidates) > 1 and self.choose == "last":
            raise ValueError(
                f"choose=last takes the only classifier, but lr, weight_decay and optimizer make "
                f"{len(self.candidates)}. Write choose=held-out, or a single lr."
            )
        if len(set(self.optimizer)) > 1 and not set(self.optimizer) <= {"sgd", "lars"}:
            raise ValueError("optimizer: only sgd and lars can be tried side by side.")
        if self.warmup_epochs and self.schedule not in ("warmup-cosine", "kamim"):
            raise ValueError(f"warmup_epochs: the schedule {self.schedule} has no warm-up. Leave it out.")
        if self.extra_epochs and self.schedule != "kamim":
            raise ValueError(f"extra_epochs: the schedule {self.schedule} ends at 0. Leave it out.")
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs: got {self.warmup_epochs:g} of {self.epochs} epochs; write at most as many."
            )
        return self

    @property
    def candidates(self) -> list[Candidate]:
        """Every learning rate with every weight decay and optimiser; the rates vary fastest."""
        grid = product(self.optimizer, self.weight_decay, self.lr)
        return [Candidate(lr, decay, optimizer) for optimizer, decay, lr in grid]


LINEAR_PROTOCOLS: dict[str, dict[str, object]] = {
    "linear": {},
    "ibot-linear": {
        "feature": "cls",
        "last_blocks": 4,
        "augmentation": "crop",
        "head": "plain",
        "lr": IBOT_GRID,
        "epochs": 100,
        "batch_size": 1024,
        "choose": "test",
    },
    "dino-linear": {
        "feature": "cls",
        "last_blocks": 4,
        "augmentation": "crop",
        "head": "plain",
        "lr": (0.001,),
        "epochs": 100,
        "batch_size": 1024,
        "choose": "test",
    },
    "msn-linear": {
        "feature": "cls-before-norm",
        "augmentation": "crop",
        "head": "unit-layer-norm",
        "optimizer": ("nesterov",),
        "lr": (6.4,),
        "reference_batch": None,
        "schedule": "step-cosine",
        "epochs": 100,
        "batch_size": 8192,
        "choose": "test",
        "interpolation": "bilinear",
    },
    "mae-linear": {
        "feature": "cls",
        "augmentation": "tf-crop",
        "head": "batch-norm",
        "optimizer": ("lars",),
        "lr": (0.1,),
        "schedule": "warmup-cosine",
        "epochs": 90,
        "warmup_epochs": 10.0,
        "batch_size": 16384,
        "choose": "last",
    },
    "localmim-linear": {
        "feature": "mean-plain-norm",
        "augmentation": "tf-crop",
        "head": "batch-norm",
        "optimizer": ("lars",),
        "lr": (0.1,),
        "schedule": "warmup-cosine",
        "epochs": 90,
        "warmup_epochs": 10.0,
        "batch_size": 16384,
        "choose": "last",
    },
    "kamim-linear": {
        "feature": "mean-before-norm",
        "layer": 8,
        "augmentation": "trivial",
        "head": "plain",
        "weight_std": None,
        "optimizer": ("adamw",),
        "lr": (5e-3,),
        "reference_batch": None,
        "weight_decay": (0.05,),
        "schedule": "kamim",
        "epochs": 100,
        "warmup_epochs": 10.0,
        "extra_epochs": 10,
        "batch_size": 2048,
        "choose": "last",
        "resize": "squash",
        "interpolation": "bilinear",
        "antialias": False,
    },
}
"""By name: what differs from the defaults of `LinearConfig`."""


def linear_protocol_settings(name: str, encoder: Encoder | None = None) -> dict[str, object]:
    """The settings that a protocol's name stands for, with what it prescribes for this kind of encoder.

    iBOT and DINO take four blocks of small ViTs and of Swins, which have no class token, and class token and mean of
    the last block of base and large ViTs. KAMIM takes a Swin's last block and clips its gradient.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in LINEAR_PROTOCOLS:
        raise ConfigError(f"protocol: got '{name}', expected one of {', '.join(LINEAR_PROTOCOLS)}.")
    settings: dict[str, object] = {"protocol": name, **LINEAR_PROTOCOLS[name]}
    if encoder is None:
        return settings
    if name in ("ibot-linear", "dino-linear"):
        if not encoder.has_class_token:
            settings["feature"] = "mean"
        elif encoder.embed_dim >= BASE_WIDTH:
            settings |= {"feature": "cls+mean", "last_blocks": 1}
    if name == "kamim-linear" and encoder.stride != encoder.patch_size:
        settings |= {"layer": None, "clip_norm": 1.0}
    return settings
