"""Batch normalisation over processes: alone it is PyTorch's, and two processes equal one with the whole batch."""

from pathlib import Path

import pytest
import torch
from torch import nn

from backbones.processes import SHAPES, STEPS, batch, layer, record
from halfseen.backbones.batch_norm import CrossProcessBatchNorm
from halfseen.errors import ShapeError
from processes import run_two


@pytest.mark.parametrize("name", SHAPES)
def test_alone_it_is_pytorchs_own(name: str) -> None:
    theirs: nn.Module = (nn.BatchNorm1d if len(SHAPES[name]) == 2 else nn.BatchNorm2d)(SHAPES[name][1])
    ours = layer(name)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for step in range(2):
        x, _ = batch(name, step)
        assert torch.equal(ours(x), theirs(x))
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected \[B, C\] or \[B, C, H, W\]"):
        CrossProcessBatchNorm(4)(torch.zeros(2, 4, 3))


@pytest.mark.processes
def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    """Uneven parts (1:2); outputs, gradients, running statistics; a low-precision and an eval pass at the end."""
    run_two("backbones.processes", str(tmp_path))
    for name in SHAPES:
        alone = record(name, slice(None))
        parts = [torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True) for rank in range(2)]
        for key in [f"{step}.{what}" for step in range(STEPS) for what in ("out", "grad")] + ["eval"]:
            joined = torch.cat([part[key] for part in parts])
            torch.testing.assert_close(joined, alone[key], rtol=1e-5, atol=1e-5, msg=f"{name} {key}")
        torch.testing.assert_close(torch.cat([part["half"] for part in parts]), alone["half"], rtol=0.02, atol=0.02)
        for key in ("weight", "bias"):
            torch.testing.assert_close(parts[0][key] + parts[1][key], alone[key], rtol=1e-5, atol=1e-5)
        for key in (key for key in alone if key.startswith("state.")):
            torch.testing.assert_close(parts[0][key], alone[key], rtol=1e-5, atol=1e-5, msg=f"{name} {key}")
            assert torch.equal(parts[0][key], parts[1][key]), key
