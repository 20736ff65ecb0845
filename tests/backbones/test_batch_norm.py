"""Batch normalisation over processes: alone it is PyTorch's, and two processes equal one with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from backbones.processes import SHAPES, STEPS, batch, layer, record
from halfseen.backbones.batch_norm import CrossProcessBatchNorm
from halfseen.errors import ShapeError

TESTS = Path(__file__).parents[1]
LAUNCH = """
import sys
from halfseen.engine.distributed import launch
result = launch(2, sys.argv[1:], module="backbones.processes")
if result.message:
    print(result.message, file=sys.stderr)
sys.exit(result.exit_code)
"""


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
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
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
