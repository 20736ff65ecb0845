"""HOG as a target, from the command line: trained, stopped, resumed, and no pictures made up from it."""

from collections.abc import Callable
from pathlib import Path

from command_line import TINY, final_weights, run

HOG = ("method.target.kind=hog", "method.target.bins=18", "method.target.bias=true", "train.epochs=2")
SIMMIM = (*TINY["simmim"], *HOG, "method.target.cell_size=4")


def test_simmim_resumes_with_its_bias(make_images: Callable[..., Path], tmp_path: Path) -> None:
    make_images(tmp_path / "photos", count=24)
    assert run("pretrain", "photos", *SIMMIM, "--name", "whole", cwd=tmp_path).returncode == 0
    halted = run("pretrain", "photos", *SIMMIM, "train.max_steps=2", "--name", "halted", cwd=tmp_path)
    assert halted.returncode == 0, halted.stderr
    resumed = run("pretrain", "--resume", "runs/halted", "train.max_steps=null", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert final_weights(tmp_path / "runs" / "halted") == final_weights(tmp_path / "runs" / "whole")


def test_mae_trains_and_its_histograms_are_not_shown_as_pictures(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    make_images(tmp_path / "photos", count=24)
    words = (*TINY["mae"], *HOG, "method.norm_pix_loss=false", "train.max_steps=2")
    done = run("pretrain", "photos", *words, "--name", "mae", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mae" / "report.html").is_file()
    assert not list((tmp_path / "runs" / "mae").glob("figures/reconstruction*"))
    shown = run("reconstruct", "runs/mae", cwd=tmp_path)
    assert shown.returncode == 2
    assert "predicts no pixels" in shown.stderr and "Traceback" not in shown.stderr
