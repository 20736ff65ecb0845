"""iBOT's schedules and its LARS against recorded outputs of the original."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from halfseen.engine.config import OptimizerConfig, TrainConfig
from halfseen.engine.optim import LARS, LearningRate, WeightDecay
from halfseen.ops.schedules import ibot_cosine, teacher_temperature
from parity.discovery import load_arrays, parity_files


@pytest.mark.parametrize("path", parity_files("ibot", "schedules"))
def test_schedules_of_every_iteration(path: Path) -> None:
    arrays = load_arrays(path)
    epochs, steps_per_epoch, warmup_epochs = arrays["args"].tolist()
    steps = range(epochs * steps_per_epoch)
    lr = {
        "schedule": "ibot_cosine",
        "base": 0.002,
        "reference_batch": None,
        "min": 1e-6,
        "warmup_epochs": warmup_epochs,
    }
    decay = {"weight_decay": 0.04, "weight_decay_end": 0.4, "weight_decay_schedule": "ibot_cosine"}
    train = TrainConfig(epochs=epochs, batch_size=4, lr=lr, optimizer=decay)
    rate = LearningRate.of_run(train, train.split(1), steps_per_epoch, 4 * steps_per_epoch)
    weight_decay = WeightDecay(OptimizerConfig(**decay), len(steps))
    np.testing.assert_allclose([rate(step) for step in steps], arrays["lr"], rtol=0, atol=1e-9)
    np.testing.assert_allclose([weight_decay(step) for step in steps], arrays["wd"], rtol=0, atol=1e-9)
    momentum = [ibot_cosine(step, base=0.996, final=1.0, total=len(steps)) for step in steps]
    np.testing.assert_allclose(momentum, arrays["momentum"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", parity_files("ibot", "schedules"))
def test_teacher_temperatures_of_every_epoch(path: Path) -> None:
    arrays = load_arrays(path)
    cases = [name.removesuffix("_args") for name in arrays if re.fullmatch(r"temp\d+_args", name)]
    assert cases
    for case in cases:
        warm, final, warmup, epochs, start = arrays[f"{case}_args"].tolist()
        for head, start_epoch in {"cls": 0, "patch": int(start)}.items():
            values = [
                teacher_temperature(epoch, warm=warm, final=final, warmup_epochs=int(warmup), start_epoch=start_epoch)
                for epoch in range(int(epochs))
            ]
            np.testing.assert_allclose(values, arrays[f"{case}_{head}"], rtol=0, atol=1e-9, err_msg=f"{case} {head}")


@pytest.mark.parametrize("path", parity_files("ibot", "lars"))
def test_steps_of_lars(path: Path) -> None:
    arrays = load_arrays(path)
    names = sorted(name for name in arrays if re.fullmatch(r"p\d+", name))
    parameters = {name: nn.Parameter(torch.from_numpy(arrays[name])) for name in names}
    decay = float(arrays["weight_decay"])
    groups = [{"params": [p], "weight_decay": decay if p.ndim > 1 else 0.0} for p in parameters.values()]
    optimizer = LARS(groups, lr=float(arrays["lr"]))
    steps = len([name for name in arrays if re.fullmatch(r"step\d+_g0", name)])
    assert steps
    for step in range(steps):
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(arrays[f"step{step}_g{name[1:]}"])
        optimizer.step()
        for name, parameter in parameters.items():
            np.testing.assert_allclose(
                parameter.detach().numpy(), arrays[f"step{step}_{name}"], rtol=0, atol=1e-6, err_msg=f"{step} {name}"
            )
