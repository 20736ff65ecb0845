"""A run's method: built from its settings, started from random or given weights, or read back from a checkpoint.

An encoder whose attention guides the masks may be anywhere when a run begins. The run keeps a copy of it in its own
folder, so that it can go on, and be looked at, without it.
"""

from pathlib import Path

import torch

from halfseen.backbones.base import Encoder
from halfseen.backbones.build import build_encoder
from halfseen.backbones.weights import export_encoder
from halfseen.engine.checkpoint import Identity, latest_checkpoint, load_checkpoint, restore_model
from halfseen.engine.config import science_settings
from halfseen.engine.folder import CONFIG
from halfseen.errors import CheckpointError
from halfseen.methods.base import Method
from halfseen.methods.mae import MAE, MAEConfig
from halfseen.methods.simmim import SimMIM, SimMIMConfig
from halfseen.methods.table import AnyMethodConfig, build_method
from halfseen.ops.randomness import stream_seed
from halfseen.pretraining.config import RunConfig
from halfseen.pretraining.folder import read_config
from halfseen.pretraining.initial_weights import load_initial_weights

GUIDE = "guide"
"""Folder in a run's that keeps a given encoder whose attention guides the masks."""


def prepare_method(config: RunConfig, weights: bool = True) -> Method:
    """The method of a run with its first weights: random ones that follow from the seed, or those of `init`.

    Args:
        weights: False leaves `init` aside, for weights that are replaced anyway.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.seed, "build"))
        encoder = build_encoder(config.model, config.data.image_size)
        method = build_method(
            _guided_by_copy(config), encoder, config.data.image_size, config.data.mean, config.data.std, config.seed
        )
    if config.init is not None and weights:
        load_initial_weights(method, config.init)
    return method


def untrained_method(config: RunConfig) -> Method:
    """A run's method as it begins, but by another seed: no file is needed for it.

    The run's own first weights would be a chance that the trained ones depend on.
    """
    method = config.method
    if isinstance(method, MAEConfig | SimMIMConfig):
        method = method.model_copy(update={"attention_mask": None})
    untrained = config.model_copy(update={"init": None, "seed": config.seed + 1, "method": method})
    return prepare_method(untrained)


def untrained_encoder(config: RunConfig) -> Encoder:
    """The network of a run's encoder as its method begins it, see `untrained_method`."""
    return untrained_method(config).encoders()["student"]


def keep_guide(method: Method, folder: Path) -> None:
    """Copy the given encoder whose attention guides the masks, if there is one, into the run's folder."""
    guide = method.guide if isinstance(method, MAE | SimMIM) else None
    if guide is not None and guide.config.encoder is not None:
        origin = {"origin": guide.config.encoder}
        export_encoder(guide.encoder, folder / GUIDE, mean=guide.mean, std=guide.std, role="guide", extra=origin)


def _guided_by_copy(config: RunConfig) -> AnyMethodConfig:
    """The method's settings, with the run's own copy of a given encoder once there is one."""
    method = config.method
    guide = method.attention_mask if isinstance(method, MAEConfig | SimMIMConfig) else None
    if guide is None or guide.encoder is None or config.run_dir is None:
        return method
    folder = Path(config.run_dir)
    if not (folder / CONFIG).is_file() or not (folder / GUIDE).is_dir():
        return method
    own = guide.model_copy(update={"encoder": str(folder / GUIDE)})
    return method.model_copy(update={"attention_mask": own})


def load_method(run_dir: str | Path) -> Method:
    """The method of a run with the weights of its newest whole checkpoint, on the CPU.

    Raises:
        CheckpointError: no run, or no whole checkpoint in it.
    """
    folder = Path(run_dir)
    config = read_config(folder).model_copy(update={"run_dir": str(folder)})
    method = prepare_method(config, weights=False)
    newest = latest_checkpoint(folder)
    if newest is None:
        raise CheckpointError(
            f"'{folder}' has no whole checkpoint. Resume the run: halfseen pretrain --resume {folder}"
        )
    restore_model(method, load_checkpoint(newest, identity_of(config)))
    return method


def identity_of(config: RunConfig) -> Identity:
    """What a checkpoint of the run must agree with."""
    return Identity(config.method.name, science_settings(config.model_dump(mode="json")))
