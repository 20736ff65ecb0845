"""Fine-tuning by name: the published protocols, with what each prescribes for a size of encoder.

`finetune` is ours for small images and a CPU.
"""

from collections.abc import Mapping
from typing import NamedTuple

from halfseen.backbones.base import Encoder
from halfseen.backbones.swin import SwinEncoder
from halfseen.config.load import flatten
from halfseen.config.yaml_text import Settings, Value
from halfseen.engine.config import OPERATIONAL_KEYS
from halfseen.errors import ConfigError
from halfseen.evaluation.finetuning.config import FinetuneConfig


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
