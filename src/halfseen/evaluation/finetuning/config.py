"""What fine-tuning a classifier is: its feature and head, augmentation, blending, rates, and which weights count."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from halfseen.backbones.base import Encoder
from halfseen.backbones.beit import BeitEncoder
from halfseen.backbones.config import PRESETS
from halfseen.backbones.swin import SwinEncoder
from halfseen.backbones.vit import ViTEncoder
from halfseen.data.config import DataConfig
from halfseen.engine.config import RuntimeConfig, TrainConfig
from halfseen.errors import ConfigError, ShapeError
from halfseen.idle import IdleSettings, Need, refuse_idle

PooledFeature = Literal["cls", "mean", "mean-then-norm"]
Choice = Literal["last", "held-out", "test"]

RAND_AUGMENT = "rand-m9-mstd0.5-inc1"

FEATURE_SENTENCES: dict[PooledFeature, str] = {
    "cls": "class token of the last block after the final norm",
    "mean": "mean of the last block's patch tokens after the final norm",
    "mean-then-norm": "mean of the last block's patch tokens, then a layer norm of its own",
}


def _check_policy(policy: str) -> None:
    from timm.data.auto_augment import rand_augment_transform

    try:
        if not policy.startswith("rand-"):
            raise ValueError("it must begin with 'rand-'")
        rand_augment_transform(policy, {})
    except Exception as error:  # timm reads the words by assertions, conversions and lookups.
        raise ValueError(
            f"policy: got '{policy}', which timm can't read ({error or type(error).__name__}); expected words like "
            "rand-m9-mstd0.5-inc1, trivial or null."
        ) from None


class AugmentConfig(BaseModel):
    """What happens to a training image before it is blended with others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop: Literal["random", "squash"] = Field(
        "random",
        description="How an image becomes square: random (resized crop and flip) or squash (the whole image, aspect "
        "ratio lost, as KAMIM does).",
    )
    crop_scale: tuple[float, float] = Field(
        (0.08, 1.0), description="Smallest and largest share of the image's area in a random crop, in (0, 1]."
    )
    hflip: float = Field(0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    interpolation: Literal["bilinear", "bicubic"] = Field("bicubic", description="Resampling of the view.")
    antialias: bool = Field(True, description="Whether the view is filtered when an image shrinks (true/false).")
    policy: str | None = Field(
        RAND_AUGMENT,
        description="Further changes: a RandAugment policy in timm's words, trivial (TrivialAugmentWide, then a black "
        "rectangle on half of the images) or null.",
    )
    color_jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Strength of random brightness, contrast and saturation, in timm's way in place of a policy.",
    )
    erase: float = Field(
        0.25, ge=0, le=1, description="Probability that a rectangle of the image is replaced by noise (reprob)."
    )

    @model_validator(mode="after")
    def _settings_go_together(self) -> "AugmentConfig":
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale: got {list(self.crop_scale)}, expected two rising shares in (0, 1].")
        if self.crop == "squash" and (self.crop_scale != (0.08, 1.0)):
            raise ValueError("crop_scale: no effect on crop=squash, which takes the whole image. Leave it out.")
        if self.color_jitter and self.policy is not None:
            raise ValueError(
                f"color_jitter: got {self.color_jitter:g} beside policy = '{self.policy}', which changes colours "
                "itself. Write policy=null, or leave color_jitter out."
            )
        if self.policy not in (None, "trivial", RAND_AUGMENT):
            _check_policy(str(self.policy))
        return self


class MixConfig(BaseModel):
    """MixUp and CutMix: how training images and their labels are blended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mixup: float = Field(0.8, ge=0, description="Alpha of MixUp's Beta distribution, no unit; 0 = no MixUp.")
    cutmix: float = Field(1.0, ge=0, description="Alpha of CutMix's Beta distribution, no unit; 0 = no CutMix.")
    probability: float = Field(1.0, gt=0, le=1, description="Probability that images are blended at all.")
    switch: float = Field(0.5, gt=0, lt=1, description="Probability of CutMix where both are on.")
    group: int | None = Field(
        None,
        ge=2,
        multiple_of=2,
        description="Images in a row that share one draw: the batch of one process in the originals; null = all "
        "images of a step.",
    )
    form: Literal["timm", "torchvision"] = Field(
        "timm",
        description="timm (pairs of neighbours blended with each other) or torchvision (each image with the one before "
        "it, MixUp or CutMix with alpha 1 in equal parts, one draw per micro-batch, on whose size the blends depend; "
        "KAMIM's).",
    )

    @property
    def is_on(self) -> bool:
        """Whether anything is ever blended."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "MixConfig":
        if self.form == "torchvision" and (self.mixup, self.cutmix) != (1.0, 1.0):
            raise ValueError(
                f"form: torchvision's is MixUp or CutMix with alpha 1, but mixup = {self.mixup:g} and cutmix = "
                f"{self.cutmix:g}. Write mix.mixup=1 mix.cutmix=1, or mix.form=timm."
            )
        draws = self.form == "timm" and self.is_on
        otherwise = "mixup=0 cutmix=0" if self.form == "timm" else "form=torchvision"
        refuse_idle(
            self,
            [
                *(Need(key, draws, otherwise) for key in ("probability", "group")),
                Need("switch", draws and self.mixup > 0 and self.cutmix > 0, "one of mixup and cutmix alone"),
            ],
        )
        return self


class ViewConfig(BaseModel):
    """The deterministic view of images that are classified, and how many of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resize: Literal["crop", "squash"] = Field(
        "crop", description="How an image becomes square: crop (centre) or squash (aspect ratio lost)."
    )
    crop_ratio: float = Field(
        0.875,
        gt=0,
        le=1,
        description="Side of the centre crop over the resized shorter side, no unit; 224/256 up to 224 px in most "
        "protocols, 1 above and for images that are small already.",
    )
    interpolation: Literal["bilinear", "bicubic"] = Field("bicubic", description="Resampling of the view.")
    antialias: bool = Field(True, description="Whether the view is filtered when an image shrinks (true/false).")
    batch_size: int = Field(128, ge=1, description="Images per forward pass.")
    max_test: int | None = Field(None, ge=1, description="Most test images, a seeded choice; null = all.")

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "ViewConfig":
        refuse_idle(self, [Need("crop_ratio", self.resize == "crop", "resize=squash")])
        return self


class FinetuneConfig(BaseModel):
    """A fine-tuning run: which encoder is trained how, on what, and which weights are reported."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: str = Field(description="Name of the protocol, which names the result's file too.")
    encoder: str = Field(description="Where the encoder came from; the run keeps a copy of it in its folder start.")
    seed: int = Field(0, ge=0, description="The run's only source of randomness, no unit.")
    run_dir: str | None = Field(
        None, description="Folder the run writes to; null makes a new one, runs/<protocol>-<data>-<number>."
    )
    feature: PooledFeature = Field(
        "mean-then-norm",
        description="What the head sees: cls (class token), mean (of the patch tokens) - both after the final norm - "
        "or mean-then-norm (mean of the patch tokens, then a layer norm of its own).",
    )
    fresh_norm: bool = Field(
        False,
        description="Begin the final norm anew instead of with the encoder's, as LocalMIM does (true/false); a ViT's "
        "mean-then-norm always begins anew.",
    )
    dropped_blocks: int = Field(
        0,
        ge=0,
        description="Last blocks taken away before training, to learn what they are worth; needs a ViT preset. Layers "
        "of layer_decay are counted from the new top.",
    )
    fresh_blocks: int = Field(
        0,
        ge=0,
        description="Last blocks (of those that stay) that begin with the weights of the same network at random "
        "initialisation; a Swin's count through its stages.",
    )
    head_std: float | None = Field(
        2e-5,
        gt=0,
        description="Spread of the truncated normal distribution of the head's first weights, no unit; null = torch's.",
    )
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="Stochastic depth rate of the last block; rises linearly from 0 at the first."
    )
    window_size: int | None = Field(
        None, ge=1, description="Side of an attention window in tokens, of a Swin; null = the encoder's own."
    )
    layer_decay: float = Field(
        0.75,
        gt=0,
        le=1,
        description="Factor of the learning rate from one block to the one before it, no unit (lambda); 1 = none.",
    )
    decay_bias_tables: bool = Field(
        False,
        description="Let the weight decay act on a Swin's relative position bias tables, as LocalMIM does "
        "(true/false); a ViT's are always decayed.",
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="Share of each label that is spread over all classes, no unit."
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of a moving average of the weights that stays in each step; the average is then what is "
        "measured and kept; null = no average.",
    )
    choose: Choice = Field(
        "last",
        description="Which weights are reported: last (those of the last epoch), held-out (the best on training images "
        "kept apart) or test (the best on the test images, as some originals do: too high).",
    )
    held_out: float = Field(
        0.1, gt=0, lt=1, description="Share of each class's training images that choose=held-out keeps apart."
    )
    evaluate_every_epochs: float = Field(
        1.0, gt=0, description="Epochs between two measurements on the test (and held-out) images."
    )
    baselines: bool = Field(
        False,
        description="Train the same network from random weights by the same protocol, and a linear classifier on raw "
        "pixels, beside it (true/false).",
    )
    test: str | None = Field(
        None,
        description="DATA that is classified: its test split, or all of it; null = that of data.source, or a fifth of "
        "its images where it has one split only.",
    )
    augment: AugmentConfig = Field(AugmentConfig.model_validate({}), description="Changes of training images.")
    mix: MixConfig = Field(MixConfig.model_validate({}), description="Blending of training images.")
    view: ViewConfig = Field(ViewConfig.model_validate({}), description="The view of images that are classified.")
    data: DataConfig = Field(DataConfig.model_validate({}), description="The training images.")
    train: TrainConfig = Field(TrainConfig.model_validate({}), description="Length, batch, optimiser, learning rate.")
    runtime: RuntimeConfig = Field(
        default_factory=lambda: RuntimeConfig.model_validate({}), description="Machine, speed and output."
    )

    @property
    def changes_blocks(self) -> bool:
        """Whether another network than the whole encoder is trained."""
        return self.dropped_blocks > 0 or self.fresh_blocks > 0

    @model_validator(mode="after")
    def _pairs_come_out_even(self) -> "FinetuneConfig":
        if not self.mix.is_on or self.mix.form != "timm":
            return self
        for key, rows in (("micro_batch_size", self.train.micro_batch_size), ("batch_size", self.train.batch_size)):
            if rows is not None and rows % 2:
                raise ValueError(
                    f"train.{key}: got {rows}, but MixUp and CutMix blend pairs of images. Give an even number, or "
                    "write mix.mixup=0 mix.cutmix=0."
                )
        if not self.train.drop_last:
            raise ValueError(
                "train.drop_last: got false, but the last batch of an epoch may be odd, and MixUp and CutMix blend "
                "pairs of images. Leave it out, or write mix.mixup=0 mix.cutmix=0."
            )
        return self

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "FinetuneConfig":
        if self.choose != "held-out" and self.held_out != type(self).model_fields["held_out"].default:
            raise ValueError(f"held_out: no effect with choose={self.choose}. Leave it out, or choose=held-out.")
        if self.train.freeze is not None:
            raise ValueError("train.freeze: all layers learn in fine-tuning; freezing is for pre-training.")
        if self.mix.form == "torchvision" and self.label_smoothing:
            raise ValueError(
                f"label_smoothing: got {self.label_smoothing:g}, but KAMIM's blended labels are not smoothed. Write "
                "label_smoothing=0."
            )
        return self


def check_feature(feature: PooledFeature, encoder: Encoder) -> None:
    """See that an encoder can be pooled in this way.

    Raises:
        ShapeError: no class token.
    """
    if feature == "cls" and not encoder.has_class_token and getattr(encoder.trunk, "cls_token", None) is None:
        raise ShapeError("feature: got 'cls', but this encoder has no class token. Use 'mean'.")


def check_blocks(dropped: int, fresh: int, encoder: Encoder) -> None:
    """See that an encoder has blocks to drop and to begin anew, and keeps one of its own.

    Raises:
        ConfigError: too many, or a network whose depth is fixed.
    """
    fixed = None
    if isinstance(encoder, SwinEncoder):
        fixed = "a Swin's last stage can't do without its blocks"
    elif encoder.config.name not in PRESETS:
        fixed = f"timm's '{encoder.config.name}' has a fixed depth"
    if dropped and fixed:
        raise ConfigError(
            f"dropped_blocks: got {dropped}, but {fixed}. Use fresh_blocks, which begins the last blocks with random "
            "weights, or a ViT preset of this library."
        )
    if dropped + fresh >= encoder.num_layers:
        raise ConfigError(
            f"{'dropped_blocks' if dropped else 'fresh_blocks'}: got dropped_blocks={dropped} and "
            f"fresh_blocks={fresh}, but the encoder has {encoder.num_layers} blocks and one must stay as it is. Give "
            "less in sum."
        )


def check_effects(config: FinetuneConfig, encoder: Encoder, prescribed: Mapping[str, object]) -> None:
    """See that every setting does something to this kind of encoder, but for those that its protocol prescribes.

    Raises:
        ConfigError: a sentence for each that doesn't.
    """
    is_swin = isinstance(encoder, SwinEncoder)
    pools_first = config.feature == "mean-then-norm" and isinstance(encoder, ViTEncoder | BeitEncoder)
    own_norm = {"fc_norm.weight"} if pools_first else {"norm.weight"}
    keeps_norm = bool(own_norm & set(encoder.trunk.state_dict()))
    needs = [
        Need("fresh_norm", keeps_norm, f"feature={config.feature} of this encoder, whose norm begins anew anyway"),
        Need("window_size", is_swin, "an encoder that is no Swin"),
        Need("decay_bias_tables", is_swin, "an encoder that is no Swin"),
    ]
    try:
        refuse_idle(config, [need for need in needs if getattr(config, need.key) != prescribed.get(need.key)])
    except IdleSettings as error:
        raise ConfigError(str(error)) from None
