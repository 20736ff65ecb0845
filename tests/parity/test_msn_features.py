"""Features of MSN's encoder against recorded ones of the original, through the importer: tolerance 1e-5."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from halfseen.backbones.base import Encoder, Features
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.weights import import_checkpoint
from halfseen.ops.positions import resize_positions
from parity.discovery import load_arrays, parity_files, state_under


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())


def close(found: Tensor, expected: np.ndarray, name: str) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5, err_msg=name)


def encoder_of(arrays: dict[str, np.ndarray], folder: Path) -> Encoder:
    """Out of a file like the official ones: the averaged encoder, with its head, beside the trained one."""
    setting = json.loads(str(arrays["cfg_json"]))
    trunk = state_under(arrays, "encoder.")
    head = {"fc.fc1.weight": torch.zeros(8, setting["dim"]), "fc.fc3.weight": torch.zeros(4, 8)}
    target = {f"module.{name}": value for name, value in (trunk | head).items()}
    trained = {name: torch.zeros_like(value) for name, value in target.items()}
    path = folder / "tiny.pth.tar"
    torch.save({"encoder": trained, "target_encoder": target, "prototypes": torch.zeros(6, 4), "epoch": 3}, path)
    found = import_checkpoint(path, image_size=setting["img"], num_heads=setting["heads"])
    assert (found.kind, found.config.position_rule, found.config.crop_to_patches) == ("msn", "scale", True)
    config = ModelConfig.model_validate({**found.config.model_dump(), "norm_eps": setting["ln_eps"]})
    found = import_checkpoint(path, image_size=setting["img"], model=config)
    assert not found.report.missing and not found.report.unexpected and not found.report.reshaped
    encoder = found.build().eval()
    assert (encoder.patch_size, encoder.num_layers) == (setting["patch"], setting["depth"])
    return encoder


def counted(arrays: dict[str, np.ndarray], prefix: str) -> list[tuple[str, int]]:
    """(name, n) of the recorded `{prefix}.{n}`."""
    found = [(name, int(name[len(prefix) + 1 :])) for name in arrays if name[len(prefix) + 1 :].isdigit()]
    found = [(name, n) for name, n in found if name.startswith(prefix + ".")]
    assert found
    return found


def last_blocks(encoder: Encoder, images: Tensor, n: int, visible_ids: Tensor | None = None) -> Features:
    layers = range(encoder.num_layers - n + 1, encoder.num_layers + 1)
    return encoder(images, layers=tuple(layers), visible_ids=visible_ids)


@pytest.mark.parametrize("path", parity_files("msn", "features"))
def test_raw_class_tokens_of_the_last_blocks(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    encoder, images = encoder_of(arrays, tmp_path), tensor(arrays["images"])
    with torch.no_grad():
        for name, n in counted(arrays, "forward_blocks"):
            raw = torch.cat([tokens.prefix[:, 0] for tokens in last_blocks(encoder, images, n).layers], dim=1)
            close(raw, arrays[name], name)
        kept = tensor(arrays["forward_blocks.masked_kept"]).expand(len(images), -1)
        masked = last_blocks(encoder, images, 1, visible_ids=kept).layers[0].prefix[:, 0]
        close(masked, arrays["forward_blocks.masked"], "forward_blocks.masked")


@pytest.mark.parametrize("path", parity_files("msn", "features"))
def test_normed_class_tokens_and_the_mean_of_patches(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    encoder, images = encoder_of(arrays, tmp_path), tensor(arrays["images"])
    with torch.no_grad():
        for prefix in ("last_blocks_normed", "last_blocks_normed_avgpool"):
            for name, n in counted(arrays, prefix):
                features = last_blocks(encoder, images, n)
                parts = [encoder.trunk.norm(tokens.prefix[:, 0]) for tokens in features.layers]
                if prefix.endswith("avgpool"):
                    parts.append(features.patches.mean(dim=1))
                close(torch.cat(parts, dim=1), arrays[name], name)


@pytest.mark.parametrize("path", parity_files("msn", "features"))
def test_attention_of_the_last_block(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    encoder, images = encoder_of(arrays, tmp_path), tensor(arrays["images"])
    expected, last = arrays["selfattention_last"], encoder.num_layers
    with torch.no_grad():
        close(encoder.attention(images, last), expected, "selfattention_last")
        close(encoder(images, attention_layers=(last,)).attention[0], expected[:, :, 0], "class token's row")


@pytest.mark.parametrize("path", parity_files("msn", "features"))
def test_other_image_sizes_and_their_positions(path: Path, tmp_path: Path) -> None:
    """A size of which patches leave a border is among them."""
    arrays = load_arrays(path)
    encoder = encoder_of(arrays, tmp_path)
    sizes = [name.removeprefix("images") for name in arrays if name.startswith("images")]
    assert len(sizes) > 1
    with torch.no_grad():
        for size in sizes:
            images = tensor(arrays[f"images{size}"])
            features = encoder(images)
            close(features.prefix[:, 0], arrays[f"cls_after_norm{size}"], f"cls_after_norm{size}")
            close(encoder.forward_selected(images).summary, arrays[f"cls_after_norm{size}"], f"summary{size}")
            if size:
                table = resize_positions(encoder.trunk.pos_embed, *features.grid, 1, "scale")
                close(table, arrays[f"pos_embed{size}"], f"pos_embed{size}")
