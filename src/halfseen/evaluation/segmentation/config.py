"""What a segmentation protocol is: how images are drawn and read, and what is learned on the patch tokens.

`SEGMENTATION_PROTOCOLS` holds them by name.
"""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from halfseen.engine.config import TrainConfig
from halfseen.errors import ConfigError
from halfseen.evaluation.resident_training import resident_settings
from halfseen.idle import Need, refuse_idle
from halfseen.ops.segmentation import ClassSoftmax

SegmentationMethod = Literal["fine-tune", "linear", "knn"]


class SegmentationConfig(BaseModel):
    """How an encoder is measured by the classes of pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: str = Field("viny-segmentation", description="Name of the protocol, which names the result's file too.")
    method: SegmentationMethod = Field(
        "fine-tune",
        description="What is learned: fine-tune (encoder and a layer that gives each patch's pixels), linear (a layer "
        "on frozen patch tokens, enlarged bilinearly to pixels) or knn (frozen patch tokens vote).",
    )
    train_size: int | None = Field(
        None,
        ge=1,
        description="Training images drawn from both splits together, with test_size; null takes the data's own "
        "splits (ViNy: 250 to 6000).",
    )
    test_size: int | None = Field(
        None, ge=1, description="Test images drawn from both splits together, with train_size (ViNy: 1000)."
    )
    split_seed: int = Field(42, ge=0, description="Seed of the draw of train_size and test_size.")
    fixed_test_split: bool = Field(
        False,
        description="Draw test images from the end of the permutation, the same for every train_size (true/false); "
        "ViNy's follow the training images, so that they change with train_size.",
    )
    resize: Literal["nearest", "bilinear"] = Field(
        "nearest",
        description="How images are squashed to the square: nearest (single pixels) or bilinear (Pillow's); masks are "
        "nearest in any case.",
    )
    normalise: bool = Field(
        False,
        description="Remove the mean and spread of colours that the encoder was pre-trained with (true/false); ViNy "
        "fine-tunes on pixels in [0, 1].",
    )
    flip: float = Field(0.5, ge=0, le=1, description="Probability of a left-right flip of image and mask.")
    contrast: float = Field(
        0.3, ge=0, description="Contrast factor is uniform in 1 - contrast to 1 + contrast; 0 changes nothing."
    )
    freeze_augmentation: bool = Field(
        True,
        description="Draw flip and contrast once per image, the same in every epoch, as ViNy's code does "
        "(true/false); false draws anew in every epoch.",
    )
    augment_test: bool = Field(
        True, description="Flip and recolour test images too, once, as ViNy's code does (true/false)."
    )
    class_softmax: ClassSoftmax = Field(
        "over_pixels",
        description="Scores of a class: over_pixels (less their log-sum-exp over all pixels of the image, a quirk of "
        "ViNy's code) or plain.",
    )
    epochs: int = Field(100, ge=1, description="Passes over the training images.")
    batch_size: int = Field(64, ge=1, description="Images per update; an epoch's last batch may be smaller.")
    lr: float = Field(2e-3, gt=0, description="Learning rate of AdamW, for all that learns alike.")
    weight_decay: float = Field(
        1e-4, ge=0, description="Decoupled decay of all weights per unit of learning rate, no unit."
    )
    milestone_ratios: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.7, 0.9, 0.95),
        description="Ascending shares of the epochs after which the learning rate is multiplied by gamma; of 100 "
        "epochs these are 70, 90 and 95. Empty keeps it constant.",
    )
    gamma: float = Field(0.5, gt=0, description="Factor of the learning rate at each milestone, no unit.")
    k: int = Field(20, ge=1, description="Patches that vote (k).")
    temperature: float = Field(0.07, gt=0, description="Divisor of the cosine similarity in a vote, no unit (T).")
    max_patches: int | None = Field(
        200_000, ge=2, description="Most training patches that may vote, a seeded choice; null = all."
    )

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "SegmentationConfig":
        method = f"method={self.method}"
        tuned, trained, votes = self.method == "fine-tune", self.method != "knn", self.method == "knn"
        changes = self.flip > 0 or self.contrast > 0
        refuse_idle(
            self,
            [
                *(Need(key, tuned, method) for key in TUNING_KEYS),
                *(Need(key, trained, method) for key in TRAINING_KEYS),
                *(Need(key, votes, method) for key in VOTE_KEYS),
                Need("freeze_augmentation", changes, "flip=0 and contrast=0"),
                Need("augment_test", changes, "flip=0 and contrast=0"),
                Need("gamma", bool(self.milestone_ratios), "milestone_ratios=[]"),
                Need("split_seed", self.train_size is not None, "train_size=null"),
                Need("fixed_test_split", self.train_size is not None, "train_size=null"),
            ],
        )
        if (self.train_size is None) != (self.test_size is None):
            missing, given = ("train_size", "test_size") if self.train_size is None else ("test_size", "train_size")
            raise ValueError(
                f"{missing}: missing beside {given}={getattr(self, given)}. Give both, or neither (null) for the "
                "data's own splits."
            )
        ratios = self.milestone_ratios
        if any(late <= early for early, late in pairwise(ratios)):
            raise ValueError(f"milestone_ratios: got {list(ratios)}, expected ascending shares. Sort them.")
        return self

    @property
    def settings(self) -> dict[str, float | int | bool | str | list[float]]:
        """Those that act in this method, for the record."""
        idle = {"protocol"}
        idle |= set() if self.method == "fine-tune" else set(TUNING_KEYS)
        idle |= set(TRAINING_KEYS) if self.method == "knn" else set(VOTE_KEYS)
        idle |= {"split_seed", "fixed_test_split"} if self.train_size is None else set()
        given = self.model_dump(exclude=idle, exclude_none=True)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    def training(self, steps_per_epoch: int, num_images: int) -> TrainConfig:
        """The settings of the loop; fewer images than a batch make one batch."""
        return resident_settings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            milestones=[round(ratio * self.epochs, 6) for ratio in self.milestone_ratios],
            gamma=self.gamma,
            steps_per_epoch=steps_per_epoch,
            num_images=num_images,
        )


TUNING_KEYS = ("flip", "contrast", "freeze_augmentation", "augment_test", "class_softmax")
TRAINING_KEYS = ("epochs", "batch_size", "lr", "weight_decay", "milestone_ratios", "gamma")
VOTE_KEYS = ("k", "temperature", "max_patches")

SEGMENTATION_PROTOCOLS: dict[str, dict[str, object]] = {
    "viny-segmentation": {"train_size": 6000, "test_size": 1000},
    "linear-segmentation": {
        "method": "linear",
        "resize": "bilinear",
        "normalise": True,
        "epochs": 20,
        "lr": 1e-2,
        "weight_decay": 0.0,
    },
    "knn-segmentation": {"method": "knn", "resize": "bilinear", "normalise": True},
}
"""By name: what differs from the defaults of `SegmentationConfig`."""


def segmentation_settings(protocol: str) -> dict[str, object]:
    """The settings that the name of a protocol stands for.

    Raises:
        ConfigError: an unknown name.
    """
    if protocol not in SEGMENTATION_PROTOCOLS:
        raise ConfigError(f"protocol: got '{protocol}', expected one of {', '.join(SEGMENTATION_PROTOCOLS)}.")
    return {"protocol": protocol, **SEGMENTATION_PROTOCOLS[protocol]}
