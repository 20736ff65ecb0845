"""What a study of pre-training, intermediate stages and fine-tuning is: its grid, and the settings of its parts."""

from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from halfseen.errors import ConfigError
from halfseen.evaluation.intermediate.config import IntermediateConfig, intermediate_settings
from halfseen.evaluation.segmentation.config import SegmentationConfig
from halfseen.idle import Need, refuse_idle

Intermediate = Literal["none", "classification", "patchwise"]


class Condition(NamedTuple):
    """How an encoder came about.

    Attributes:
        pretrain: images of pre-training; 0 = random weights.
        intermediate: the stage after it.
    """

    pretrain: int
    intermediate: Intermediate

    @property
    def name(self) -> str:
        """As it stands in names of folders."""
        return f"{self.pretrain}-{self.intermediate}"


class Cell(NamedTuple):
    """One segmentation of the grid."""

    condition: Condition
    finetune: int
    seed: int

    @property
    def name(self) -> str:
        """As it stands in names of folders."""
        return f"{self.condition.name}-{self.finetune}-seed{self.seed}"


class StudyConfig(BaseModel):
    """The grid pre-training size x intermediate stage x fine-tuning size x seed, and how each part is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field("bundled:fashion-scenes", description="Images of pre-training, and of all parts named below.")
    classification_data: str | None = Field(
        None, description="Labelled images of the intermediate classification; null = data."
    )
    patchwise_data: str | None = Field(
        None, description="Images with masks of the intermediate patchwise stage; null = data."
    )
    segmentation_data: str | None = Field(None, description="Images with masks of the segmentation; null = data.")
    recipe: str = Field(
        "simmim_viny_4m_imagenet1k_100ep_100k",
        description="Recipe of pre-training; data, number of images and seed are the study's.",
    )
    pretrain: tuple[str, ...] = Field(
        (), description="key=value settings of pre-training over its recipe, e.g. train.epochs=10."
    )
    pretrain_sizes: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 10_000), min_length=1, description="Ascending numbers of images of pre-training; 0 = from scratch."
    )
    pretrain_each_seed: bool = Field(
        False,
        description="Pre-train anew for each seed (true/false); false takes one encoder per size for all seeds, so "
        "that the spread doesn't cover pre-training.",
    )
    intermediates: tuple[Intermediate, ...] = Field(
        ("none", "classification", "patchwise"),
        min_length=1,
        description="Stages between pre-training and segmentation: none, classification or patchwise; not from "
        "scratch.",
    )
    finetune_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (100, 400, 1600), min_length=1, description="Ascending numbers of images that segmentation learns from."
    )
    test_size: int | None = Field(
        500, ge=1, description="Test images of the segmentation; null = all of the test split (with own_splits)."
    )
    own_splits: bool = Field(
        True,
        description="Draw the images of segmentation from the training split and those of its test from the test "
        "split (true/false); false draws both from all images together, as ViNy does.",
    )
    split_seed: int = Field(
        42, ge=0, description="Seed of the choice of fine-tuning and test images, the same for all."
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0, 1, 2),
        min_length=1,
        description="Seeds of first weights, order and augmentation of stages and segmentations; one run each.",
    )
    classification: IntermediateConfig = Field(
        IntermediateConfig.model_validate(intermediate_settings("classification")),
        description="The intermediate classification.",
    )
    patchwise: IntermediateConfig = Field(
        IntermediateConfig.model_validate(intermediate_settings("patchwise")),
        description="The intermediate patchwise stage.",
    )
    segmentation: SegmentationConfig = Field(
        SegmentationConfig.model_validate({"protocol": "viny-segmentation"}),
        description="The segmentation; its sizes are the study's.",
    )

    @model_validator(mode="after")
    def _grid_makes_sense(self) -> "StudyConfig":
        for name in ("pretrain_sizes", "finetune_sizes"):
            sizes = getattr(self, name)
            if any(large <= small for small, large in pairwise(sizes)):
                raise ValueError(f"{name}: got {list(sizes)}, expected ascending numbers. Sort them.")
        for name in ("seeds", "intermediates"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: got {list(values)}, expected each once.")
        pretrained = self.pretrain_sizes != (0,)
        refuse_idle(
            self,
            [
                Need("pretrain_each_seed", pretrained, "pretrain_sizes=[0]"),
                Need("classification_data", pretrained and "classification" in self.intermediates, self._without),
                Need("patchwise_data", pretrained and "patchwise" in self.intermediates, self._without),
            ],
        )
        if (self.classification.objective, self.patchwise.objective) != ("classification", "patchwise"):
            raise ValueError(
                "classification.objective and patchwise.objective are what their names say. Leave them out."
            )
        if self.segmentation.train_size is not None:
            raise ValueError(
                f"segmentation.train_size: got {self.segmentation.train_size}, but the study's finetune_sizes and "
                "test_size say how many images there are. Leave it out."
            )
        if self.test_size is None and not self.own_splits:
            raise ValueError("test_size: missing, but own_splits=false draws so many test images. Give a number.")
        return self

    @property
    def _without(self) -> str:
        return f"intermediates=[{', '.join(self.intermediates)}] and pretrain_sizes={list(self.pretrain_sizes)}"

    @property
    def conditions(self) -> list[Condition]:
        """From scratch first, then each size with its stages."""
        return [
            Condition(size, stage)
            for size in self.pretrain_sizes
            for stage in (self.intermediates if size else ("none",))
        ]

    @property
    def cells(self) -> list[Cell]:
        """All segmentations; those that share an encoder follow each other."""
        return [
            Cell(condition, finetune, seed)
            for condition in self.conditions
            for seed in self.seeds
            for finetune in self.finetune_sizes
        ]

    def data_of(self, part: Intermediate | Literal["segmentation"]) -> str:
        """The images of a stage that trains, or of the segmentation."""
        named = getattr(self, f"{part}_data")
        return self.data if named is None else str(named)

    def stage(self, intermediate: Intermediate) -> IntermediateConfig:
        """The settings of a stage that trains."""
        return self.classification if intermediate == "classification" else self.patchwise


STUDIES: dict[str, dict[str, object]] = {
    "miniature": {
        "pretrain": (
            "data.image_size=64",
            "model.patch_size=8",
            "model.embed_dim=96",
            "model.depth=4",
            "model.num_heads=3",
            "model.head_dim=32",
            "train.epochs=25",
            "train.lr.milestones=[12,21]",
            "evaluate.knn=false",
            "evaluate.analyze=none",
            "evaluate.crop_ratio=1.0",
        ),
        "classification": {
            "epochs": 10,
            "milestones": (9,),
            "max_train": 2000,
            "max_test": 500,
        },
        "patchwise": {"epochs": 10, "max_train": 2000, "max_test": 500},
        "segmentation": {"epochs": 15, "batch_size": 16, "augment_test": False},
    },
    "viny": {
        "data": "imagenet/train",
        "classification_data": "intel:intel",
        "segmentation_data": "oxford-iiit-pet",
        "pretrain": ("evaluate.knn=false", "evaluate.analyze=none"),
        "pretrain_sizes": (0, 45_000, 100_000, 200_000),
        "intermediates": ("none", "classification"),
        "finetune_sizes": (250, 500, 1000, 2000, 4000, 6000),
        "test_size": 1000,
        "own_splits": False,
    },
}
"""By name: what differs from the defaults of `StudyConfig`."""


def study_settings(name: str) -> dict[str, object]:
    """The settings that the name of a study stands for.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in STUDIES:
        raise ConfigError(f"grid: got '{name}', expected one of {', '.join(STUDIES)}.")
    parts: dict[str, dict[str, object]] = {
        "classification": intermediate_settings("classification"),
        "patchwise": intermediate_settings("patchwise"),
        "segmentation": {"protocol": "viny-segmentation"},
    }
    own = STUDIES[name]
    # Whole parts, so that an override of one key leaves the published others.
    whole = {part: {**published, **_group(own.get(part))} for part, published in parts.items()}
    return {**own, **whole}


def _group(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
