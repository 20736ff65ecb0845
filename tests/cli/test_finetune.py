"""`halfseen finetune` through the real command line: a result in both folders, two processes, going on, wrong words."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from command_line import run as run_apart
from command_line import start
from halfseen.cli.main import run

SHORT = (
    "train.epochs=2", "train.batch_size=8", "train.log_every_steps=1", "train.health_every_steps=null",
    "runtime.threads=1", "runtime.device=cpu", "runtime.precision=fp32", "runtime.workers=0", "data.subset_size=32",
    "view.max_test=21",
)  # fmt: skip
ON = ("mix.mixup=0.8", "mix.cutmix=1", "augment.erase=0.5")


def test_a_run_gets_the_result_beside_its_others(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["finetune", str(trained_run), *SHORT, "--train", "bundled:fashion", "--name", "first"]
    assert run(words) == 0, capsys.readouterr().err
    folder = tmp_path / "runs" / "first"
    own = json.loads((folder / "evaluations" / "finetune.json").read_text())
    assert own == json.loads((trained_run / "evaluations" / "finetune.json").read_text())
    assert own["n"] == 21 and own["n_train"] == 32 and set(own["baselines"]) == {"random_init", "raw_pixels"}
    assert f"Classifier: {Path('runs/first/classifier.safetensors')}" in capsys.readouterr().out
    again = ["knn", str(folder), "--train", "bundled:fashion", "--max-train", "60", "--max-test", "20"]
    assert run(again) == 0, capsys.readouterr().err
    shorter = [*words[:-1], "shorter", "--no-baselines", "train.epochs=1", "dropped_blocks=1"]
    assert run(shorter) == 0, capsys.readouterr().err
    assert f"Not copied to {trained_run}" in capsys.readouterr().out.replace("\n", "")
    assert own == json.loads((trained_run / "evaluations" / "finetune.json").read_text())


def test_two_processes_equal_one(trained_run: Path, tmp_path: Path) -> None:
    words = (
        *ON,
        "choose=held-out",
        "--no-baselines",
        "--protocol",
        "ibot-finetune",
        "drop_path=0",
        "augment.policy=null",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(["finetune", str(trained_run), *SHORT, *words, "--run-dir", str(one)]) == 0
    both = ("--run-dir", str(two), "--devices", "2")
    done = run_apart("finetune", str(trained_run), *SHORT, *words, *both, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((folder / "evaluations" / "ibot-finetune.json").read_text()) for folder in (one, two))
    assert second["n"] == first["n"] == 21
    assert first["metrics"] == second["metrics"] and first["confusion"] == second["confusion"]
    expected, found = (load_file(folder / "classifier.safetensors") for folder in (one, two))
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), rtol=1e-3, atol=1e-5, err_msg=name)
    (departs,) = (note for note in first["notes"] if "Departs" in note)
    assert "data.image_size" in departs and "data.source" not in departs


def test_a_stopped_run_goes_on_without_its_encoder(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "encoder"
    copy.mkdir()
    for name in ("encoder.safetensors", "encoder.json"):
        (copy / name).write_bytes((trained_run / name).read_bytes())
    words = ("finetune", "encoder", *SHORT, "train.epochs=400", "--train", "bundled:fashion", "--run-dir", "run")
    process = start(*words, cwd=tmp_path)
    log = tmp_path / "run" / "metrics.jsonl"
    waited = time.monotonic()
    while not (log.is_file() and log.read_text().count("\n") > 2) and time.monotonic() - waited < 200:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = "".join(process.communicate(timeout=120))
    assert process.returncode == 130 and "To go on: halfseen finetune --resume run" in said
    for path in copy.iterdir():
        path.unlink()
    steps = json.loads(log.read_text().splitlines()[-1])["step"]
    monkeypatch.chdir(tmp_path)
    on = ["finetune", "--resume", "run", f"train.max_steps={steps + 2}", "--no-baselines"]
    assert run(on) == 0, capsys.readouterr().err
    assert json.loads(log.read_text().splitlines()[-1])["step"] == steps + 2
    assert run(["finetune", "--resume", "run", "layer_decay=0.5", "--protocol", "mae-finetune"]) == 2
    faults = capsys.readouterr().err
    assert "protocol: got 'mae-finetune', but the run in 'run' was started with 'finetune'" in faults
    assert "layer_decay: got 0.5" in faults
    assert run(["pretrain", "--resume", "run"]) == 2
    assert "Go on with it by `halfseen finetune --resume run`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "ENCODER: missing"),
        (["{run}", "{run}"], "got 2 encoders"),
        (["{run}", "--protocol", "mea-finetune"], "protocol: got 'mea-finetune', expected one of finetune"),
        (["{run}", "layer_decay=2"], "layer_decay: got 2, expected a float in (0, 1]"),
        (["{run}", "lr=3"], "lr: unknown key"),
        (["nowhere", "--train", "bundled:fashion"], "there is no 'nowhere'"),
        (["timm:vit_tiny_patch16_224"], "--train: missing"),
        (["{run}", "--resume", "{run}"], "Leave out ENCODER"),
        (["--resume", "{run}"], "is a run of `halfseen pretrain`"),
        (["{run}", "--train", "{flat}"], "needs labels"),
        (["{run}", "mix.mixup=1", "train.batch_size=9"], "got 9, but MixUp and CutMix blend pairs"),
        (["{run}", "window_size=4"], "window_size: got 4, but it has no effect with an encoder that is no Swin"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_sentences(
    words: list[str],
    sentence: str,
    trained_run: Path,
    tmp_path: Path,
    make_images: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"{run}": str(trained_run), "{flat}": str(tmp_path / "flat")}
    make_images(tmp_path / "flat", classes=0)
    assert run(["finetune", *(places.get(word, word) for word in words)]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_task_segment_is_the_command_segment() -> None:
    from halfseen.cli.main import of_its_task

    assert of_its_task(["finetune", "run", "--task", "segment", "a=1"]) == ["segment", "run", "a=1"]
    assert of_its_task(["finetune", "--task=segment"]) == ["segment"]
    assert of_its_task(["finetune", "run", "--task", "classify"]) == ["finetune", "run", "--task", "classify"]
    assert of_its_task(["knn", "--task", "segment"]) == ["knn", "--task", "segment"]
