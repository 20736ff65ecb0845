"""`halfseen analyze` through the real entry point, and its figures from the files alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfseen.cli.main import run
from halfseen.errors import CheckpointError
from halfseen.reports.analysis_files import read_analysis
from halfseen.reports.figures.analysis import FIGURES, draw_analysis

SMALL = (
    "--images", "10", "masked_images=3", "noise_images=3", "shown_images=2", "embedding_images=2",
    "reconstruction_images=3", "tsne_tokens=30", "mask_ratios=[0.5,0.8]",
)  # fmt: skip


@pytest.fixture(scope="module")
def analysed(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run beside its untrained network, all analyses, without figures."""
    folder = tmp_path_factory.mktemp("analysed")
    words = ["analyze", str(trained_run), "--random-init", "--data", "bundled:fashion-scenes", *SMALL, "--no-figures"]
    assert run([*words, "--out", str(folder)]) == 0
    return folder


def test_a_run_is_analysed_beside_its_untrained_network(analysed: Path, trained_run: Path) -> None:
    summary = json.loads((analysed / "analysis.json").read_text())
    assert [each["name"] for each in summary["encoders"]] == [trained_run.name, "random_init"]
    assert (summary["data"]["source"], summary["data"]["split"], summary["data"]["n"]) == (
        "bundled:fashion-scenes", "test", 10,
    )  # fmt: skip
    assert summary["settings"]["crop_ratio"] == 1.0  # the run's
    ours, fresh = summary["encoders"]
    assert ours["numbers"]["psnr_pixel_masked"] > 0 and "psnr_pixel_masked" not in fresh["numbers"]
    assert ours["numbers"]["average_distance"] > 0
    assert ours["numbers"]["attention_distance_last"] != fresh["numbers"]["attention_distance_last"]
    assert not (analysed / "figures").exists()


def test_every_figure_is_drawn_from_the_files_alone(analysed: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(analysed, tmp_path / "elsewhere")
    drawn = draw_analysis(copied / "analysis.json")
    assert {path.stem for path in drawn} == set(FIGURES)
    for path in drawn:
        with Image.open(path) as picture:
            assert min(picture.size) > 200
            assert np.asarray(picture.convert("L")).std() > 5, f"{path.name} is blank"
        assert "<svg" in path.with_suffix(".svg").read_text()[:1000]
    said = json.loads((copied / "figures" / "similarity.json").read_text())
    assert (said["fixed_vmin"], said["fixed_vmax"], said["grid_size"]) == (-0.5, 1.0, 4)
    assert said["refs"].keys() == {"bg_corner", "fg_interior", "boundary"} and said["refs"]["bg_corner"] == 0
    assert len(said["encoders"]) == 2 and said["other_grids"] == {}
    assert said["n_classes"] == 11 and said["labels"] == {"fg": None, "bg": 0, "boundary": None}


def test_hostile_names_are_shown_as_text(analysed: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(analysed, tmp_path / "hostile")
    text = (copied / "analysis.json").read_text()
    (copied / "analysis.json").write_text(text.replace('"name": "random_init"', '"name": "$\\\\frac{1}$<b>\\u202e"'))
    figure = FIGURES["cosine_distance"](read_analysis(copied))
    assert figure is not None
    figure.savefig(tmp_path / "drawn.svg")
    drawn = (tmp_path / "drawn.svg").read_text()
    assert "<b>" not in drawn and "\u202e" not in drawn


def test_files_that_cannot_be_read_are_sentences(analysed: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="can't be read as an analysis"):
        read_analysis(tmp_path)
    copied = shutil.copytree(analysed, tmp_path / "broken")
    (copied / "random_init.npz").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"random_init\.npz' can't be read"):
        read_analysis(copied)
    text = (analysed / "analysis.json").read_text()
    (copied / "analysis.json").write_text(text.replace('"file": "random_init.npz"', '"file": "../../random_init.npz"'))
    with pytest.raises(CheckpointError, match=r"broken/random_init\.npz' can't be read"):
        read_analysis(copied)


def test_only_some_into_the_runs_folder(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_run = shutil.copytree(trained_run, tmp_path / "run")
    assert run(["analyze", str(own_run), "--only", "attention", "--only", "rank", "--images", "4"]) == 0
    printed = capsys.readouterr().out
    assert "attention distance, last block (px)" in printed and "RankMe" in printed and "LiDAR" not in printed
    assert "(4 images of bundled:fashion)" in printed
    figures = {path.name for path in (own_run / "analysis" / "figures").glob("*.png")}
    assert figures == {
        "attention_distance.png",
        "normalized_mi.png",
        "attention.png",
        "attention_heads.png",
        "eigenvalues.png",
    }
    assert run(["analyze", str(own_run), "--only", "rank", "--images", "4"]) == 0
    figures = {path.name for path in (own_run / "analysis" / "figures").glob("*")}
    assert figures == {"eigenvalues.png", "eigenvalues.svg"}, "figures of an older analysis are still there"
    assert run(["analyze", str(own_run), "--only", "rank", "--images", "3", "--no-figures"]) == 0
    assert list((own_run / "analysis" / "figures").iterdir()) == [], "they'd stand beside the new numbers"


def test_encoders_of_one_name_are_told_apart(trained_run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(trained_run, tmp_path / "elsewhere" / trained_run.name)
    words = [str(trained_run), str(other), "timm:vit_tiny_patch16_224", "--image-size", "28"]
    assert run(["analyze", *words, "--only", "rank"]) == 2  # 28 pixels don't make patches of 16.
    words = [str(trained_run), str(other), "--only", "cka", "--images", "3", "--no-figures"]
    assert run(["analyze", *words, "--out", str(tmp_path / "out")]) == 0
    names = [each.row.name for each in read_analysis(tmp_path / "out").encoders]
    assert names == [trained_run.name, f"{trained_run.name}-2"]
    assert set(read_analysis(tmp_path / "out").between) == {
        f"{names[0]}|{names[1]}/{key}" for key in ("images", "tokens")
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("RUN", "--only", "atention"), "unknown analysis 'atention'"),
        (("RUN", "--only", "atention"), "Did you mean 'attention'?"),
        (("images=3",), "ENCODER: missing"),
        (("RUN", "masked_image=3"), "Did you mean 'masked_images'?"),
        (("RUN", "mask_ratios=[1.0]"), "mask_ratios"),
        (("timm:vit_tiny_patch16_224",), "--data: missing"),
        (("RUN", "--data", "no/such/folder"), "'no/such/folder' does not exist"),
        (("RUN", "--data", "EMPTY"), "EMPTY"),
        (("RUN", "fraction_per_class=0.001"), "is no image at all"),
    ],
)
def test_the_users_faults_are_sentences(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str
) -> None:
    (tmp_path / "EMPTY").mkdir()
    given = [word.replace("RUN", str(trained_run)).replace("EMPTY", str(tmp_path / "EMPTY")) for word in words]
    assert run(["analyze", *given, "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_runs_own_folder_is_no_place_for_an_analysis(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["analyze", str(trained_run), "--images", "6", "--out", str(trained_run)]) == 2
    assert f"Write into '{trained_run / 'analysis'}'" in capsys.readouterr().err
