"""`halfseen linear` through the real entry point."""

import json
import shutil

import pytest

from halfseen.cli.main import run


def test_a_run_is_measured_into_its_folder(trained_run, tmp_path, capsys):
    own_run = shutil.copytree(trained_run, tmp_path / "run")
    code = run(["linear", str(own_run), "--train", "bundled:fashion", "--test", "bundled:fashion", "--max-test", "40",
                "--epochs", "2", "--lr", "0.1", "--lr", "1", "held_out=0.25"])  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0
    result = json.loads((own_run / "evaluations" / "linear.json").read_text())
    assert (result["protocol"], result["n"], result["n_train"]) == ("linear", 40, 64)
    assert (result["settings"]["lr"], result["settings"]["held_out"]) == ([0.1, 1.0], 0.25)
    assert result["settings"]["crop_ratio"] == 1.0  # the run's
    assert set(result["baselines"]) == {"random_init", "raw_pixels"}
    assert f"{result['metrics']['top1']:.2f}" in printed
    assert f"{result['baselines']['raw_pixels']['top1']:.2f}" in printed
    assert "held-out training images" in printed
    assert run(["report", str(own_run)]) == 0
    page = (own_run / "report.html").read_text()
    assert "computed once and kept" in page


def test_a_protocol_with_augmentation_on_a_folder(trained_run, image_folder, tmp_path, capsys):
    options = ["--protocol", "mae-linear", "--epochs", "2", "--batch-size", "8", "warmup_epochs=1"]
    encoder = str(trained_run / "encoder.safetensors")
    code = run(["linear", encoder, "--train", str(image_folder), "--out", str(tmp_path), *options])
    assert code == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "mae-linear.json").read_text())
    assert result["settings"]["augmentation"] == "tf-crop"
    assert any("a fifth of each class" in note for note in result["notes"])
    assert "Departs from the published protocol in: epochs, warmup_epochs, batch_size." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--protocol", "linaer"), "expected one of linear, ibot-linear"),
        (("--feature", "meen"), "Did you mean 'mean'?"),
        (("--choose", "last"), "takes the only classifier"),
        (("--lr", "-1"), "lr"),
        (("--layer", "9"), "has the blocks 1 to"),
        (("momentun=0.5",), "Did you mean 'momentum'?"),
        (("bundled:fashion",), "expected KEY=VALUE"),
        (("--augmentation", "crops"), "augmentation"),
        (("--train", "no/such/folder"), "'no/such/folder' does not exist"),
        (("--test", "IMAGES"), "has classes that"),
    ],
)
def test_the_users_faults_are_sentences(trained_run, image_folder, capsys, words, sentence):
    words = [word.replace("IMAGES", str(image_folder)) for word in words]
    assert run(["linear", str(trained_run), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (trained_run / "evaluations" / "linear.json").exists()


def test_a_foreign_encoder_needs_data(trained_run, capsys):
    assert run(["linear", str(trained_run / "encoder.safetensors")]) == 2
    assert "--train: missing" in capsys.readouterr().err
