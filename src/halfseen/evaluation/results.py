"""What an evaluation was asked for and what it found.

A result never stands alone: it carries the protocol, the features, the data and their sizes, the same network at random
initialisation, raw pixels, and confidence intervals. One json file per evaluation; the same content is printed.
"""

import json
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from halfseen.errors import ConfigError

FeatureKind = Literal["cls", "mean", "cls+mean", "cls-before-norm", "mean-before-norm", "mean-plain-norm"]


class KNNConfig(BaseModel):
    """Weighted k-NN on the features of a frozen encoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
        "cls+mean (both, concatenated), each after the final norm; cls-before-norm and mean-before-norm (the last "
        "block's raw tokens); mean-plain-norm (mean of the raw patch tokens, layer-normed without weights).",
    )
    max_train: int | None = Field(
        50_000, ge=2, description="Most images that vote, a seeded choice of the training split; null = all images."
    )
    max_test: int | None = Field(
        10_000,
        ge=1,
        description="Most images that are classified, a seeded choice of the test split; null = all images.",
    )
    resize: Literal["crop", "squash"] = Field(
        "crop",
        description="How an image becomes square: crop (shorter side resized, centre cut out) or squash (aspect ratio "
        "lost, as in KAMIM's evaluations).",
    )
    crop_ratio: float = Field(
        0.875,
        gt=0,
        le=1,
        description="Side of the centre crop over the resized shorter side, no unit; 224/256 in the iBOT protocol, "
        "1 keeps the whole short side (right for images that are small already).",
    )
    batch_size: int = Field(128, ge=1, description="Images per forward pass of the frozen encoder.")


class EvaluateConfig(KNNConfig):
    """What a run measures on its encoder, meanwhile and at its end: k-NN, and a look from within."""

    knn: bool = Field(
        True, description="Run weighted k-NN at the end of the run, where the data has labels (true/false)."
    )
    online_every_epochs: float | None = Field(
        None,
        gt=0,
        description="Epochs between two k-NN measurements during training, of student and teacher, where the data has "
        "labels; null measures at the end only. Never changes the weights.",
    )
    online_max_train: int = Field(
        2000, ge=2, description="Most labelled images that vote during training, a seeded choice."
    )
    online_max_test: int = Field(
        500, ge=1, description="Most labelled images that are classified during training, a seeded choice."
    )
    analyze: Literal["none", "quick", "full"] = Field(
        "quick",
        description="What `halfseen analyze` writes into the run's folder, for its report, when training ends: quick "
        "(no noise, t-SNE or figures), full (everything) or none.",
    )
    analyze_images: int = Field(64, ge=1, description="Most images that are analysed at the end of a run.")


def feature_kind(word: str) -> FeatureKind:
    """The choice of features that a word names.

    Raises:
        ConfigError: an unknown one.
    """
    for known in get_args(FeatureKind):
        if word == known:
            kind: FeatureKind = known
            return kind
    raise ConfigError(f"feature: got '{word}', expected one of {', '.join(get_args(FeatureKind))}.")


class SplitUsed(BaseModel):
    """One side of an evaluation's data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    split: str
    n: int
    labelled: int
    fingerprint: str
    skipped: int


class ClassResult(BaseModel):
    """How one class fares: shares of its `n` test images that are classified rightly, in percent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    n: int
    encoder: float
    baselines: dict[str, float]


class Result(BaseModel):
    """One finished evaluation, complete enough to be judged without its run.

    Accuracies are percent. `metrics` and each of `baselines` have the same keys; `primary` names the one that
    `confidence_interval` is of and that stands for the result where there is room for one number. For classification
    they are `top1` (and `top5` with more than five classes) of the headline setting, `top1_k20` ... for every k at the
    first temperature, `top1_k20_T0.5` for others; `x_std` is the spread of `x` over several draws. `n_train` is 0 where
    no label is used. `curves` holds series that a protocol records beside its numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: str
    protocol_text: str
    settings: dict[str, float | int | bool | str | list[int] | list[float] | list[str]]
    headline: dict[str, float | int]
    features: str
    feature_dim: int
    role: str
    encoder: str
    data: dict[str, SplitUsed]
    split: str
    seed: int
    n: int
    n_train: int
    num_classes: int
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    confidence_interval: dict[str, tuple[float, float]]
    confidence_text: str
    per_class: list[ClassResult]
    confusion: list[list[int]] | None
    notes: list[str]
    seconds: float
    halfseen_version: str
    curves: dict[str, list[float]] = {}
    primary: str = "top1"

    def write(self, folder: str | Path) -> Path:
        """Write `<folder>/<protocol>.json`, replacing an older one whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.protocol}.json"
        beside = path.with_suffix(".json.part")
        beside.write_text(json.dumps(self.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
        beside.replace(path)
        return path
