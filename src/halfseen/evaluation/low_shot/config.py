"""What MSN's low-shot evaluation is: how features are prepared, and the penalties of its classifier."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from halfseen.data.transforms import Interpolation
from halfseen.evaluation.low_shot.logistic import TOLERANCE
from halfseen.evaluation.results import FeatureKind

FEW_LABELS_LAMBDA = 0.0025

MANY_LABELS_LAMBDA = 0.075

FEW = 5
"""Images per class up to which MSN's value for 5 per class is the headline; above, that for 1 % of ImageNet (12.8)."""

SWEEP = (0.0025, 0.025, 0.075, 0.1, 0.25, 0.5)


class LogisticConfig(BaseModel):
    """How the low-shot evaluation prepares features and solves for the classifier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lambd: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Penalty of the headline, MSN's lambd: the penalty on the squared weights is lambd / (2 n), so "
        "scikit-learn's C is 1 / lambd. null takes MSN's published values: 0.0025 up to 5 images per class, 0.075 for "
        "more.",
    )
    penalty: Literal["l2", "elastic-net"] = Field(
        "l2",
        description="What is penalised: l2 (squared weights) or elastic-net (their absolute values too, by the same "
        "lambda; slow).",
    )
    mask: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the patches that are dropped from labelled images, other ones for every 16 images; test "
        "images are whole (MSN's mask).",
    )
    sweep: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        SWEEP, description="Penalties that are reported beside the headline; none of them is chosen on test images."
    )
    feature: FeatureKind = Field(
        "cls-before-norm", description="Which tokens make the feature vector; the words are those of evaluate.feature."
    )
    last_blocks: int = Field(
        1, ge=1, description="Blocks whose tokens are concatenated, the last ones (MSN's num_blocks)."
    )
    normalize: bool = Field(
        True, description="Centre each feature vector on its own mean and scale it to length 1 (true/false)."
    )
    resize: Literal["crop", "squash"] = Field(
        "crop", description="How an image becomes square: crop (shorter side resized, centre cut out) or squash."
    )
    crop_ratio: float = Field(
        0.875,
        gt=0,
        le=1,
        description="Side of the centre crop over the resized shorter side, no unit; 224/256 for MSN.",
    )
    interpolation: Interpolation = Field("bilinear", description="Filter of the resizing: bilinear or bicubic.")
    max_test: int | None = Field(
        None, ge=1, description="Most images that are classified, a seeded choice of the test split; null = all images."
    )
    batch_size: int = Field(128, ge=1, description="Images per forward pass of the frozen encoder.")
    tolerance: float = Field(
        TOLERANCE, gt=0, lt=1, description="Share by which a solution's objective may be above its minimum, no unit."
    )
