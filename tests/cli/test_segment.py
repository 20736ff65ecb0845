"""`halfseen segment` through the real entry point."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfseen.cli.main import run

FEW = ["--train-size", "12", "--test-size", "6"]


@pytest.fixture(scope="module")
def segmented(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny fine-tuned model, and what was printed."""
    folder = tmp_path_factory.mktemp("segmented")
    code = run(
        ["segment", str(trained_run), "--train", "bundled:fashion-scenes", *FEW, "--epochs", "1",
         "--run-dir", str(folder / "model"), "--out", str(folder / "out")]
    )  # fmt: skip
    assert code == 0
    return folder


def test_a_model_a_result_and_a_picture(segmented: Path) -> None:
    result = json.loads((segmented / "out" / "viny-segmentation.json").read_text())
    assert (result["n"], result["n_train"], result["settings"]["epochs"]) == (6, 12, 1)
    assert set(result["baselines"]) == {"random_init", "largest_class"}
    with Image.open(segmented / "model" / "figures" / "segmentation_example.png") as picture:
        assert picture.width > 400 and len(np.unique(np.asarray(picture.convert("L")))) > 20
    beside = np.load(segmented / "out" / "viny-segmentation.npz")
    assert beside["images"].shape[:3] == beside["predictions"].shape
    about = json.loads((segmented / "model" / "encoder.json").read_text())
    assert about["segmentation"]["classes"][0] == "background"


def test_it_is_measured_again_without_training(
    segmented: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["segment", str(segmented / "model"), "--train", "bundled:fashion-scenes", "--no-training"]
    assert run([*words, "--out", str(tmp_path)]) == 0
    first = json.loads((segmented / "out" / "viny-segmentation.json").read_text())
    again = json.loads((tmp_path / "viny-segmentation.json").read_text())
    assert again["metrics"] == first["metrics"]
    assert not any("other images" in note for note in again["notes"])
    printed = capsys.readouterr().out
    assert "mean IoU" in printed and "95 % interval of mean IoU" in printed
    assert run([*words, "--epochs", "3"]) == 2
    assert "is measured by the settings it was trained with" in capsys.readouterr().err


def test_a_run_keeps_the_result_and_its_report_shows_it(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    own = shutil.copytree(trained_run, tmp_path / "run")
    words = ["--protocol", "knn-segmentation", *FEW, "--run-dir", str(tmp_path / "vote"), "k=5"]
    assert run(["segment", str(own), "--train", "bundled:fashion-scenes", *words]) == 0
    assert (own / "evaluations" / "knn-segmentation.json").is_file()
    assert not (tmp_path / "vote" / "encoder.safetensors").exists()
    capsys.readouterr()
    assert run(["report", str(own)]) == 0
    page = (own / "report.html").read_text()
    assert "Mean IoU in percent, k = 5" in page and "Intersection over union of each class" in page


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--train", "bundled:fashion"], "has no masks at all. Put masks into a folder `masks`"),
        (["--train", "bundled:fashion-scenes", "--train-size", "20000"], "got 20000 + 1000, but there are 12000"),
        (["--train", "bundled:fashion-scenes", "--protocol", "pets"], "expected one of viny-segmentation"),
        (["--train", "bundled:fashion-scenes", "epoch=3"], "Did you mean 'epochs'?"),
        (["--train", "bundled:fashion-scenes", "--image-size", "30"], "both sides must be multiples of the patch size"),
        (["--train", "bundled:fashion-scenes", "--own-splits", "--train-size", "5"], "--own-splits: given beside"),
        (["--train", "bundled:fashion-scenes", "--resume"], "--resume: missing --run-dir"),
        (["--train", "bundled:fashion-scenes", "photos"], "expected KEY=VALUE"),
        (["--train", "no/such/folder"], "does not exist"),
    ],
)
def test_faults_are_sentences(
    words: list[str],
    sentence: str,
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["segment", str(trained_run.resolve()), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_folder_with_masks(
    trained_run: Path, tmp_path: Path, make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "data" / "images", count=10, classes=0)
    (tmp_path / "data" / "masks").mkdir()
    for number in range(10):
        mask = np.zeros((32, 32), np.uint8)
        mask[number:, :] = 1
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{number:04d}.png")
    words = ["--protocol", "linear-segmentation", "--own-splits", "--epochs", "1", "--run-dir", str(tmp_path / "model")]
    options = ["--train", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert run(["segment", str(trained_run / "encoder.safetensors"), *options, *words]) == 0
    assert "a fifth of the images was kept apart" in capsys.readouterr().out
    Image.fromarray(np.zeros((16, 32), np.uint8)).save(tmp_path / "data" / "masks" / "0003.png")
    again = [*words[:-1], str(tmp_path / "other")]
    assert run(["segment", str(trained_run / "encoder.safetensors"), *options, *again]) == 2
    assert "0003.png' has 32 x 32 pixels, but its mask 32 x 16" in capsys.readouterr().err
