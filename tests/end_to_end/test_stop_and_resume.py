"""A run that is killed at any moment and resumed ends with the very bits of one that was never disturbed."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import TINY, checkpoints, final_weights, run, start
from halfseen.engine.config import available_cores
from halfseen.pretraining.folder import read_config

KILLS = int(os.environ.get("HALFSEEN_KILLS", "3"))
"""Kills per run; the full proof takes 20."""


@pytest.mark.slow
@pytest.mark.parametrize("method", TINY)
def test_killed_runs_end_with_the_same_bits(method: str, make_images: Callable[..., Path], tmp_path: Path) -> None:
    make_images(tmp_path / "photos", count=80)
    words = ("pretrain", "photos", *TINY[method], f"train.epochs={4 + 3 * KILLS}", "train.checkpoint_every_steps=3")
    done = run(*words, "--name", "unbroken", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    killed_run = tmp_path / "runs" / "killed"
    moments = random.Random(method)
    kills = 0
    for _ in range(KILLS):
        begun = (killed_run / "config.yaml").is_file()
        process = start(
            *(("pretrain", "--resume", "runs/killed") if begun else (*words, "--name", "killed")), cwd=tmp_path
        )
        wait_for_training(process, killed_run)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= KILLS // 2, "the run is too short to be killed"
    done = run("pretrain", "--resume", "runs/killed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert final_weights(killed_run) == final_weights(tmp_path / "runs" / "unbroken")
    assert losses(killed_run) == losses(tmp_path / "runs" / "unbroken")


@pytest.mark.slow
@pytest.mark.parametrize("method", [TINY["mae"], (*TINY["localmim"], "method.taps=[1,3]")], ids=["mae", "localmim"])
def test_a_run_killed_around_a_freeze_ends_with_the_same_bits(
    method: tuple[str, ...], make_images: Callable[..., Path], tmp_path: Path
) -> None:
    """`kill -9` as soon as the checkpoint before, at or after a freeze is there, and on from that very checkpoint."""
    make_images(tmp_path / "photos", count=80)
    words = (
        "pretrain", "photos", *method, "model.depth=3", "train.epochs=4", "train.checkpoint_every_steps=1",
        "train.keep_checkpoints=100", "train.freeze.t0=0.4", "train.freeze.scale=linear",
    )  # fmt: skip
    done = run(*words, "--name", "unbroken", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    unbroken = tmp_path / "runs" / "unbroken"
    frozen = [json.loads(line)["frozen_units"] for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    events = [step for step in range(1, len(frozen)) if frozen[step] > frozen[step - 1]]
    assert len(events) == 3 and frozen[-1] == 3
    for number, moment in enumerate([events[0] - 1, events[1], events[2] + 1]):
        name = f"killed{number}"
        killed_run = tmp_path / "runs" / name
        process = start(*words, "--name", name, cwd=tmp_path)
        reached = killed_run / "checkpoints" / f"step-{moment:08d}"
        while process.poll() is None and not reached.is_dir():
            time.sleep(0.005)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run is too short to be killed"
        for later in checkpoints(killed_run):
            if later > reached:
                shutil.rmtree(later)
        done = run("pretrain", "--resume", f"runs/{name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert final_weights(killed_run) == final_weights(unbroken)
        assert losses(killed_run) == losses(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kamim", "ibot", "msn"])
def test_workers_do_not_change_a_bit(method: str, make_images: Callable[..., Path], tmp_path: Path) -> None:
    make_images(tmp_path / "photos", count=40)
    found = set()
    for workers in range(3):
        words = (*TINY[method], "train.epochs=2", f"runtime.workers={workers}", "--name", f"workers{workers}")
        done = run("pretrain", "photos", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.add(final_weights(tmp_path / "runs" / f"workers{workers}"))
    assert len(found) == 1


def test_activation_checkpointing_may_begin_with_a_resume_and_changes_no_bit(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    make_images(tmp_path / "photos", count=24)
    words = ("photos", *TINY["simmim"], "train.epochs=2")
    for folder, stop in (("plain", ()), ("saving", ("train.max_steps=3",))):
        done = run("pretrain", *words, *stop, f"run_dir={folder}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    saving = ("train.max_steps=null", "runtime.activation_checkpointing=true")
    done = run("pretrain", "--resume", "saving", *saving, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert final_weights(tmp_path / "plain") == final_weights(tmp_path / "saving")
    assert losses(tmp_path / "plain") == losses(tmp_path / "saving")


def test_ctrl_c_saves_and_says_how_to_go_on(make_images: Callable[..., Path], tmp_path: Path) -> None:
    make_images(tmp_path / "photos", count=40)
    stopped = tmp_path / "runs" / "stopped"
    process = start("pretrain", "photos", *TINY["mae"], "train.epochs=10000", "--name", "stopped", cwd=tmp_path)
    wait_for_training(process, stopped)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (output + errors).count("halfseen pretrain --resume runs/stopped") == 1
    assert "Traceback" not in errors
    assert checkpoints(stopped)


@pytest.mark.processes
@pytest.mark.slow
def test_a_run_is_trained_by_one_process_at_a_time(make_images: Callable[..., Path], tmp_path: Path) -> None:
    """The second is turned away while the first one lives; after `kill -9` of the first nothing has to be cleared."""
    make_images(tmp_path / "photos", count=40)
    words = ("pretrain", "photos", *TINY["mae"], "train.epochs=10000", "train.checkpoint_every_steps=3")
    folder = tmp_path / "runs" / "one"
    # Loader workers outlive a killed run for seconds; they must not keep others out.
    first = start(*words, "--name", "one", "runtime.workers=1", cwd=tmp_path)
    wait_for_training(first, folder)
    written = {path.name: path.read_bytes() for path in (folder / "config.yaml", folder / "environment.json")}
    for second in (
        run("pretrain", "--resume", "runs/one", cwd=tmp_path),
        run("pretrain", "--resume", "runs/one", "--devices", "2", cwd=tmp_path),
    ):
        assert second.returncode == 2
        assert len(second.stderr.strip().splitlines()) == 1, second.stderr
        assert f"run_dir: 'runs/one' is in use by process {first.pid} on " in second.stderr
    assert {name: (folder / name).read_bytes() for name in written} == written
    assert first.poll() is None
    first.kill()
    done = run("pretrain", "--resume", "runs/one", "train.max_steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first.communicate()


@pytest.mark.processes
@pytest.mark.slow
def test_threads_follow_the_processes_unless_somebody_chose_them(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    make_images(tmp_path / "photos", count=40)
    by_default = [word for word in TINY["mae"] if not word.startswith("runtime.threads")]
    for name, words, expected in (
        ("default", by_default, max(1, available_cores() // 2)),
        ("chosen", [*by_default, "runtime.threads=3"], 3),
    ):
        done = run("pretrain", "photos", *words, "train.max_steps=1", "--name", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        again = run("pretrain", "--resume", f"runs/{name}", "train.max_steps=2", "--devices", "2", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert read_config(tmp_path / "runs" / name).runtime.threads == expected


def wait_for_training(process: "subprocess.Popen[str]", run_dir: Path) -> None:
    """Until the process has written lines of metrics of its own, or has ended."""
    file = run_dir / "metrics.jsonl"
    began = time.time_ns()
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        # The journal is cut when it is opened; it grows only when the loop runs.
        if file.is_file() and file.stat().st_mtime_ns > began and losses(run_dir):
            size = file.stat().st_size
            time.sleep(0.02)
            if file.is_file() and file.stat().st_size > size:
                return
        time.sleep(0.02)


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """Step and loss of each whole line of metrics."""
    found = []
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.append((record["step"], record["loss"]))
    return found
