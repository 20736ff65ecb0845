"""`halfseen intermediate` through the real entry point: several encoders from one, and wrong words."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from halfseen.cli.main import run

QUICK = ["epochs=1", "milestones=[]", "max_train=16", "max_test=8"]
SCENES = "bundled:fashion-scenes"


def test_from_one_encoder_to_several_that_other_commands_take(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objectives = ["--objective", "none", "--objective", "classification", "--objective", "patchwise"]
    words = ["intermediate", str(trained_run), "--data", SCENES, *objectives, "--out", str(tmp_path), *QUICK]
    assert run(words) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    own = load_file(trained_run / "encoder.safetensors")
    kept = load_file(tmp_path / "none" / "encoder.safetensors")
    assert all(torch.equal(kept[name], own[name]) for name in own)
    for name, classes in (("viny-intel", 10), ("viny-spatial", 11)):
        result = json.loads((tmp_path / name / f"{name}.json").read_text())
        assert (result["n_train"], result["n"], result["num_classes"]) == (16, 8, classes)
        assert f"{result['metrics']['top1_test']:.2f}" in printed
        assert f"Encoder: {tmp_path / name}" in printed.replace("\n", "")
        trained = load_file(tmp_path / name / "encoder.safetensors")
        assert not all(torch.equal(trained[key], own[key]) for key in own)
    knn = ["knn", str(tmp_path / "viny-spatial"), "--train", "bundled:fashion", "--out", str(tmp_path / "knn")]
    assert run([*knn, "--max-train", "50", "--max-test", "20"]) == 0, capsys.readouterr().err
    assert run(words) == 2
    assert "holds an encoder already" in capsys.readouterr().err
    assert run([*words, "--resume"]) == 0, capsys.readouterr().err


def test_each_objective_may_have_data_of_its_own(
    trained_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--objective", "viny-cls-intel", "--data", str(image_folder), "--objective", "patchwise", "--data", SCENES]
    assert run(["intermediate", str(trained_run), *words, "--out", str(tmp_path), *QUICK]) == 0, capsys.readouterr().err
    first = json.loads((tmp_path / "viny-cls-intel" / "viny-cls-intel.json").read_text())
    assert first["data"]["train"]["source"] == str(image_folder) and set(first["data"]) == {"train"}
    second = json.loads((tmp_path / "viny-spatial" / "viny-spatial.json").read_text())
    assert second["data"]["test"]["source"] == SCENES


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--objective", "patches"], "objective: got 'patches', expected one of classification"),
        (["--objective", "patchwise", "--objective", "viny-spatial"], "'viny-spatial' is given twice"),
        (["--objective", "patchwise", "--data", "bundled:fashion"], "needs a mask for each image"),
        (["--data", SCENES, "--data", SCENES], "got 2 for 1 objectives"),
        (["epochs=5"], "the last one changes nothing"),
        (["--objective", "patchwise", "mixup_alpha=0.1"], "no effect with objective=patchwise"),
        (["epoch=5"], "Did you mean 'epochs'?"),
        (["bundled:fashion"], "expected KEY=VALUE. Name the images by --data"),
        (["--data", "no/such/folder"], "'no/such/folder' does not exist"),
        (["--image-size", "30", "--objective", "patchwise", "--data", SCENES], "30"),
    ],
)
def test_the_users_faults_are_sentences(
    trained_run: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert run(["intermediate", str(trained_run), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (trained_run / "intermediate").exists()


def test_a_foreign_encoder_needs_data(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["intermediate", str(trained_run / "encoder.safetensors")]) == 2
    assert "--data: missing" in capsys.readouterr().err


def test_images_without_classes_are_said(
    trained_run: Path, tmp_path: Path, make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_images(tmp_path / "flat", 6, classes=0)
    assert run(["intermediate", str(trained_run), "--data", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "none of the 6 training images" in capsys.readouterr().err
