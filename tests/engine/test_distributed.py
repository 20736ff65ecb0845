"""Two real gloo processes: the same numbers as one, errors and signals that end all."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.tiny import TinyMethod, run, settings
from halfseen.engine.checkpoint import checkpoint_path, load_checkpoint
from halfseen.engine.distributed import launch
from halfseen.errors import ConfigError
from processes import run_two, start_two

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """However the processes end, what they kept in the temporary folder is gone."""
    tempfile.gettempdir()  # Python remembers it: only the started processes use another one.
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(folder))
    yield
    assert [path for path in folder.iterdir() if not path.name.startswith("torchinductor_")] == []  # torch's own cache.


def start(action: str, folder: Path) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    return start_two("engine.worker", action, str(folder))


def finish(action: str, folder: Path, exit_code: int = 0) -> str:
    folder.mkdir(exist_ok=True)
    return run_two("engine.worker", action, str(folder), exit_code=exit_code)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Half the batch each: same images, same losses to 1e-5 over 10 steps, same weights on both."""
    said = finish("train", tmp_path / "two")
    assert said == ""
    alone, _ = run(tmp_path / "one", settings(max_steps=10, clip_norm=1.0), method=TinyMethod(dropout=0.0))
    assert len(losses(tmp_path / "two")) == 10
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    states = [torch.load(tmp_path / "two" / f"weights{rank}.pt", weights_only=True) for rank in range(2)]
    for name, tensor in alone.state_dict().items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert torch.equal(states[0]["token"], torch.ones(1, 1, 16)), "an unused parameter isn't even decayed"
    seen = [json.loads((tmp_path / "two" / f"seen{rank}.json").read_text()) for rank in range(2)]
    for step, batch in enumerate(alone.seen):
        parts = seen[0][2 * step : 2 * step + 2] + seen[1][2 * step : 2 * step + 2]
        assert [index for part in parts for index in part] == batch


def test_an_uneven_last_batch_counts_each_image_alike(tmp_path: Path) -> None:
    finish("uneven", tmp_path / "two")
    train = settings(drop_last=False, epochs=2)
    alone, _ = run(tmp_path / "one", train, method=TinyMethod(dropout=0.0), num_images=29)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    state = torch.load(tmp_path / "two" / "weights1.pt", weights_only=True)
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_resume_of_two_processes_is_bit_equal(tmp_path: Path) -> None:
    finish("resume", tmp_path / "run")
    unbroken = load_checkpoint(checkpoint_path(tmp_path / "run", 24))
    subprocess.run(["rm", "-r", str(checkpoint_path(tmp_path / "run", 24))], check=True)
    finish("resume", tmp_path / "run")
    resumed = load_checkpoint(checkpoint_path(tmp_path / "run", 24))
    for name, tensor in unbroken.model.items():
        assert torch.equal(tensor, resumed.model[name]), name


def test_the_collectives(tmp_path: Path) -> None:
    finish("reduce", tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"reduced{rank}.json").read_text())
        assert found == {
            "sum": [3.0, 30.0],
            "mean": [1.5, 15.0],
            "max": [2.0, 20.0],
            "rows": [[0, 0], [1, 1], [1, 1]],
            "own": [1.0 * (rank + 1), 10.0 * (rank + 1)],
            "said": "from 0",
            "total": [1.0, 1.0],
            "largest": [1, 5],
        }


def test_an_error_on_one_process_ends_all_with_its_message(tmp_path: Path) -> None:
    said = finish("fail", tmp_path, exit_code=2)
    assert said.strip() == "data.source: process 1 can't read its images. Mend them."


def test_a_bug_on_one_process_ends_all_with_its_traceback(tmp_path: Path) -> None:
    said = finish("crash", tmp_path, exit_code=1)
    assert said.count("Traceback") == 1
    assert "ZeroDivisionError: a bug" in said


def test_a_failed_checkpoint_ends_all_with_one_line(tmp_path: Path) -> None:
    said = finish("full", tmp_path, exit_code=2)
    assert "could not be written" in said and said.count("\n") == 1


def test_a_signal_to_the_launcher_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    with start("slow", tmp_path) as process:
        try:
            while not (tmp_path / "metrics.jsonl").exists() or len(losses(tmp_path)) < 3:
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)
        finally:
            for path in tmp_path.glob("pid*"):
                try:
                    os.kill(int(path.read_text()), signal.SIGKILL)
                    pytest.fail("a process outlived the launcher")
                except ProcessLookupError:
                    pass
    step, finished = json.loads((tmp_path / "result.json").read_text())
    assert not finished
    assert load_checkpoint(checkpoint_path(tmp_path, step)).state.step == step
    assert process.returncode == 128 + signal.SIGTERM


def test_the_number_of_processes_is_checked() -> None:
    with pytest.raises(ConfigError, match="--devices: got 0"):
        launch(0, [])
