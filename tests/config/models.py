"""A small configuration with everything a real one has: groups, a union told apart by a name, bounds, lists, rules."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Uniform(Group):
    kind: Literal["uniform"] = "uniform"


class Dense(Group):
    kind: Literal["dense"] = "dense"
    temperature: float = Field(0.25, gt=0)


Weight = Annotated[Uniform | Dense, Field(discriminator="kind")]


class Grid(Group):
    name: Literal["grid"] = "grid"
    mask_ratio: float = Field(0.75, ge=0, lt=1)
    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.2, 1.0)
    normalise: bool = True
    weight: Weight = Uniform()


class Blocks(Group):
    name: Literal["blocks"] = "blocks"
    mask_ratio: float = Field(0.6, ge=0, lt=1)
    block_size: int = Field(32, ge=1)
    detector: Literal["fast", "sift", "orb"] = "fast"
    weight: Weight = Dense()


class Rate(Group):
    base: float = Field(1e-3, gt=0)
    reference_batch: int | None = Field(256, ge=1)
    milestones: tuple[float, ...] = ()


class Train(Group):
    epochs: float = Field(gt=0)
    batch_size: int = Field(64, ge=1)
    drop_last: bool = True
    lr: Rate = Rate()

    @model_validator(mode="after")
    def _batch_is_even(self) -> "Train":
        if self.batch_size % 2:
            raise ValueError(
                f"batch_size: got {self.batch_size}, expected an even number. Write {self.batch_size + 1}."
            )
        return self


class Run(Group):
    seed: int = Field(0, ge=0)
    run_dir: str = "runs/last"
    init: str | None = None
    method: Annotated[Grid | Blocks, Field(discriminator="name")] = Field(default_factory=Grid)
    train: Train

    @model_validator(mode="after")
    def _seed_fits(self) -> "Run":
        if self.seed == 13 and self.train.epochs == 13:
            raise ValueError("thirteen twice: choose another seed or another number of epochs.")
        return self
