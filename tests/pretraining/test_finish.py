"""What a finished run leaves behind beside its weights: the look from within, and never at the cost of the report."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import halfseen
from command_line import TINY
from halfseen.pretraining.config import load_run_config
from halfseen.pretraining.run import run

SETTINGS = [word for word in TINY["mae"] if "=" in word and "analyze" not in word]


def test_a_finished_run_is_analysed_beside_its_untrained_network(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    photos = make_images(tmp_path / "photos", count=24)
    words = [*SETTINGS, "train.max_steps=1", f"run_dir={tmp_path / 'my run'}", "evaluate.analyze_images=12"]
    result = halfseen.pretrain(photos, recipe="mae_small", overrides=words)
    summary = json.loads((result.run_dir / "analysis" / "analysis.json").read_text())
    assert [each["name"] for each in summary["encoders"]] == ["my_run", "random_init"]
    assert (summary["data"]["n"], summary["data"]["split"]) == (12, "all")
    assert "noise" not in summary["analyses"] and not (result.run_dir / "analysis" / "figures").exists()
    assert "psnr_pixel_masked" in summary["encoders"][0]["numbers"]
    with np.load(result.run_dir / "analysis" / "my_run.npz") as arrays:
        assert arrays["images/thumbnails"].shape == (12, 32, 32, 3) and "embedding/images_tsne" not in arrays


def test_none_and_a_full_analysis(make_images: Callable[..., Path], tmp_path: Path) -> None:
    photos = make_images(tmp_path / "photos", count=24)
    words = [*SETTINGS, "train.max_steps=1"]
    kinds = {
        kind: halfseen.pretrain(
            photos, recipe="mae_small", overrides=[*words, f"run_dir={tmp_path / kind}", f"evaluate.analyze={kind}"]
        )
        for kind in ("none", "full")
    }
    assert not (tmp_path / "none" / "analysis").exists() and kinds["none"].report is not None
    full = tmp_path / "full" / "analysis"
    assert {"noise", "embedding"} <= set(json.loads((full / "analysis.json").read_text())["analyses"])
    with np.load(full / "full.npz") as arrays:
        assert arrays["embedding/images_tsne"].shape == (24, 2)
    assert len(list((full / "figures").glob("*.png"))) > 10
    shares = {}
    for kind in kinds:
        with np.load(tmp_path / kind / "figures" / "reconstruction.npz") as arrays:
            shares[kind] = [round(float(share), 2) for share in arrays["hidden_share"]]
    assert len(shares["none"]) == 1 and shares["full"] == [*shares["none"], 0.25, 0.75, 0.94]  # 1 of 16 patches stays.
    assert 'data-ratios="25' in (tmp_path / "full" / "report.html").read_text()  # From little hidden to much.


def test_an_analysis_that_fails_is_a_sentence(
    make_images: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, folder = make_images(tmp_path / "photos", count=24), tmp_path / "run"
    words = [*SETTINGS, "train.max_steps=1", f"run_dir={folder}", f"data.source={photos}"]
    run(load_run_config("mae_small", None, [*words, "evaluate.analyze=none"]))
    (folder / "analysis").write_text("in the way")
    (folder / "report.html").unlink()
    done = run(load_run_config(None, folder / "config.yaml", ["evaluate.analyze=quick"]), resume=True)
    assert done.report is not None and done.report.exists()
    assert "No analysis of this run" in capsys.readouterr().err
