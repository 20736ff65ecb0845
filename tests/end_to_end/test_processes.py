"""Two processes with half the batch each do what one process does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from command_line import TINY, checkpoints, run


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("method", TINY)
def test_two_processes_equal_one(method: str, make_images: Callable[..., Path], tmp_path: Path) -> None:
    make_images(tmp_path / "photos", count=40)
    words = [
        "pretrain", "photos", *TINY[method], "train.epochs=2", "train.log_every_steps=1", "runtime.precision=fp32",
        "model.drop_path=0",
    ]  # fmt: skip
    one = run(*words, "--name", "one", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    two = run(*words, "--name", "two", "--devices", "2", cwd=tmp_path)
    assert two.returncode == 0, two.stderr

    logs = [
        [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(logs[0]) == len(logs[1]) == 10
    for alone, together in zip(*logs, strict=True):
        assert together["samples_seen"] == alone["samples_seen"]
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    alone, together = (
        load_file(checkpoints(tmp_path / "runs" / name)[-1] / "model.safetensors") for name in ("one", "two")
    )
    for name, tensor in alone.items():
        assert float((tensor - together[name]).abs().max()) < 1e-4, name
