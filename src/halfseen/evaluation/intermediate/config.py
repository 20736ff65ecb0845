"""What an intermediate stage is: its objective, augmentation, optimiser and schedule.

`INTERMEDIATE_PROTOCOLS` holds ViNy's published ones by name.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from halfseen.engine.config import TrainConfig
from halfseen.errors import ConfigError
from halfseen.evaluation.resident_training import resident_settings
from halfseen.idle import Need, refuse_idle

Objective = Literal["classification", "patchwise"]


class IntermediateConfig(BaseModel):
    """How an encoder is trained on between pre-training and what it is meant for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: str = Field(
        "viny-intel", description="Name of the stage, which names its folder and its result's file too."
    )
    objective: Objective = Field(
        "classification",
        description="What is learned: classification (the class of the image, from the class token, or from the mean "
        "of the patch tokens where there is none) or patchwise (the class that most pixels of a patch have, from its "
        "token).",
    )
    epochs: int = Field(20, ge=1, description="Passes over the training images.")
    batch_size: int = Field(64, ge=1, description="Images per update; an epoch's last batch may be smaller.")
    lr: float = Field(8e-4, gt=0, description="Learning rate of Adam, for encoder and head alike.")
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled decay of all weights per unit of learning rate; 0 is Adam, else AdamW."
    )
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Ascending epochs at which the learning rate is multiplied by gamma; empty keeps it constant."
    )
    gamma: float = Field(0.1, gt=0, description="Factor of the learning rate at each milestone, no unit.")
    mixup_alpha: float | None = Field(
        None,
        gt=0,
        description="MixUp of each image with its neighbour in the batch, one share per batch from Beta(alpha, alpha); "
        "null mixes nothing.",
    )
    resize: Literal["nearest", "bilinear"] = Field(
        "nearest", description="How images are squashed to the square: nearest (single pixels) or bilinear (Pillow's)."
    )
    flip: float = Field(0.5, ge=0, le=1, description="Probability of a left-right flip, anew in every epoch.")
    contrast: float = Field(
        0.3,
        ge=0,
        description="Contrast factor is uniform in 1 - contrast to 1 + contrast, anew in every epoch; 0: off.",
    )
    normalise: bool = Field(
        True,
        description="Remove the mean and spread of colours that the encoder was pre-trained with (true/false); false "
        "shows it pixels in [0, 1], as ViNy's code does with masks.",
    )
    max_train: int | None = Field(None, ge=2, description="Most training images, a seeded choice; null = all.")
    max_test: int | None = Field(None, ge=1, description="Most test images, a seeded choice; null = all.")

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "IntermediateConfig":
        refuse_idle(
            self,
            [
                Need("gamma", bool(self.milestones), "milestones=[]"),
                Need("mixup_alpha", self.objective == "classification", "objective=patchwise"),
            ],
        )
        if any(late <= early for early, late in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(f"milestones: got {list(self.milestones)}, expected ascending epochs. Sort them.")
        if self.milestones and self.milestones[-1] >= self.epochs:
            raise ValueError(
                f"milestones: got {list(self.milestones)}, but there are {self.epochs} epochs, so the last one changes "
                "nothing. Give smaller ones, or milestones=[]."
            )
        return self

    def training(self, steps_per_epoch: int, num_images: int) -> TrainConfig:
        """The stage as the loop's settings; fewer images than a batch make one batch."""
        return resident_settings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            milestones=self.milestones,
            gamma=self.gamma,
            steps_per_epoch=steps_per_epoch,
            num_images=num_images,
        )


INTERMEDIATE_PROTOCOLS: dict[str, dict[str, object]] = {
    "viny-intel": {
        "lr": 8e-4,
        "epochs": 200,
        "milestones": (180, 190),
        "gamma": 0.1,
        "mixup_alpha": 0.1,
    },
    "viny-cls-intel": {"lr": 8e-4, "resize": "bilinear"},
    "viny-cls-pets": {"lr": 1e-3, "weight_decay": 0.01, "resize": "bilinear", "contrast": 0.0},
    "viny-spatial": {"objective": "patchwise", "lr": 5e-4, "normalise": False},
}
"""By name: what differs from the defaults of `IntermediateConfig`. `viny-intel` comes before ViNy's segmentation, the
others belong to its diagnostics."""

OBJECTIVES: dict[str, str] = {"classification": "viny-intel", "patchwise": "viny-spatial"}
"""The protocol that an objective's plain name stands for."""

UNCHANGED = "none"
"""The objective that trains nothing: the encoder is copied, to stand beside the others."""


def intermediate_settings(name: str) -> dict[str, object]:
    """The settings that the name of a protocol or objective stands for.

    Raises:
        ConfigError: an unknown name.
    """
    protocol = OBJECTIVES.get(name, name)
    if protocol not in INTERMEDIATE_PROTOCOLS:
        raise ConfigError(
            f"objective: got '{name}', expected one of {', '.join([*OBJECTIVES, *INTERMEDIATE_PROTOCOLS, UNCHANGED])}."
        )
    return {"protocol": protocol, **INTERMEDIATE_PROTOCOLS[protocol]}
