"""Linear probes against recorded ones of the originals, step by step, one among others that train beside it.

`knn_linear/linear_probe*.npz` (iBOT): first weights, batches `x` [epochs, steps, B, D] and `y`, validation rows, and
after every epoch weights, mean training loss and validation [top-1, top-5, loss], the loss being a plain mean over
batches of 24. `msn/linear_eval*.npz`: layer norm, length 1, linear layer and MSN's own SGD: batches, logits before
every update, losses. `mae/schedules_and_utils*.npz`, `lars.*`: batch norm, linear layer and LARS.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from halfseen.evaluation.linear.config import IBOT_GRID, LinearConfig
from halfseen.evaluation.linear.probes import Probe, learning_rate
from halfseen.evaluation.linear.side_by_side import Candidate, LinearHeads, Optimizer, measure
from parity.discovery import load_arrays, parity_files, state_under

VALIDATION_BATCH = 24


@pytest.mark.parametrize("path", parity_files("knn_linear", "linear_probe"))
def test_the_probe_of_ibot(path: Path) -> None:
    arrays = load_arrays(path)
    x, y, val_x, val_y = (torch.from_numpy(arrays[name]) for name in ("x", "y", "val_x", "val_y"))
    lr, batch, epochs = float(arrays["lr_arg"]), int(arrays["batch"]), int(arrays["epochs"])
    classes, width = arrays["init_weight"].shape
    given = {"head": "plain", "lr": (30 * lr, lr, lr / 7), "epochs": epochs, "batch_size": batch, "choose": "test"}
    config = LinearConfig.model_validate(given)
    steps = x.shape[1]
    probe = Probe(width, classes, config, batch_size=batch, steps_per_epoch=steps, seed=0)
    state = {name: torch.from_numpy(arrays[f"init_{name}"]) for name in ("weight", "bias")}
    for name, value in state.items():
        getattr(probe.heads, name).data[:] = value
    assert arrays["lr_grid"].tolist() == pytest.approx(IBOT_GRID, rel=1e-12)
    rates = [learning_rate(config, lr * batch / 256, epoch * steps, steps) for epoch in range(epochs)]
    np.testing.assert_allclose(rates, arrays["lr_per_epoch"], rtol=1e-12)
    losses = []
    for epoch in range(epochs):
        for features, labels in zip(x[epoch], y[epoch], strict=True):
            probe.train_step(features, labels)
        probe.end_epoch(val_x, val_y)
        for name in state:
            found = getattr(probe.heads, name)[1].detach().numpy()
            np.testing.assert_allclose(found, arrays[f"epoch{epoch}_{name}"], rtol=0, atol=1e-6)
        score = measure(probe.heads, val_x, val_y)
        top1, top5, loss = arrays[f"epoch{epoch}_val"].tolist()
        assert [float(score.top(n)[1]) for n in (1, 5)] == pytest.approx([top1, top5], abs=1e-5)
        with torch.no_grad():
            logits = probe.heads(val_x)[1].T
        parts = zip(logits.split(VALIDATION_BATCH), val_y.split(VALIDATION_BATCH), strict=True)
        assert float(torch.stack([F.cross_entropy(*part) for part in parts]).mean()) == pytest.approx(loss, abs=1e-6)
        losses.append(float(probe.losses[epoch][1]))
    np.testing.assert_allclose(losses, [arrays[f"epoch{e}_train_loss"] for e in range(epochs)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", parity_files("msn", "linear_eval"))
def test_the_probe_of_msn(path: Path) -> None:
    arrays = load_arrays(path)
    setting = json.loads(str(arrays["cfg_json"]))
    assert setting["nesterov"]
    config = LinearConfig.model_validate(
        {
            "head": "unit-layer-norm" if setting["normalize"] else "layer-norm",
            "optimizer": ("nesterov",),
            "lr": (setting["lr"] / 3, setting["lr"]),
            "weight_decay": (setting["wd"],),
            "momentum": setting["momentum"],
            "reference_batch": None,
            "schedule": "step-cosine",
            "epochs": setting["T_max"],
            "choose": "test",
        }
    )
    probe = Probe(setting["D"], setting["C"], config, batch_size=setting["B"], steps_per_epoch=1, seed=0)
    names = {"norm.weight": "scale", "norm.bias": "shift", "linear.weight": "weight", "linear.bias": "bias"}
    for name, value in state_under(arrays, "init.").items():
        getattr(probe.heads, names[name]).data[:] = value
    labels = torch.from_numpy(arrays["y0"])
    for step in range(setting["steps"]):
        features, labels = (torch.from_numpy(arrays[f"{kind}{step}"]) for kind in "xy")
        with torch.no_grad():
            close(probe.heads(features)[1].T, arrays[f"logits{step}"])
        probe.train_step(features, labels)
        probe.end_epoch(features, labels)
    np.testing.assert_allclose([float(each[1]) for each in probe.losses], arrays["losses"], rtol=1e-4)
    for name, value in state_under(arrays, "final.").items():
        close(getattr(probe.heads, names[name])[1].detach(), value.numpy())


@pytest.mark.parametrize("path", parity_files("mae", "schedules_and_utils"))
def test_the_probe_of_mae(path: Path) -> None:
    arrays = load_arrays(path)
    lr, weight_decay, momentum, trust = arrays["lars.lr_wd_momentum_trust"].tolist()
    initial, final = state_under(arrays, "lars.init."), state_under(arrays, "lars.final.")
    classes, width = initial["1.weight"].shape
    candidates = [Candidate(lr, 0.1, "sgd"), Candidate(lr, weight_decay, "lars"), Candidate(lr / 2, 0.0, "lars")]
    heads = LinearHeads(3, width, classes, kind="batch-norm")
    heads.weight.data[:], heads.bias.data[:] = initial["1.weight"], initial["1.bias"]
    optimizer = Optimizer(heads, candidates, momentum=momentum, trust=trust)
    losses = []
    for step in range(len(arrays["lars.losses"])):
        features, labels = (torch.from_numpy(arrays[f"lars.{kind}{step}"]) for kind in "xy")
        losses.append(float(heads.backward(features, labels)[1]))
        optimizer.step(torch.tensor([each.lr for each in candidates]))
    np.testing.assert_allclose(losses, arrays["lars.losses"], rtol=0, atol=1e-5)
    for name, found in (("weight", heads.weight[1]), ("bias", heads.bias[1])):
        np.testing.assert_allclose(found.detach().numpy(), final[f"1.{name}"].numpy(), rtol=0, atol=1e-5)
    for name in ("running_mean", "running_var"):
        np.testing.assert_allclose(getattr(heads.norm, name).numpy(), final[f"0.{name}"].numpy(), rtol=0, atol=1e-5)


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
