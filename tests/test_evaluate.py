"""`halfseen.evaluate`: the same numbers as the command line, from Python."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import halfseen
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.weights import export_encoder
from halfseen.cli.main import run
from halfseen.errors import ConfigError, DataError

MODEL = ModelConfig.model_validate({"name": "vit_tiny", "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2})


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    torch.manual_seed(0)
    built = build_encoder(MODEL, 32)
    return str(export_encoder(built, tmp_path, mean=(0.5,) * 3, std=(0.25,) * 3, role="student"))


@pytest.fixture
def photos(tmp_path: Path, make_images) -> str:
    return str(make_images(tmp_path / "photos", 36, classes=3))


QUICK: dict[str, tuple[list[str], dict[str, object]]] = {
    "knn": (["--k", "3", "--crop-ratio", "1"], {"overrides": ["k=[3]", "crop_ratio=1"]}),
    "linear": (["epochs=2", "lr=[0.1]"], {"overrides": ["epochs=2", "lr=[0.1]"]}),
    "logistic": (
        ["--per-class", "2", "--draws", "2", "--crop-ratio", "1"],
        {"per_class": [2], "draws": 2, "overrides": ["crop_ratio=1"]},
    ),
    "cluster": (["--runs", "2"], {"overrides": ["runs=2"]}),
}


@pytest.mark.parametrize("name", QUICK)
def test_a_function_does_what_the_command_does(encoder: str, photos: str, tmp_path: Path, name: str) -> None:
    words, arguments = QUICK[name]
    option = "--data" if name == "cluster" else "--train"
    assert run([name, encoder, option, photos, "--seed", "3", "--out", str(tmp_path / "out"), *words]) == 0
    written = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    result = getattr(halfseen.evaluate, name)(encoder, photos, seed=3, **arguments)
    found = result.model_dump(mode="json")
    for key in ("protocol", "metrics", "baselines", "settings", "notes", "n", "seed", "curves"):
        assert found[key] == written[key], key
    assert not (Path.cwd() / "evaluations").exists()


def test_pixels_are_segmented(encoder: str) -> None:
    result = halfseen.evaluate.segment(
        encoder,
        "bundled:fashion-scenes",
        protocol="knn-segmentation",
        overrides=["train_size=6", "test_size=4", "max_patches=60"],
    )
    assert (result.protocol, result.n, result.primary) == ("knn-segmentation", 4, "miou")


def test_an_encoder_is_fine_tuned(encoder: str, photos: str, tmp_path: Path) -> None:
    outcome = halfseen.evaluate.finetune(
        encoder,
        photos,
        overrides=[
            f"run_dir={tmp_path / 'tuned'}", "train.epochs=1", "train.batch_size=8", "baselines=false",
            "runtime.workers=0", "runtime.threads=1", "runtime.device=cpu", "train.lr.warmup_epochs=0",
        ],
    )  # fmt: skip
    assert outcome.finished
    assert outcome.result is not None
    assert outcome.result.protocol == "finetune"
    assert (tmp_path / "tuned" / "config.yaml").is_file()


def test_faults_are_sentences(encoder: str, photos: str) -> None:
    with pytest.raises(ConfigError, match=r"train: missing\. Only a run has images of its own"):
        halfseen.evaluate.knn(encoder)
    with pytest.raises(ConfigError, match="data: missing"):
        halfseen.evaluate.cluster(encoder)
    with pytest.raises(DataError, match="k=50 was given, but only 35"):
        halfseen.evaluate.knn(encoder, photos, overrides=["k=[50]"])
    with pytest.raises(ConfigError, match=r"^analyze: unknown key"):
        halfseen.evaluate.knn(encoder, photos, overrides=["analyze=full"])
    with pytest.raises(ConfigError, match="Did you mean 'epochs'"):
        halfseen.evaluate.linear(encoder, photos, overrides=["epocs=3"])


def test_the_namespace_is_opened_when_it_is_asked_for() -> None:
    code = (
        "import sys, halfseen; assert 'torch' not in sys.modules; halfseen.evaluate.knn; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(halfseen.evaluate.__all__) == {"cluster", "finetune", "knn", "linear", "logistic", "segment"}
