"""`halfseen import` through the real entry point: a checkpoint in MAE's layout, and files that are refused."""

import os

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from halfseen.backbones.weights import load_encoder
from halfseen.cli.main import run


def mae_checkpoint(path):
    """An encoder as the official MAE publishes it: {"model": state dict}, plus a decoder."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=192, depth=1, num_heads=3, num_classes=0)
    state = dict(model.state_dict())
    state |= {"mask_token": torch.zeros(1, 1, 16), "decoder_embed.weight": torch.zeros(16, 192)}
    torch.save({"model": state}, path)
    return model.eval()


def test_official_weights_come_in_with_a_key_report(tmp_path, capsys):
    model = mae_checkpoint(tmp_path / "mae.pth")
    assert run(["import", str(tmp_path / "mae.pth"), "--out", str(tmp_path / "out"), "--num-heads", "3"]) == 0
    printed = capsys.readouterr().out
    assert "missing: 0" in printed
    assert "unexpected: 0" in printed
    assert "Kind: mae" in printed
    assert "2 tensors of decoder and head" in printed
    assert "The mask token" not in printed  # MAE's belongs to its decoder
    encoder = load_encoder(tmp_path / "out" / "encoder.safetensors").encoder.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.forward_features(images)
        torch.testing.assert_close(encoder.encode(images).patches, expected[:, 1:], rtol=0, atol=1e-5)


def test_a_larger_size_names_what_was_resized(tmp_path, capsys):
    mae_checkpoint(tmp_path / "mae.pth")
    words = ["import", str(tmp_path / "mae.pth"), "--out", str(tmp_path), "--num-heads", "3", "--image-size", "48"]
    assert run(words) == 0
    assert "reshaped: 1\n  pos_embed" in capsys.readouterr().out


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path, capsys):
    marker = tmp_path / "pwned"
    torch.save({"model": Evil(str(marker))}, tmp_path / "evil.pth")
    assert run(["import", str(tmp_path / "evil.pth"), "--out", str(tmp_path / "out")]) == 2
    assert "evil.pth" in capsys.readouterr().err
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_other_files_are_sentences(tmp_path, capsys, content):
    (tmp_path / "x.pth").write_bytes(content)
    assert run(["import", str(tmp_path / "x.pth"), "--out", str(tmp_path / "out")]) == 2
    assert "x.pth" in capsys.readouterr().err
    assert run(["import", str(tmp_path / "none.pth"), "--out", str(tmp_path / "out")]) == 2
