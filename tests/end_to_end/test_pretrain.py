"""From a folder of images to weights that timm loads, a number with baselines and a page: the whole command."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

import halfseen
from command_line import TINY, run

MAE = (*TINY["mae"], "train.log_every_steps=2")


def test_a_folder_becomes_an_encoder_a_number_and_a_page(make_images: Callable[..., Path], tmp_path: Path) -> None:
    make_images(tmp_path / "photos", count=48)
    done = run("pretrain", "photos", *MAE, "train.epochs=2", "evaluate.knn=true", "--name", "first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "first"

    settings = json.loads((folder / "encoder.json").read_text())
    model = timm.create_model(settings["timm"]["model_name"], **settings["timm"]["kwargs"])
    model.load_state_dict(load_file(folder / "encoder.safetensors"), strict=True)
    loaded = halfseen.load_encoder(folder)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        ours = loaded.encoder.eval().encode(images)
        theirs = model.eval().forward_features(images)
    torch.testing.assert_close(torch.cat([ours.prefix, ours.patches], dim=1), theirs, rtol=1e-5, atol=1e-5)

    result = json.loads((folder / "evaluations" / "knn.json").read_text())
    assert result["n"] == 48
    assert set(result["baselines"]) == {"random_init", "raw_pixels"}
    assert 0 <= result["metrics"]["top1"] <= 100
    assert "leave-one-out" in result["split"]

    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 4, 6, 8, 10, 12]
    assert records[-1]["samples_seen"] == 96
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["data"]["source"] == "photos"
    assert config["train"]["batch_size"] == 8
    page = (folder / "report.html").read_text()
    assert "photos" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert json.loads((folder / "data.json").read_text())["images"] == 48


def test_a_run_from_python_equals_the_command(
    make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images(tmp_path / "photos", count=24)
    monkeypatch.chdir(tmp_path)
    words = [word for word in MAE if "=" in word] + ["train.epochs=1"]
    result = halfseen.pretrain("photos", recipe="mae_small", overrides=[*words, "run_dir=from-python"])
    done = run("pretrain", "photos", *MAE, "train.epochs=1", "--run-dir", "from-command", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result.encoder is not None
    assert result.encoder.read_bytes() == (tmp_path / "from-command" / "encoder.safetensors").read_bytes()


def test_a_dry_run_prints_settings_with_their_source_and_trains_nothing(tmp_path: Path) -> None:
    done = run("pretrain", "bundled:fashion", *MAE, "train.epochs=3", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mask_ratio: 0.5  # recipe mae_small" in done.stdout
    assert "epochs: 3" in done.stdout
    assert "# override" in done.stdout
    assert "parameters" in done.stdout
    assert "10,000 of bundled:fashion" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_settings_suit_the_images_when_no_recipe_is_named(make_images: Callable[..., Path], tmp_path: Path) -> None:
    make_images(tmp_path / "photos", count=40, size=120)
    done = run("pretrain", "photos", "runtime.device=cpu", "train.max_steps=1", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "image_size: 96  # chosen for this data" in done.stdout
    assert "patch_size: 8  # chosen for this data" in done.stdout
    assert "batch_size: 8  # chosen for this data" in done.stdout


def test_a_run_can_start_from_the_weights_of_another(make_images: Callable[..., Path], tmp_path: Path) -> None:
    make_images(tmp_path / "photos", count=24)
    assert run("pretrain", "photos", *MAE, "train.epochs=1", "--name", "first", cwd=tmp_path).returncode == 0
    done = run(
        "pretrain",
        "photos",
        *MAE,
        "train.epochs=1",
        "init=runs/first",
        "train.lr.base=1e-12",
        "--name",
        "second",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / "runs" / name / "encoder.safetensors") for name in ("first", "second"))
    for name, tensor in first.items():
        np.testing.assert_allclose(second[name], tensor, atol=1e-6, err_msg=name)
