"""`halfseen logistic` through the real entry point."""

import json
import shutil

import pytest

from halfseen.cli.main import run


@pytest.fixture
def own_run(trained_run, tmp_path):
    return shutil.copytree(trained_run, tmp_path / "run")


def test_a_run_is_measured_into_its_folder_and_its_report(own_run, capsys):
    words = ["logistic", str(own_run), "--max-test", "40", "--per-class", "2", "--per-class", "5", "--draws", "2"]
    assert run(words) == 0
    printed = capsys.readouterr().out
    result = json.loads((own_run / "evaluations" / "msn-logistic.json").read_text())
    assert (result["protocol"], result["n"], result["n_train"]) == ("msn-logistic", 40, 50)
    assert set(result["baselines"]) == {"random_init", "raw_pixels"}
    assert result["settings"]["crop_ratio"] == 1.0  # the run's own, its pictures being small
    assert result["settings"]["lambdas"] == [0.0025, 0.0025]
    mean, spread = result["metrics"]["top1_5shot"], result["metrics"]["top1_5shot_std"]
    assert f"{mean:.2f} ± {spread:.2f}" in printed
    assert "msn-logistic: n = 40 classified by 50 labelled images" in printed
    assert "Pre-training used another set of images" in printed
    assert run(words) == 0
    again = json.loads((own_run / "evaluations" / "msn-logistic.json").read_text())
    assert again["metrics"] == result["metrics"]
    assert run(["report", str(own_run)]) == 0
    page = (own_run / "report.html").read_text()
    assert "msn-logistic" in page
    assert f"{mean:.1f} ± {spread:.1f}" in page
    assert "lambda = 0.0025" in page


def test_label_files_of_a_folder_of_classes(trained_run, tmp_path, make_images, capsys):
    photos = str(make_images(tmp_path / "photos", 40, classes=2))
    splits = str(tmp_path / "splits")
    assert run(["data", "split", photos, "--out", splits, "--per-class", "1", "--per-class", "3"]) == 0
    words = ["logistic", str(trained_run / "encoder.safetensors"), "--train", photos, "--split", splits]
    words += ["--lambd", "0.1", "--lambd", "0.01", "--out", str(tmp_path / "here")]
    assert run(words) == 0
    result = json.loads((tmp_path / "here" / "msn-logistic.json").read_text())
    assert result["headline"] == {"lambda": 0.1, "draws": 3}
    assert result["settings"]["sweep"] == [0.1, 0.01]
    assert "top1_1shot_lambda0.01" in result["metrics"]
    assert "given beforehand" in result["protocol_text"]
    used = {line for file in (tmp_path / "splits").rglob("*.txt") for line in file.read_text().splitlines()}
    assert result["n"] == 40 - len(used)  # one folder: what no list holds is classified
    assert "is not known here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--per-class", "5000"), "5000 images per class were asked for, but"),
        (("--fraction", "2"), "share of the images: got 2.0"),
        (("--lambd", "0"), "lambd"),
        (("--mask", "1"), "mask"),
        (("--penalty", "l1"), "penalty"),
        (("--lambd", "-1"), "lambd"),
        (("--feature", "clss"), "Did you mean 'cls'?"),
        (("--last-blocks", "9"), "last_blocks: got 9"),
        (("--split", "no/such.txt", "--train", "IMAGES"), "can't read 'no/such.txt'"),
        (("--split", "LIST", "--train", "IMAGES"), "2 of the 2 images in"),
        (("--split", "LIST"), "are not files with names"),
        (("--split", "LIST", "--draws", "2"), "leave --per-class, --fraction and --draws out"),
        (("--split", "EMPTY", "--train", "IMAGES"), "holds no .txt file"),
        (("--train", "FLAT"), "has no labels to draw from"),
        (("--train", "IMAGES", "--test", "FLAT", "--per-class", "1"), "no labelled image is left to classify"),
        (("--test", "IMAGES"), "has classes that"),
        (("--train", "no/such/folder"), "'no/such/folder' does not exist"),
        (("--role", "teacher"), "has no 'teacher' encoder"),
    ],
)
def test_the_users_faults_are_sentences(trained_run, tmp_path, make_images, capsys, words, sentence):
    (tmp_path / "list.txt").write_text("class0_7.JPEG\nclass9/0.png\n")
    (tmp_path / "empty").mkdir()
    places = {
        "IMAGES": str(make_images(tmp_path / "images", 12, classes=2)),
        "FLAT": str(make_images(tmp_path / "flat", 4, classes=0)),
        "LIST": str(tmp_path / "list.txt"),
        "EMPTY": str(tmp_path / "empty"),
    }
    assert run(["logistic", str(trained_run), *(places.get(word, word) for word in words)]) == 2
    assert sentence in capsys.readouterr().err
    assert not (trained_run / "evaluations" / "msn-logistic.json").exists()


def test_a_foreign_encoder_needs_data(trained_run, capsys):
    assert run(["logistic", str(trained_run / "encoder.safetensors")]) == 2
    assert "--train: missing" in capsys.readouterr().err
    assert run(["logistic", "nowhere", "--train", "bundled:fashion"]) == 2
    assert "there is no 'nowhere'" in capsys.readouterr().err
