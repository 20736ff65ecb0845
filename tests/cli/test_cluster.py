"""`halfseen cluster` through the real entry point."""

import json
import shutil
from pathlib import Path

import pytest

from command_line import TINY
from halfseen.cli.main import run
from halfseen.pretraining.build import load_method


def test_a_run_is_measured_into_its_folder_and_its_report(trained_run, tmp_path, capsys):
    own_run = shutil.copytree(trained_run, tmp_path / "run")
    assert run(["cluster", str(own_run), "--max-images", "60", "--runs", "2", "restarts=2"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((own_run / "evaluations" / "cluster.json").read_text())
    assert (result["protocol"], result["n"], result["split"]) == ("cluster", 60, "test")
    assert (result["settings"]["restarts"], result["settings"]["crop_ratio"]) == (2, 1.0)  # asked for; the run's
    mean, spread = result["metrics"]["nmi"], result["metrics"]["nmi_std"]
    assert f"{mean:.2f} ± {spread:.2f}" in printed
    assert f"{result['baselines']['raw_pixels']['acc']:.2f}" in printed
    assert run(["report", str(own_run)]) == 0
    page = (own_run / "report.html").read_text()
    assert f"{mean:.1f} ± {spread:.1f}" in page


@pytest.fixture(scope="module")
def distilled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of iBOT, whose head gives every image to one of 24 outputs."""
    folder = tmp_path_factory.mktemp("distilled")
    settings = [word for word in TINY["ibot"] if not word.startswith("data.")]
    few = ("data.image_size=32", "data.subset_size=32", "train.max_steps=2", f"run_dir={folder / 'run'}")
    assert run(["pretrain", "bundled:fashion", *settings, *few]) == 0
    return folder / "run"


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_the_head_of_a_run_groups_images(distilled_run, tmp_path, role):
    words = ["cluster", str(distilled_run), "--source", "head", "--max-images", "50", "--role", role]
    assert run([*words, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "ibot-cluster.json").read_text())
    assert (result["settings"]["source"], result["role"]) == ("head", role)
    assert "largest output of the pre-trained head" in result["protocol_text"]
    assert set(result["baselines"]) == {"random_init", "raw_pixels"}


def test_heads_of_student_and_teacher_are_their_own(distilled_run):
    import torch

    method = load_method(distilled_run).eval()
    summary = torch.randn(4, method.encoder.embed_dim)
    heads = method.class_heads()
    assert torch.equal(heads["teacher"](summary), method.teacher_head.logits(method.teacher_head.bottleneck(summary)))
    assert not torch.equal(heads["student"](summary), heads["teacher"](summary))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--source", "haed"), "Did you mean 'head'?"),
        (("--source", "head", "--feature", "cls"), "feature: got cls, but it has no effect with source=head"),
        (("--source", "head", "--last-blocks", "2"), "last_blocks: got 2, but it has no effect with source=head"),
        (("--source", "head"), "'mae' as it was trained here has no head"),
        (("--clusters", "3000"), "3000 clusters of 2000 labelled images can't be made"),
        (("--feature", "meen"), "Did you mean 'mean'?"),
        (("normalise=false",), "Did you mean 'normalize'?"),
        (("bundled:fashion",), "Name the images by --data"),
        (("--data", "no/such/folder"), "'no/such/folder' does not exist"),
        (("--data", "FLAT"), "clusters are compared with at least 2"),
        (("--last-blocks", "9"), "last_blocks: got 9"),
    ],
)
def test_the_users_faults_are_sentences(trained_run, tmp_path, make_images, capsys, words, sentence):
    flat = str(make_images(tmp_path / "flat", 6, classes=0))
    assert run(["cluster", str(trained_run), *(word.replace("FLAT", flat) for word in words)]) == 2
    assert sentence in capsys.readouterr().err
    assert not (trained_run / "evaluations" / "cluster.json").exists()


def test_a_head_needs_a_run_and_its_size(trained_run, distilled_run, capsys):
    encoder = str(trained_run / "encoder.safetensors")
    assert run(["cluster", encoder]) == 2
    assert "--data: missing. Name the images to group" in capsys.readouterr().err
    assert run(["cluster", encoder, "--data", "bundled:fashion", "--source", "head"]) == 2
    assert "is not a run" in capsys.readouterr().err
    assert run(["cluster", str(distilled_run), "--source", "head", "--image-size", "64"]) == 2
    assert "a head is measured at the size it was trained with, 32" in capsys.readouterr().err
