"""A run's method: built from its settings, started from random or given weights, or read back from a checkpoint."""

from pathlib import Path

import torch

from halfseen.backbones.build import build_encoder
from halfseen.engine.checkpoint import Identity, latest_checkpoint, load_checkpoint, restore_model
from halfseen.engine.config import science_settings
from halfseen.errors import CheckpointError
from halfseen.methods.base import Method
from halfseen.methods.table import build_method
from halfseen.ops.randomness import stream_seed
from halfseen.pretraining.config import RunConfig
from halfseen.pretraining.folder import read_config
from halfseen.pretraining.initial_weights import load_initial_weights


def prepare_method(config: RunConfig, weights: bool = True) -> Method:
    """The method of a run with its first weights: random ones that follow from the seed, or those of `init`.

    Args:
        weights: False leaves `init` aside, for weights that are replaced anyway.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.seed, "build"))
        encoder = build_encoder(config.model, config.data.image_size)
        method = build_method(
            config.method, encoder, config.data.image_size, config.data.mean, config.data.std, config.seed
        )
    if config.init is not None and weights:
        load_initial_weights(method, config.init)
    return method


def load_method(run_dir: str | Path) -> Method:
    """The method of a run with the weights of its newest whole checkpoint, on the CPU.

    Raises:
        CheckpointError: no run, or no whole checkpoint in it.
    """
    folder = Path(run_dir)
    config = read_config(folder)
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
