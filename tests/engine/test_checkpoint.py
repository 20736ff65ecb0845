"""Checkpoints: whole or not there, verified, of this run or refused; kills, full disks and damage."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.tiny import IDENTITY, run, settings
from halfseen.engine.checkpoint import (
    CHECKSUMS,
    MODEL,
    OPTIMIZER,
    STATE,
    Identity,
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    restore_model,
    save_checkpoint,
)
from halfseen.engine.state import TrainState
from halfseen.errors import CheckpointError

TESTS = Path(__file__).parents[1]


def write(folder: Path, step: int, keep: int = 9, **tensors: Tensor) -> Path:
    model = tensors or {"weight": torch.full((3, 2), float(step))}
    return save_checkpoint(
        folder,
        model=model,
        optimizer={"weight|exp_avg": torch.ones(3, 2)},
        state=TrainState(step=step, samples_seen=8 * step, window_sums={"loss": 0.1}, window_counts={"loss": 1}),
        identity=IDENTITY,
        keep=keep,
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = write(tmp_path, 3, a=torch.randn(4, 5, dtype=torch.float64), b=torch.randn(3).bfloat16(), c=torch.tensor(7))
    found = load_checkpoint(path, IDENTITY)
    assert found.state == TrainState(3, 24, 0.0, {"loss": 0.1}, {"loss": 1})
    assert {name: tensor.dtype for name, tensor in found.model.items()} == {
        "a": torch.float64,
        "b": torch.bfloat16,
        "c": torch.int64,
    }
    assert torch.equal(found.optimizer["weight|exp_avg"], torch.ones(3, 2))
    assert found.identity.digest == IDENTITY.digest


def test_tied_and_strided_tensors_come_back(tmp_path: Path) -> None:
    weight = torch.randn(4, 6)
    path = write(tmp_path, 1, first=weight, tied=weight, turned=weight.T, part=weight[1:3], again=weight[1:3])
    model = load_checkpoint(path).model
    expected = {"first": weight, "tied": weight, "turned": weight.T, "part": weight[1:3], "again": weight[1:3]}
    assert model.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(model[name], tensor), name


def test_only_the_newest_are_kept_and_nothing_else_is_left(tmp_path: Path) -> None:
    leftover = tmp_path / "checkpoints" / ".partial-step-00000001"
    leftover.mkdir(parents=True)
    (leftover / MODEL).write_bytes(b"half")
    for step in range(1, 6):
        write(tmp_path, step, keep=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")] == []
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]
    assert sorted(path.name for path in checkpoint_path(tmp_path, 5).iterdir()) == sorted(
        [MODEL, OPTIMIZER, STATE, CHECKSUMS]
    )


def test_writing_an_earlier_step_keeps_it_although_later_ones_exist(tmp_path: Path) -> None:
    """After going back to an older checkpoint, the run's new ones must not fall victim to the old run's."""
    for step in (10, 20):
        write(tmp_path, step)
    write(tmp_path, 5, keep=1)
    assert checkpoint_path(tmp_path, 5).is_dir()
    write(tmp_path, 10, weight=torch.zeros(1))
    assert load_checkpoint(checkpoint_path(tmp_path, 10)).model["weight"].shape == (1,)


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, 4)
    path.rename(path.with_name(".replaced-step-00000004"))
    assert latest_checkpoint(tmp_path) == path


def test_a_run_without_checkpoints_has_no_latest(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("victim", [MODEL, OPTIMIZER, STATE, CHECKSUMS])
@pytest.mark.parametrize("damage", ["truncated", "missing", "changed"])
def test_damage_is_named_and_the_previous_one_offered(
    tmp_path: Path, victim: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = write(tmp_path, 1), write(tmp_path, 2)
    content = (bad / victim).read_bytes()
    if damage == "missing":
        (bad / victim).unlink()
    elif damage == "truncated":
        (bad / victim).write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        (bad / victim).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(bad, IDENTITY)
    text = str(caught.value)
    assert str(good) in text and "\n" not in text
    if not (victim == CHECKSUMS and damage == "changed"):
        assert victim in text
    assert latest_checkpoint(tmp_path) == good
    assert str(bad) in caplog.text


def test_only_damaged_ones_is_an_error(tmp_path: Path) -> None:
    (write(tmp_path, 2) / MODEL).write_bytes(b"")
    with pytest.raises(CheckpointError, match=re.escape(MODEL)):
        latest_checkpoint(tmp_path)


def test_another_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'tiny', this run is 'mae'"):
        load_checkpoint(write(tmp_path, 1), Identity("mae", IDENTITY.settings))


def test_other_settings_are_listed(tmp_path: Path) -> None:
    other = Identity("tiny", {"train.batch_size": 16, "method.ratio": (0.5, 1), "train.clip_norm": None})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(write(tmp_path, 1), other)
    assert "train.batch_size was 8, is 16" in str(caught.value)
    assert "train.clip_norm" in str(caught.value)
    assert "method.ratio" not in str(caught.value), "a tuple equals the list that json makes of it"


def test_another_model_is_refused_by_tensor(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write(tmp_path, 1, weight=torch.zeros(3, 2), extra=torch.zeros(1)))
    with pytest.raises(CheckpointError) as caught:
        restore_model(nn.Linear(3, 3), checkpoint)
    for part in ("missing bias", "unexpected extra", "weight has shape (3, 2), expected (3, 3)"):
        assert part in str(caught.value)


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from engine.tiny import IDENTITY
from halfseen.engine.checkpoint import save_checkpoint
from halfseen.engine.state import TrainState
from halfseen.errors import CheckpointError
def save(step, size):
    save_checkpoint(Path(sys.argv[1]), model={"w": torch.zeros(size)}, optimizer={}, state=TrainState(step=step),
                    identity=IDENTITY, keep=1)
save(1, 100)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(2, 1_000_000)
except CheckpointError as error:
    print(error)
save(3, 100)
"""


def python(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=True, **options
    )


def test_a_file_that_may_not_grow_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """A limit on file sizes makes the operating system refuse the write half-way, as a full disk does."""
    done = python(FULL_DISK, str(tmp_path))
    assert "step 2 could not be written" in done.stdout and "File too large" in done.stdout
    assert str(checkpoint_path(tmp_path, 1)) in done.stdout
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert latest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 3)


def test_a_full_disk_stops_training_and_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    """On a real file system of 200 kB, filled up during the run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs rights that this user doesn't have")
    try:

        def fill(path: Path, step: int) -> None:
            if step == 8:
                with (disk / "filler").open("wb", buffering=0) as file:
                    try:
                        while file.write(b"x" * 1024):
                            pass
                    except OSError:
                        pass

        with pytest.raises(CheckpointError, match="No space left on device") as caught:
            run(disk / "run", settings(checkpoint_every_steps=4, log_every_steps=100), on_checkpoint=fill)
        assert "\n" not in str(caught.value)
        good = checkpoint_path(disk / "run", 8)
        assert str(good) in str(caught.value)
        assert latest_checkpoint(disk / "run") == good
        load_checkpoint(good, IDENTITY)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


KILLED = """
import sys
from pathlib import Path
import torch
from engine.tiny import TinyMethod, run, settings
from halfseen.engine.checkpoint import latest_checkpoint
torch.set_num_threads(1)
folder = Path(sys.argv[1])
path = latest_checkpoint(folder)
step = int(path.name[-8:]) if path else 0
print("ready", step, flush=True)
run(folder, settings(epochs=15, checkpoint_every_steps=1, keep_checkpoints=50), resume_from=path, resume_step=step)
print("done", flush=True)
"""


def test_killed_at_random_moments_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    """kill -9 wherever it hits, a checkpoint after every step, so that kills often hit the writing of one."""
    unbroken, _ = run(tmp_path / "unbroken", settings(epochs=15, log_every_steps=10))
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    drawing = np.random.default_rng(4)
    folder = tmp_path / "killed"
    starts: list[int] = []
    for kill in (True, True, True, False):
        command = [sys.executable, "-c", KILLED, str(folder)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            starts.append(int(process.stdout.readline().split()[1]))
            if kill:
                wanted = starts[-1] + int(drawing.integers(5, 16))
                while process.poll() is None and not checkpoint_path(folder, wanted).exists():
                    time.sleep(0.001)
                time.sleep(float(drawing.uniform(0, 0.02)))
                process.send_signal(signal.SIGKILL)
            rest = process.stdout.read()
    assert "done" in rest
    assert starts == sorted(set(starts)), "each session goes on where the one before was killed"
    final = load_checkpoint(checkpoint_path(folder, 60))
    for name, tensor in unbroken.state_dict().items():
        assert torch.equal(tensor, final.model[name]), name
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61)), "no step twice, none missing"
