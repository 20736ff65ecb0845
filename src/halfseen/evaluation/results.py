"""What an evaluation was asked for, what it found, and the protocol that measures an encoder with its baselines.

A result never stands alone: it carries the protocol, the features, the data and their sizes, the same network at random
initialisation, raw pixels, and confidence intervals. One json file per evaluation; the same content is printed.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FeatureKind = Literal["cls", "mean", "cls+mean", "mean-before-norm"]


class EvaluateConfig(BaseModel):
    """What is measured on the frozen encoder at the end of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    knn: bool = Field(
        True, description="Run weighted k-NN at the end of the run, where the data has labels (true/false)."
    )
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (10, 20, 100, 200),
        min_length=1,
        description="Numbers of neighbours that vote (paper symbol k); 20 is the headline.",
    )
    temperature: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.07,), min_length=1, description="Divisors of the cosine similarity in a vote exp(similarity/T), no unit (T)."
    )
    feature: FeatureKind = Field(
        "mean",
        description="Which tokens make the feature vector: cls (first prefix token), mean (mean of patch tokens), "
        "cls+mean (both, concatenated), each after the final norm; mean-before-norm (mean of the last block's raw "
        "patch tokens).",
    )
    max_train: int | None = Field(
        50_000, ge=2, description="Most images that vote, a seeded choice of the training split; null = all images."
    )
    max_test: int | None = Field(
        10_000,
        ge=1,
        description="Most images that are classified, a seeded choice of the test split; null = all images.",
    )
    crop_ratio: float = Field(
        0.875,
        gt=0,
        le=1,
        description="Side of the centre crop over the resized shorter side, no unit; 224/256 in the iBOT protocol, "
        "1 keeps the whole short side (right for images that are small already).",
    )
    batch_size: int = Field(128, ge=1, description="Images per forward pass of the frozen encoder.")
