"""`halfseen study` through the real entry point: the plan, and words for the grid and for pre-training."""

import json
from pathlib import Path

import pytest

from halfseen.cli.main import run

TINY = [
    "pretrain_sizes=[0,32]", "intermediates=[none,patchwise]", "finetune_sizes=[4]", "seeds=[0]", "test_size=4",
    "pretrain.data.image_size=32", "pretrain.model.embed_dim=16", "pretrain.model.depth=1",
    "pretrain.model.num_heads=2", "pretrain.model.head_dim=8", "pretrain.train.epochs=1",
    "pretrain.train.lr.milestones=[0.5]", "pretrain.train.batch_size=16", "pretrain.runtime.threads=1",
    "patchwise.epochs=1", "patchwise.max_train=8", "patchwise.max_test=4", "segmentation.epochs=1",
]  # fmt: skip


def test_the_plan_counts_trainings_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["study", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "43 trainings: 1 pre-training runs, 6 intermediate stages, 36 segmentations; 0 are finished" in printed
    assert "pre-trained on 10,000 images, then patchwise" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_small_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["study", *TINY, "--out", str(tmp_path / "st")]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "| pre-trained on 32 images, then patchwise |" in printed
    content = json.loads((tmp_path / "st" / "study.json").read_text())
    assert (content["name"], len(content["cells"])) == ("miniature", 3)
    assert content["settings"]["pretrain"][-1] == "runtime.threads=1"
    assert (tmp_path / "st" / "miou_by_finetune_size.png").is_file()
    assert run(["study", *TINY, "--out", str(tmp_path / "st"), "--dry-run"]) == 0
    assert "5 are finished" in capsys.readouterr().out


def test_another_recipe_brings_its_own_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--recipe", "mae_small_64px", "bundled:fashion-scenes", "--out", str(tmp_path / "st"), "--dry-run"]
    assert run(["study", *words]) == 0, capsys.readouterr().err
    assert run(["study", *words, "pretrain.method.mask_ratoi=0.5"]) == 2
    assert "Did you mean 'method.mask_ratio'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--grid", "minature"], "expected one of miniature, viny"),
        (["seeds=[1,1]"], "each once"),
        (["segmentaton.epochs=3"], "Did you mean 'segmentation.epochs'"),
        (["bundled:fashion", "data=photos"], "given twice"),
        (["--grid", "viny", "classification.epochs=5"], "the last one changes nothing"),
        (["--recipe", "mae_tiny"], "mae_tiny"),
        (["bundled:fashion"], "mask"),
    ],
)
def test_the_users_faults_are_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert run(["study", *words, "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
