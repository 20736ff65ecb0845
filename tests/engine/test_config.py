"""What the settings of training refuse, and the defaults that depend on the machine."""

import re

import pytest
import torch
from pydantic import BaseModel, ValidationError

from halfseen.engine.config import (
    LearningRateConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
    available_cores,
    science_settings,
)
from halfseen.errors import ConfigError


@pytest.mark.parametrize("model", [TrainConfig, OptimizerConfig, LearningRateConfig, RuntimeConfig])
def test_dumping_and_loading_gives_the_same_settings(model: type[BaseModel]) -> None:
    config = model()
    assert model.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (OptimizerConfig, {"name": "sgd", "betas": (0.9, 0.9)}, "betas: got [0.9, 0.9], but it has no effect"),
        (OptimizerConfig, {"momentum": 0.5}, "momentum: got 0.5, but it has no effect with the optimizer 'adamw'"),
        (OptimizerConfig, {"name": "sgd", "trust": 0.5}, "trust"),
        (OptimizerConfig, {"decay_all": True, "weight_decay": 0.0}, "decay_all"),
        (
            OptimizerConfig,
            {"weight_decay_end": 0.4},
            "weight_decay_end: got 0.4, but it has no effect with weight_decay_schedule=constant",
        ),
        (OptimizerConfig, {"weight_decay_schedule": "msn_cosine"}, "weight_decay_end: got null"),
        (LearningRateConfig, {"schedule": "multistep", "gamma": 0.1}, "milestones: missing"),
        (LearningRateConfig, {"gamma": 0.1}, "gamma: got 0.1, but it has no effect with the schedule 'mae_cosine'"),
        (LearningRateConfig, {"schedule": "constant", "min": 1e-6}, "min"),
        (LearningRateConfig, {"warmup_start": 1e-6}, "run without warm-up"),
        (LearningRateConfig, {"reference_batch": None, "scale_all": True}, "scale_all"),
        (LearningRateConfig, {"index": "microbatch"}, "index"),
        (LearningRateConfig, {"base": 1e-4, "min": 1e-3}, "min: got 0.001, which is above base"),
        (LearningRateConfig, {"schedule": "multistep", "gamma": 0.1, "milestones": (9, 7)}, "ascending"),
        (
            LearningRateConfig,
            {"schedule": "multistep", "gamma": 0.1, "milestones": (7,), "warmup_epochs": 8},
            "lies within the warm-up",
        ),
        (TrainConfig, {"clip_each_micro_batch": True}, "has no effect with a run without clipping"),
        (TrainConfig, {"clip_scope": "tensor"}, "clip_scope: got tensor, but it has no effect"),
        (TrainConfig, {"batch_size": 12, "micro_batch_size": 5}, "Try 4"),
        (
            TrainConfig,
            {"unscaled_accumulation": 8},
            "unscaled_accumulation: got 8, but it has no effect",
        ),
        (TrainConfig, {"unscaled_accumulation": 3, "drop_last": False}, "doesn't divide batch_size = 256"),
        (TrainConfig, {"unscaled_accumulation": 1, "drop_last": False}, "greater than or equal to 2"),
        (TrainConfig, {"epochs": 0}, "greater than 0"),
        (TrainConfig, {"epoch": 1}, "Extra inputs"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(model: type[BaseModel], values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        model(**values)


def test_a_step_is_shared_by_processes_and_micro_batches() -> None:
    train = TrainConfig(batch_size=64, micro_batch_size=8)
    assert train.split(1) == (64, 8, 8)
    assert train.split(4) == (16, 8, 2)
    assert TrainConfig(batch_size=64).split(2) == (32, 32, 1)
    with pytest.raises(ConfigError, match=r"train\.micro_batch_size: got 8.*Try 4"):
        train.split(16)


@pytest.mark.parametrize("accumulation", [None, 2, 4])
@pytest.mark.parametrize("pieces", [(16,), (8, 8), (2,) * 8])
def test_a_whole_batch_weighs_its_images_alike(accumulation: int | None, pieces: tuple[int, ...]) -> None:
    train = TrainConfig(batch_size=16, unscaled_accumulation=accumulation, drop_last=False)
    first = 0
    for rows in pieces:
        assert train.loss_weight(first, rows, 16) == rows / 16
        first += rows


def test_unscaled_accumulation_weighs_each_part_alike() -> None:
    """A batch of 11 with 4 parts of 4 images: parts of 4, 4 and 3 are there, and none is scaled up for the missing."""
    train = TrainConfig(batch_size=16, unscaled_accumulation=4, drop_last=False)
    assert [train.loss_weight(0, 4, 11), train.loss_weight(4, 4, 11), train.loss_weight(8, 3, 11)] == [0.25] * 3
    # Cut otherwise, the images keep their weights: 1/16 each of the first eight, 1/12 of the last three.
    assert train.loss_weight(0, 2, 11) == pytest.approx(2 / 16)
    assert train.loss_weight(6, 4, 11) == pytest.approx(2 / 16 + 2 / 12)
    assert train.loss_weight(9, 2, 11) == pytest.approx(2 / 12)
    assert train.loss_weight(0, 11, 11) == pytest.approx(0.75)
    assert train.loss_weight(0, 8, 8) == 0.5
    assert train.loss_weight(0, 3, 3) == 0.25


@pytest.mark.parametrize(
    ("epochs", "max_steps", "total", "last"),
    [(2.0, None, 14, 14), (0.5, None, 4, 4), (0.01, None, 1, 1), (2.0, 5, 14, 5), (2.0, 99, 14, 14)],
)
def test_epochs_may_be_fractional_and_max_steps_only_ends(
    epochs: float, max_steps: int | None, total: int, last: int
) -> None:
    train = TrainConfig(epochs=epochs, max_steps=max_steps)
    assert (train.total_steps(7), train.last_step(7)) == (total, last)


def test_threads_are_the_cores_shared_by_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RuntimeConfig().threads == available_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * available_cores()))
    assert RuntimeConfig().threads == 1


def test_activation_checkpointing_is_refused_where_torch_has_none() -> None:
    with pytest.raises(ValidationError, match="activation_checkpointing: torch has it for cuda, mps and cpu, not for"):
        RuntimeConfig(device="xla", activation_checkpointing=True)
    assert RuntimeConfig(device="cpu", activation_checkpointing=True).activation_checkpointing


def test_the_precision_follows_a_named_device() -> None:
    if not torch.cuda.is_available():
        assert RuntimeConfig(device="cuda").precision == "fp32"
        assert RuntimeConfig(device="cpu").precision == RuntimeConfig().precision
    assert RuntimeConfig(device="cpu", precision="fp16").precision == "fp16"


def test_science_settings_leave_out_what_may_change_on_resume() -> None:
    config = {
        "seed": 1,
        "run_dir": "runs/a",
        "runtime": {"workers": 2},
        "evaluate": {"k": 20},
        "method": {"name": "mae", "crop": [0.2, 1.0]},
        "train": {"max_steps": 5, "keep_checkpoints": 2, "lr": {"base": 1e-3}},
    }
    assert science_settings(config) == {
        "seed": 1,
        "method.name": "mae",
        "method.crop": [0.2, 1.0],
        "train.lr.base": 1e-3,
    }
