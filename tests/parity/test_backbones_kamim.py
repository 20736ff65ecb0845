"""KAMIM's ViT and Swin against the original's recorded hidden states, through the importer."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from halfseen.backbones.base import Encoder
from halfseen.backbones.decoders import PixelShuffleDecoder
from halfseen.backbones.swin import SwinEncoder
from halfseen.backbones.weights import import_checkpoint
from parity.discovery import load_arrays, parity_files, state_under

FILES = parity_files("kamim", "vit_step") + parity_files("kamim", "swin_step")


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())


def settings_of(arrays: dict[str, np.ndarray]) -> dict:
    return json.loads(bytes(arrays["meta_json"]).decode())


def heads_of(setting: dict) -> int | None:
    """The ViT's number of heads, wherever the settings keep it."""
    heads = next(value for name, value in flat(setting) if "heads" in name)
    return heads if isinstance(heads, int) else None


def flat(setting: dict) -> list[tuple[str, object]]:
    found = []
    for name, value in setting.items():
        found += flat(value) if isinstance(value, dict) else [(name, value)]
    return found


def layer_numbers(encoder: Encoder, count: int) -> list[int]:
    """The block after which each recorded hidden state stands: all for a ViT, ends of stages for a Swin."""
    if isinstance(encoder, SwinEncoder):
        return [0, *np.cumsum([len(stage.blocks) for stage in encoder.trunk.layers]).tolist()]
    return list(range(count))


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("wrapped", [False, True])
def test_hidden_states_and_picture(path: Path, wrapped: bool, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    state, x = state_under(arrays, "sd/"), tensor(arrays["x"])
    file = tmp_path / "checkpoint_final.pth"
    torch.save({"model_state_dict": state, "temperature": 0.25} if wrapped else state, file)
    swin = path.name.startswith("swin")
    heads = None if swin else heads_of(settings_of(arrays))
    found = import_checkpoint(file, image_size=x.shape[-1], num_heads=heads)
    assert found.kind == ("kamim_swin" if swin else "kamim_vit")
    assert not found.report.missing and not found.report.unexpected and not found.report.reshaped
    encoder = found.build().eval()
    decoder = PixelShuffleDecoder(encoder.embed_dim, encoder.stride)
    decoder.load_state_dict(found.decoder_state)
    mask = tensor(arrays["mask"]).flatten(1).bool()
    hidden = sorted((name for name in arrays if re.fullmatch(r"hidden\.\d+", name)), key=lambda n: int(n[7:]))
    numbers = layer_numbers(encoder, len(hidden))
    with torch.no_grad():
        features = encoder(x, mask=mask, mask_token=found.mask_token, layers=numbers)
        for index, name in enumerate(hidden):
            tokens = torch.cat([features.layers[index].prefix, features.layers[index].patches], dim=1)
            if swin and 0 < index < len(hidden) - 1:  # recorded after the merging that timm puts into the next stage
                merge = encoder.trunk.layers[index].downsample
                tokens = merge(tokens.unflatten(1, features.layers[index].grid)).flatten(1, 2)
            np.testing.assert_allclose(tokens.numpy(), arrays[name], rtol=0, atol=1e-5, err_msg=name)
        last = torch.cat([features.prefix, features.patches], dim=1)
        np.testing.assert_allclose(last.numpy(), arrays["last_hidden_state"], rtol=0, atol=1e-5)
        picture = decoder.picture(features.patches, features.grid)
    np.testing.assert_allclose(picture.numpy(), arrays["reconstruction"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", FILES)
def test_unmasked_features_and_probe_logits(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    x = tensor(arrays["x"])
    file = tmp_path / "checkpoint_final.pth"
    torch.save(state_under(arrays, "sd/"), file)
    heads = None if path.name.startswith("swin") else heads_of(settings_of(arrays))
    encoder = import_checkpoint(file, image_size=x.shape[-1], num_heads=heads).build().eval()
    weight, bias = tensor(arrays["head.weight"]), tensor(arrays["head.bias"])
    with torch.no_grad():
        features = encoder.encode(x, layers=[encoder.num_layers])
        last = torch.cat([features.prefix, features.patches], dim=1)
        np.testing.assert_allclose(last.numpy(), arrays["unmasked.last_hidden_state"], rtol=0, atol=1e-5)
        raw = torch.cat([features.layers[0].prefix, features.layers[0].patches], dim=1)
        np.testing.assert_allclose(raw.numpy(), arrays["unmasked.linprobe_hidden"], rtol=0, atol=1e-5)
        logits = torch.nn.functional.linear(features.patches.mean(dim=1), weight, bias)
        np.testing.assert_allclose(logits.numpy(), arrays["logits.finetune"], rtol=0, atol=1e-5)
        for name in (name for name in arrays if name.startswith("logits.linprobe_layer")):
            layer = int(name.removeprefix("logits.linprobe_layer"))
            tokens = encoder.encode(x, layers=[encoder.num_layers if layer < 0 else layer]).layers[0].patches
            logits = torch.nn.functional.linear(tokens.mean(dim=1), weight, bias)
            np.testing.assert_allclose(logits.numpy(), arrays[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("path", FILES)
def test_evaluation_checkpoints_with_their_head(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    x = tensor(arrays["x"])
    swin = path.name.startswith("swin")
    backbone = {
        re.sub(r"^(vit|swin)\.", "backbone." if swin else "vit_backbone.", name): value
        for name, value in state_under(arrays, "sd/").items()
        if not name.startswith("decoder.")
    }
    head = {"cls.2.weight": tensor(arrays["head.weight"]), "cls.2.bias": tensor(arrays["head.bias"])}
    file = tmp_path / "checkpoint_9.pth"
    torch.save({"epoch": 9, "model_state_dict": backbone | head, "val_loss": 1.0}, file)
    heads = None if swin else heads_of(settings_of(arrays))
    found = import_checkpoint(file, image_size=x.shape[-1], num_heads=heads)
    assert not found.report.missing and not found.report.unexpected
    with torch.no_grad():
        pooled = found.build().eval()(x).patches.mean(dim=1)
        logits = torch.nn.functional.linear(pooled, found.head_state["head.weight"], found.head_state["head.bias"])
    np.testing.assert_allclose(logits.numpy(), arrays["logits.finetune"], rtol=0, atol=1e-5)
