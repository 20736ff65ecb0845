"""Two processes with half the batch each do what one process does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command_line import TINY, checkpoints, run

FREEZING = ("model.depth=4", "train.freeze.t0=0.3", "train.freeze.scale=linear")
CASES = {method: (TINY[method], 1e-5) for method in TINY} | {
    # As many prototypes' gradients are summed as there are processes, and a batch norm over a few nearly equal class
    # tokens enlarges rounding errors: without the two, one and two processes agree as for the other methods.
    "msn": ((*TINY["msn"], "method.use_bn=false", "method.prototype_gradient=mean"), 1e-5),
    "msn with batch norm": (TINY["msn"], 3e-4),
    # Four freezes within the ten steps of the test; two micro-batches per step.
    "mae with freezing": ((*TINY["mae"], *FREEZING, "train.micro_batch_size=2"), 1e-5),
    # Two of three branches leave on the way.
    "localmim with freezing": (
        (
            *TINY["localmim"],
            *FREEZING,
            "method.taps=[1,2,4]",
            "method.scales=[2,1,0.5]",
            "train.micro_batch_size=2",
        ),
        1e-5,
    ),
    "ibot with freezing": ((*TINY["ibot"], *FREEZING), 1e-5),
}


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case: str, make_images: Callable[..., Path], tmp_path: Path) -> None:
    settings, tolerance = CASES[case]
    make_images(tmp_path / "photos", count=40)
    words = [
        "pretrain", "photos", *settings, "train.epochs=2", "train.log_every_steps=1", "runtime.precision=fp32",
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
        assert together["loss"] == pytest.approx(alone["loss"], abs=tolerance)
    if tolerance > 1e-5:
        return
    alone, together = (
        load_file(checkpoints(tmp_path / "runs" / name)[-1] / "model.safetensors") for name in ("one", "two")
    )
    for name, tensor in alone.items():
        difference = (tensor - together[name]).abs()
        if name.endswith("attn.qkv.bias"):
            # Softmax doesn't see the keys' bias, the middle third: its true gradient is zero, too.
            third = len(difference) // 3
            assert float(difference[third : 2 * third].max()) < NOISE, name
            difference = torch.cat([difference[:third], difference[2 * third :]])
        assert float(difference.max()) < (NOISE if is_noise(name) else 1e-4), name


NOISE = 0.05
"""Above twice the sum of the learning rates of these runs."""


def is_noise(name: str) -> bool:
    """Parameters whose true gradient is zero: AdamW makes steps of the learning rate out of its rounding errors.

    A batch norm takes away what is added before it, and its running mean follows.
    """
    return name.endswith(("trunk.norm.bias", "fc1.bias", "fc2.bias", "running_mean")) and ".mlp." not in name
