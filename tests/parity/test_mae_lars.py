"""LARS, as MAE's linear probe uses it, against recorded losses and weights of the original."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from halfseen.engine.optim import LARS
from parity.discovery import load_arrays, parity_files, state_under


@pytest.mark.parametrize("path", parity_files("mae", "schedules_and_utils"))
def test_steps_of_a_linear_probe(path: Path) -> None:
    arrays = load_arrays(path)
    lr, weight_decay, momentum, trust = arrays["lars.lr_wd_momentum_trust"].tolist()
    initial, final = state_under(arrays, "lars.init."), state_under(arrays, "lars.final.")
    classes, width = initial["1.weight"].shape
    probe = nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), nn.Linear(width, classes))
    probe.load_state_dict(initial, strict=True)
    optimizer = LARS(probe.parameters(), lr=lr, weight_decay=weight_decay, momentum=momentum, trust=trust)

    steps = sorted(int(name[6:]) for name in arrays if re.fullmatch(r"lars\.x\d+", name))
    assert len(steps) == len(arrays["lars.losses"])
    losses = []
    for step in steps:
        features, labels = (torch.from_numpy(arrays[f"lars.{kind}{step}"]) for kind in "xy")
        loss = nn.functional.cross_entropy(probe(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    np.testing.assert_allclose(losses, arrays["lars.losses"], rtol=0, atol=1e-5)
    for name, tensor in probe.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), final[name].numpy(), rtol=0, atol=1e-5, err_msg=name)
