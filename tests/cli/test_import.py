"""`halfseen import` through the real entry point: a checkpoint in MAE's layout, and files that are refused."""

import argparse
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


def ibot_checkpoint(path):
    """Both networks as iBOT stores them: the student inside DDP's wrapper, the settings beside them."""
    torch.manual_seed(0)
    networks = {}
    for role, wrapper in (("student", "module."), ("teacher", "")):
        model = VisionTransformer(img_size=32, patch_size=8, embed_dim=192, depth=1, num_heads=3, num_classes=0)
        state = {f"{wrapper}backbone.{name}": tensor for name, tensor in model.state_dict().items()}
        state |= {f"{wrapper}head.mlp.{layer}.bias": torch.ones(4) for layer in (0, 2, 4)}
        networks[role] = (model.eval(), state)
    networks["student"][1]["module.backbone.masked_embed"] = torch.zeros(1, 192)
    states = {role: state for role, (_, state) in networks.items()}
    torch.save(states | {"args": argparse.Namespace(arch="vit_tiny"), "epoch": 1}, path)
    return {role: model for role, (model, _) in networks.items()}


@pytest.mark.parametrize(("words", "role", "other"), [
    ([], "teacher", "student"), (["--role", "student"], "student", "teacher"),
])  # fmt: skip
def test_either_network_of_a_file_with_two(tmp_path, capsys, words, role, other):
    models = ibot_checkpoint(tmp_path / "checkpoint.pth")
    assert run(["import", str(tmp_path / "checkpoint.pth"), "--out", str(tmp_path / "out"), *words]) == 0
    printed = capsys.readouterr().out
    assert "Kind: ibot" in printed
    assert f"Role: {role}; --role {other} takes the other network" in printed
    assert "missing: 0\nunexpected: 0" in printed
    assert "head: 3\n  mlp.0.bias\n" in printed
    assert ("The mask token" in printed) == (role == "student")
    loaded = load_encoder(tmp_path / "out", role)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = models[role].forward_features(images)
        torch.testing.assert_close(loaded.encoder.eval().encode(images).patches, expected[:, 1:], rtol=0, atol=1e-5)


def localmim_checkpoint(path):
    """The two deepest branches, as progressive freezing leaves them: numbered from 0 again."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=192, depth=7, num_heads=3, num_classes=0)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("norm.")}
    state |= {f"norm.0.{name}": torch.zeros(192) for name in ("weight", "bias")}
    state |= {f"norm.1.{name}": tensor for name, tensor in model.norm.state_dict().items()}
    state |= {
        "decoder.0.pred.0.weight": torch.zeros(27, 16, 1, 1),
        "decoder.1.pred.1.weight": torch.zeros(27, 16, 1, 1),
    }
    state |= {f"hog_enc.{number}.conv.weight": torch.zeros(2, 1, 3, 3) for number in (0, 1)}
    torch.save({"model": state, "epoch": 99, "args": argparse.Namespace(how_scale="cubic")}, path)
    return model.eval()


def test_branches_of_localmim_are_listed_and_stay_out_of_the_encoder(tmp_path, capsys):
    model = localmim_checkpoint(tmp_path / "localmim.pth")
    assert run(["import", str(tmp_path / "localmim.pth"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Kind: localmim_vit; vit_tiny, 32 px, 7 blocks" in printed
    assert "Branches: 2 (scale 1), 3 (scale 0.5); the norm of the last one is the encoder's final norm" in printed
    assert "missing: 0\nunexpected: 0\nreshaped: 0\nignored: 2\n  hog_enc.0.conv.weight\n" in printed
    assert "decoder: 2\n  2.pred.0.weight\n  3.pred.1.weight\n" in printed
    assert "norms and constants of branches: 2\n  norm.2.weight\n" in printed
    assert "4 tensors of decoder and head are not part of the encoder" in printed
    encoder = load_encoder(tmp_path / "out").encoder.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.forward_features(images)
        torch.testing.assert_close(encoder.encode(images).patches, expected[:, 1:], rtol=0, atol=1e-5)
    words = ["import", str(tmp_path / "localmim.pth"), "--out", str(tmp_path / "x"), "--patch-merge-order", "pretrain"]
    assert run(words) == 2
    assert "a Swin of LocalMIM only" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_roles_that_are_not_there_are_sentences(tmp_path, capsys):
    mae_checkpoint(tmp_path / "mae.pth")
    for role, sentence in (("teacher", "one network only"), ("momentum", "Known: student, teacher")):
        assert run(["import", str(tmp_path / "mae.pth"), "--out", str(tmp_path / "out"), "--role", role]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
