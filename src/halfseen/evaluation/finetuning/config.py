"""What fine-tuning a classifier is: its feature and head, augmentation, blending, rates, and which weights count.

`finetune_settings` holds the published protocols by name, with what each prescribes for a size of encoder; `finetune`
is ours for small images and a CPU.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from halfseen.backbones.base import Encoder
from halfseen.backbones.swin import SwinEncoder
from halfseen.config.load import flatten
from halfseen.config.yaml_text import Settings, Value
from halfseen.data.config import DataConfig
from halfseen.engine.config import OPERATIONAL_KEYS, RuntimeConfig, TrainConfig
from halfseen.errors import ConfigError, ShapeError
from halfseen.idle import Need, refuse_idle

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


class Protocol(NamedTuple):
    """A protocol's settings for an encoder.

    Attributes:
        settings: nested, as far as they differ from the defaults of `FinetuneConfig`.
        notes: sentences where the protocol doesn't know this kind or size of encoder.
    """

    settings: Settings
    notes: tuple[str, ...]


def _merged(*layers: Mapping[str, Value]) -> Settings:
    merged: Settings = {}
    for layer in layers:
        for key, value in layer.items():
            held = merged.get(key)
            merged[key] = _merged(held, value) if isinstance(held, dict) and isinstance(value, dict) else value
    return merged


def _rate(base: float, per: int | None, schedule: str, warmup: float, low: float, **more: Value) -> Settings:
    """A learning rate that holds for `per` images, its schedule, warm-up in epochs, and where it ends."""
    return {
        "base": base,
        "reference_batch": per,
        "schedule": schedule,
        "warmup_epochs": warmup,
        "min": low,
        **more,
    }


_ADAMW: Settings = {"name": "adamw", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.05}
_SIMMIM_RATE = _rate(1.25e-3, 512, "simmim_cosine", 20, 2.5e-7, warmup_start=2.5e-7, scale_all=True, lag_steps=1)

_OWN: Settings = {
    "drop_path": 0.0,
    "baselines": True,
    "augment": {"crop_scale": [0.5, 1.0], "policy": None, "erase": 0.0},
    "mix": {"mixup": 0.0, "cutmix": 0.0},
    "view": {"crop_ratio": 1.0},
    "train": {
        "epochs": 10,
        "batch_size": 64,
        "optimizer": _ADAMW,
        "lr": _rate(2e-3, 256, "mae_cosine", 1, 1e-6),
    },
}
_MAE: Settings = {
    "mix": {"group": 32},
    "train": {"epochs": 100, "batch_size": 1024, "optimizer": _ADAMW, "lr": _rate(5e-4, 256, "mae_cosine", 5, 1e-6)},
}
_MAE_SIZES: dict[str, Settings] = {
    "base": {"layer_decay": 0.65, "drop_path": 0.1},
    "large": {"layer_decay": 0.75, "drop_path": 0.2, "train": {"epochs": 50, "lr": {"base": 1e-3}}},
    "huge": {
        "layer_decay": 0.75,
        "drop_path": 0.3,
        "mix": {"group": 16},
        "train": {"epochs": 50, "lr": {"base": 1e-3}},
    },
}
_SIMMIM: Settings = {
    "mix": {"group": 128},
    "choose": "test",
    "train": {"epochs": 100, "batch_size": 2048, "clip_norm": 5.0, "optimizer": _ADAMW, "lr": _SIMMIM_RATE},
}
_SIMMIM_SIZES: dict[str, Settings] = {
    "base": {"layer_decay": 0.65},
    "swin_base": {"layer_decay": 0.8, "feature": "mean", "head_std": 0.02},
    "swin_large": {"layer_decay": 0.7, "drop_path": 0.2, "feature": "mean", "head_std": 0.02},
}
_LOCALMIM: Settings = {
    "mix": {"group": 128},
    "choose": "test",
    "fresh_norm": True,
    "train": {"epochs": 100, "batch_size": 1024, "optimizer": _ADAMW},
}
_LOCALMIM_SIZES: dict[str, Settings] = {
    "base": {"layer_decay": 0.65, "train": {"lr": _rate(2e-3, 1024, "mae_cosine", 20, 1e-5)}},
    "large": {
        "layer_decay": 0.75,
        "drop_path": 0.2,
        "mix": {"group": 64},
        "train": {"epochs": 50, "lr": _rate(3e-3, 1024, "mae_cosine", 5, 1e-6)},
    },
    "swin_base": {
        "layer_decay": 0.9,
        "decay_bias_tables": True,
        "train": {"lr": _rate(4e-3, 1024, "mae_cosine", 20, 2.5e-7)},
    },
    "swin_large": {
        "layer_decay": 0.8,
        "drop_path": 0.3,
        "decay_bias_tables": True,
        "mix": {"group": 32},
        "train": {"batch_size": 2048, "lr": _rate(2e-3, 2048, "mae_cosine", 20, 2.5e-7)},
    },
}
_KAMIM: Settings = {
    "feature": "mean",
    "head_std": None,
    "drop_path": 0.0,
    "layer_decay": 1.0,
    "label_smoothing": 0.0,
    "augment": {
        "crop": "squash",
        "hflip": 0.0,
        "interpolation": "bilinear",
        "antialias": False,
        "policy": "trivial",
        "erase": 0.0,
    },
    "mix": {"mixup": 1.0, "cutmix": 1.0, "form": "torchvision"},
    "view": {"resize": "squash", "interpolation": "bilinear", "antialias": False},
    "train": {
        "epochs": 110,
        "batch_size": 2048,
        "drop_last": False,
        "clip_norm": 1.0,
        "optimizer": {**_ADAMW, "decay_all": True},
        "lr": _rate(5e-3, None, "kamim_cosine", 10, 2.5e-6, warmup_start=2.5e-6, epochs=100, lag_steps=1),
    },
}
_MSN: Settings = {"drop_path": 0.2, "layer_decay": 0.65}
_IBOT: Settings = {
    "feature": "cls",
    "mix": {"group": 128},
    "train": {"epochs": 100, "batch_size": 1024, "optimizer": _ADAMW, "lr": _rate(5e-4, 256, "mae_cosine", 20, 1e-6)},
}
_IBOT_SIZES: dict[str, Settings] = {
    "small": {"layer_decay": 0.75, "drop_path": 0.1, "train": {"epochs": 200}},
    "base": {"layer_decay": 0.65, "drop_path": 0.2},
    "large": {"layer_decay": 0.75, "drop_path": 0.4, "train": {"epochs": 50, "lr": {"warmup_epochs": 5}}},
}


class _Entry(NamedTuple):
    """A protocol: what holds for all encoders, and for some sizes (empty: it makes no difference between them)."""

    common: Settings
    sizes: Mapping[str, Settings]


FINETUNE_PROTOCOLS: dict[str, _Entry] = {
    "finetune": _Entry(_OWN, {}),
    "mae-finetune": _Entry(_MAE, _MAE_SIZES),
    "msn-finetune": _Entry(_merged(_MAE, _MSN), {}),
    "simmim-finetune": _Entry(_SIMMIM, _SIMMIM_SIZES),
    "localmim-finetune": _Entry(_LOCALMIM, _LOCALMIM_SIZES),
    "kamim-finetune": _Entry(_KAMIM, {}),
    "ibot-finetune": _Entry(_IBOT, _IBOT_SIZES),
}
"""By name: what differs from the defaults of `FinetuneConfig`."""

_ONE_SIZE = ("msn-finetune",)
"""Protocols of which one size of encoder is published."""

WIDTHS = {"small": 384, "base": 768, "large": 1024, "huge": 1280, "swin_base": 1024, "swin_large": 1536}
"""Width of the tokens that come out of an encoder of each named size."""


def finetune_settings(name: str, encoder: Encoder, image_size: int | None = None) -> Protocol:
    """The settings that a protocol's name stands for, with what it prescribes for this size of encoder.

    Args:
        image_size: side of the views in pixels, above 224 of which most protocols cut no border; None = the encoder's.
    Raises:
        ConfigError: an unknown name.
        ShapeError: a class token that the encoder has not.
    """
    if name not in FINETUNE_PROTOCOLS:
        raise ConfigError(f"protocol: got '{name}', expected one of {', '.join(FINETUNE_PROTOCOLS)}.")
    entry = FINETUNE_PROTOCOLS[name]
    size, notes = _size_for(name, encoder, entry.sizes)
    settings = _merged({"protocol": name}, entry.common, entry.sizes.get(size, {}))
    if isinstance(encoder, SwinEncoder) and "feature" not in settings and name != "localmim-finetune":
        settings["feature"] = "mean"  # timm's Swins, and those of all other protocols, pool after the norm.
    if not encoder.has_class_token and settings.get("feature") == "cls":
        settings["feature"] = "mean"
        notes.append("The encoder has no class token: the mean of its patch tokens stands for it.")
    side = image_size or encoder.image_size
    if name == "simmim-finetune" and isinstance(encoder, SwinEncoder) and side == 224:
        settings["window_size"] = 14 if size == "swin_large" else 7
    if side > 224 and name in ("mae-finetune", "msn-finetune", "localmim-finetune"):
        settings = _merged(settings, {"view": {"crop_ratio": 1.0}})
    return Protocol(settings, tuple(notes))


def _size_for(name: str, encoder: Encoder, sizes: Mapping[str, Settings]) -> tuple[str, list[str]]:
    """The size whose published settings fit an encoder best, and a sentence where it isn't its own."""
    swin = isinstance(encoder, SwinEncoder)
    kin = [size for size in sizes if size.startswith("swin_") == swin]
    if not sizes and name in _ONE_SIZE and encoder.embed_dim != WIDTHS["base"]:
        return "", [f"{name} was published for a base ViT ({WIDTHS['base']} wide) only: the settings are its."]
    if not sizes:
        return "", []
    if not kin:
        near = "base" if swin else next(iter(sizes))
        return near, [f"{name} was published for {'ViTs' if swin else 'Swins'} only: the settings are those of {near}."]
    near = min(kin, key=lambda size: abs(WIDTHS[size] - encoder.embed_dim))
    if WIDTHS[near] == encoder.embed_dim:
        return near, []
    return near, [
        f"{name} was not published for an encoder {encoder.embed_dim} wide: the settings are those of {near} "
        f"({WIDTHS[near]} wide)."
    ]


FREE_KEYS = (OPERATIONAL_KEYS - {"train.max_steps"}) | {
    "encoder", "seed", "data", "test", "baselines", "view.batch_size", "view.max_test",
}  # fmt: skip
"""Dotted keys (or sections) that no protocol prescribes, but for `data.image_size` and the subsets."""

IMAGE_SIZES = {"mae-finetune": 224, "msn-finetune": 224, "simmim-finetune": 224, "localmim-finetune": 224,
               "kamim-finetune": 192, "ibot-finetune": 224}  # fmt: skip
"""Side of the images in the published runs. A run keeps its encoder's own size and says where it is another one."""


def departures(config: FinetuneConfig, protocol: Protocol) -> list[str]:
    """Dotted keys of a protocol that stand in a run's settings with other values."""
    needed = {"encoder": config.encoder}
    published = FinetuneConfig.model_validate({**protocol.settings, **needed})
    theirs = flatten(published.model_dump(mode="json"))
    ours = flatten(config.model_dump(mode="json"))
    if protocol.settings["protocol"] in IMAGE_SIZES:
        theirs["data.image_size"] = IMAGE_SIZES[str(protocol.settings["protocol"])]
    else:
        theirs["data.image_size"] = config.data.image_size

    def is_free(key: str) -> bool:
        if key == "evaluate_every_epochs":
            return config.choose == "last"  # Else it says among how many epochs one is chosen.
        chosen_images = key.startswith("data.subset_") and config.protocol in IMAGE_SIZES
        if key == "data.image_size" or chosen_images:
            return False
        return any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)

    return [key for key, value in ours.items() if value != theirs.get(key) and not is_free(key)]


def check_feature(feature: PooledFeature, encoder: Encoder) -> None:
    """See that an encoder can be pooled in this way.

    Raises:
        ShapeError: no class token.
    """
    if feature == "cls" and not encoder.has_class_token and not hasattr(encoder.trunk, "cls_token"):
        raise ShapeError("feature: got 'cls', but this encoder has no class token. Use 'mean'.")
