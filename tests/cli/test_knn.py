"""`halfseen knn` through the real entry point."""

import json
import shutil

import pytest

from halfseen.cli.main import run


@pytest.fixture
def own_run(trained_run, tmp_path):
    return shutil.copytree(trained_run, tmp_path / "run")


def test_a_run_is_measured_into_its_folder(own_run, capsys):
    before = json.loads((own_run / "evaluations" / "knn.json").read_text())
    code = run(["knn", str(own_run), "--train", "bundled:fashion", "--test", "bundled:fashion", "--k", "5", "--k", "20",
                "--max-test", "40"])  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0
    result = json.loads((own_run / "evaluations" / "knn.json").read_text())
    assert (result["protocol"], result["n"], result["n_train"]) == ("knn", 40, 64)
    assert result["settings"]["k"] == [5, 20]
    assert set(result["baselines"]) == {"random_init", "raw_pixels"}
    # Same images, weights and baselines as at the end of the run: the same numbers.
    assert result["metrics"]["top1_k20"] == before["metrics"]["top1_k20"]
    assert result["baselines"]["random_init"]["top1_k20"] == before["baselines"]["random_init"]["top1_k20"]
    assert result["baselines"]["raw_pixels"]["top1_k20"] == before["baselines"]["raw_pixels"]["top1_k20"]
    assert f"{result['metrics']['top1']:.2f}" in printed
    assert f"{result['baselines']['raw_pixels']['top1']:.2f}" in printed
    assert "n = 40" in printed
    assert "Pre-training used another set of images" in printed


def test_other_encoders_and_folders_write_where_they_are_told(trained_run, image_folder, tmp_path, capsys):
    code = run(["knn", str(trained_run / "encoder.safetensors"), "--train", str(image_folder), "--k", "3", "--out",
                str(tmp_path / "here")])  # fmt: skip
    assert code == 0
    result = json.loads((tmp_path / "here" / "knn.json").read_text())
    assert result["settings"]["leave_one_out"] is True
    assert result["n"] == 20
    assert "is not known here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--k", "64", "--test", "IMAGES", "--train", "IMAGES"), "only 19 labelled training images can vote"),
        (("--feature", "meen"), "Did you mean 'mean'?"),
        (("--temperature", "0"), "temperature"),
        (("--crop-ratio", "2"), "crop_ratio"),
        (("--device", "tpu"), "device"),
        (("--train", "no/such/folder"), "'no/such/folder' does not exist"),
        (("--role", "teacher"), "has no 'teacher' encoder"),
        (("--test", "IMAGES"), "has classes that"),
    ],
)
def test_the_users_faults_are_sentences(trained_run, image_folder, capsys, words, sentence):
    words = [word.replace("IMAGES", str(image_folder)) for word in words]
    before = (trained_run / "evaluations" / "knn.json").read_bytes()
    assert run(["knn", str(trained_run), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert (trained_run / "evaluations" / "knn.json").read_bytes() == before


def test_a_foreign_encoder_needs_data(trained_run, capsys):
    assert run(["knn", str(trained_run / "encoder.safetensors")]) == 2
    assert "--train: missing" in capsys.readouterr().err
    assert run(["knn", "nowhere", "--train", "bundled:fashion"]) == 2
    assert "there is no 'nowhere'" in capsys.readouterr().err
