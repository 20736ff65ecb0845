"""`halfseen export` through the real entry point: the printed lines really load the encoder."""

import json

import pytest
import torch

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.weights import export_encoder, load_encoder
from halfseen.cli.main import run


def test_the_printed_lines_load_it_in_timm(trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["export", str(trained_run), "--out", "exported"]) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if line.startswith(("import ", "model = "))]
    assert len(lines) == 2
    namespace: dict[str, object] = {}
    for line in lines:
        exec(line, namespace)  # what a user pastes
    model = namespace["model"].eval()
    images = torch.randn(2, 3, 28, 28)
    encoder = load_encoder(trained_run).encoder.eval()
    with torch.no_grad():
        expected = encoder.encode(images)
        found = model.forward_features(images)
    torch.testing.assert_close(found[:, 1:], expected.patches, rtol=0, atol=1e-5)
    about = json.loads((tmp_path / "exported" / "encoder.json").read_text())
    assert about["role"] == "student"
    assert about["normalisation"] == json.loads((trained_run / "encoder.json").read_text())["normalisation"]


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_either_encoder_of_a_run_with_a_teacher(tmp_path, role):
    """A finished run's folder holds the teacher as its main encoder and the student beside it."""
    encoders = {}
    for seed, (own, stem) in enumerate((("teacher", "encoder"), ("student", "encoder_student"))):
        torch.manual_seed(seed)
        encoders[own] = build_encoder(ModelConfig(name="vit_tiny", embed_dim=192, depth=1), 32)
        export_encoder(encoders[own], tmp_path / "run", mean=(0.5,) * 3, std=(0.5,) * 3, role=own, stem=stem)
    assert run(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--role", role]) == 0
    found = load_encoder(tmp_path / "out")
    assert found.role == role
    assert torch.equal(found.encoder.trunk.cls_token, encoders[role].trunk.cls_token)
    assert run(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out2")]) == 0
    assert load_encoder(tmp_path / "out2").role == "teacher"


def test_another_size_resizes_positions(trained_run, tmp_path):
    assert run(["export", str(trained_run), "--out", str(tmp_path), "--image-size", "42"]) == 0
    assert load_encoder(tmp_path / "encoder.safetensors").image_size == 42


def test_the_users_faults_are_sentences(trained_run, tmp_path, capsys):
    assert run(["export", "nowhere", "--out", str(tmp_path)]) == 2
    assert "there is no 'nowhere'" in capsys.readouterr().err
    assert run(["export", str(trained_run)]) == 2
    assert "--out" in capsys.readouterr().err
