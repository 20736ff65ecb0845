"""`halfseen export` through the real entry point: the printed lines really load the encoder."""

import json

import torch

from halfseen.backbones.weights import load_encoder
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


def test_another_size_resizes_positions(trained_run, tmp_path):
    assert run(["export", str(trained_run), "--out", str(tmp_path), "--image-size", "42"]) == 0
    assert load_encoder(tmp_path / "encoder.safetensors").image_size == 42


def test_the_users_faults_are_sentences(trained_run, tmp_path, capsys):
    assert run(["export", "nowhere", "--out", str(tmp_path)]) == 2
    assert "there is no 'nowhere'" in capsys.readouterr().err
    assert run(["export", str(trained_run)]) == 2
    assert "--out" in capsys.readouterr().err
