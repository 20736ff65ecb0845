"""iBOT's ViT and Swin against recorded outputs of the original, through the importer.

Other image sizes than the one a network was built for (local crops, larger and oblong images) are the point: positions
are resized by iBOT's own rule, and Swin pads before it shifts.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from halfseen.backbones.base import Encoder, Tokens
from halfseen.backbones.weights import Imported, import_checkpoint
from halfseen.ops.patches import repeat_cells
from halfseen.ops.positions import resize_positions
from parity.discovery import companion, load_arrays, parity_files


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())


def close(found: Tensor, expected: np.ndarray, name: str, atol: float) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=atol, err_msg=name)


def joined(tokens: Tokens) -> Tensor:
    """All tokens as the original has them: a Swin's class slot is the mean of its tokens."""
    first = tokens.prefix if tokens.prefix.shape[1] else tokens.patches.mean(dim=1, keepdim=True)
    return torch.cat([first, tokens.patches], dim=1)


def last_blocks(arrays: dict[str, np.ndarray], prefix: str) -> list[tuple[str, int, int]]:
    """(name, n, i) of the recorded `{prefix}_n{n}_{i}`: the i-th of the last n blocks, the earliest first."""
    found = []
    for name in arrays:
        match = re.fullmatch(rf"{prefix}_n(\d+)(?:_(\d+))?", name)
        if match:
            found.append((name, int(match[1]), int(match[2] or 0)))
    assert found
    return found


def imported_vit(path: Path, arrays: dict[str, np.ndarray]) -> Imported:
    image_size, patch_size, width, depth, heads = (int(number) for number in arrays["config"])
    found = import_checkpoint(
        companion(path.with_suffix(".safetensors"), "vit_backbone_io", "vit_backbone"),
        image_size=image_size,
        num_heads=heads,
    )
    assert not found.report.missing and not found.report.unexpected and not found.report.reshaped
    encoder = found.build()
    assert (encoder.patch_size, encoder.embed_dim, encoder.num_layers) == (patch_size, width, depth)
    assert encoder.config.position_rule == "scale_offset"
    return found


@pytest.mark.parametrize("path", parity_files("ibot", "vit_backbone_io"))
def test_vit_tokens_of_all_image_sizes_and_masked_ones(path: Path) -> None:
    arrays = load_arrays(path)
    found = imported_vit(path, arrays)
    encoder = found.build().eval()
    with torch.no_grad():
        mask = tensor(arrays["mask"]).flatten(1)
        masked = encoder(tensor(arrays["images"]), mask=mask, mask_token=found.mask_token)
        close(joined(masked), arrays["tokens_masked"], "tokens_masked", 1e-5)
        sizes = [name.removeprefix("images") for name in arrays if name.startswith("images")]
        assert len(sizes) > 1
        for size in sizes:
            images = tensor(arrays[f"images{size}"])
            close(joined(encoder(images)), arrays[f"tokens{size}"], f"tokens{size}", 1e-5)
            summary = encoder.forward_selected(images).summary
            close(summary, arrays[f"tokens{size}"][:, 0], f"summary{size}", 1e-5)


@pytest.mark.parametrize("path", parity_files("ibot", "vit_backbone_io"))
def test_vit_positions_of_other_grids(path: Path) -> None:
    arrays = load_arrays(path)
    encoder = imported_vit(path, arrays).build()
    names = [name for name in arrays if name.startswith("pos_")]
    assert names
    for name in names:
        rows, columns = (side // encoder.patch_size for side in arrays[name.replace("pos_", "images_")].shape[-2:])
        table = resize_positions(encoder.trunk.pos_embed.detach(), rows, columns, 1, "scale_offset")
        close(table, arrays[name], name, 1e-5)


@pytest.mark.parametrize("path", parity_files("ibot", "vit_backbone_io"))
def test_vit_attention_of_the_last_block(path: Path) -> None:
    arrays = load_arrays(path)
    encoder = imported_vit(path, arrays).build().eval()
    images, expected, last = tensor(arrays["images"]), arrays["last_attention"], encoder.num_layers
    with torch.no_grad():
        close(encoder.attention(images, last), expected, "last_attention", 1e-5)
        rows = encoder(images, attention_layers=(last,)).attention[0]
        close(rows, expected[:, :, 0], "class token's row", 1e-5)
        means = encoder(images, attention_layers=(last,), attention_rows="head_mean").attention[0]
        close(means, expected.mean(axis=1), "mean over the heads", 1e-5)


@pytest.mark.parametrize("path", parity_files("ibot", "vit_backbone_io"))
def test_vit_outputs_of_the_last_blocks(path: Path) -> None:
    """After the final norm; with mean pooling the original's final norm is an identity."""
    arrays = load_arrays(path)
    encoder = imported_vit(path, arrays).build().eval()
    with torch.no_grad():
        for prefix in ("intermediate", "meanpool_intermediate"):
            for name, n, i in last_blocks(arrays, prefix):
                raw = joined(encoder.encode(tensor(arrays["images"]), [encoder.num_layers - n + 1 + i]).layers[0])
                close(encoder.trunk.norm(raw) if prefix == "intermediate" else raw, arrays[name], name, 1e-5)


def imported_swin(path: Path, arrays: dict[str, np.ndarray]) -> tuple[Imported, Encoder]:
    image_size, patch_size, width, window = (int(number) for number in arrays["config"])
    found = import_checkpoint(
        companion(path.with_suffix(".safetensors"), "swin_backbone_io", "swin_backbone"), image_size=image_size
    )
    assert not found.report.missing and not found.report.unexpected and not found.report.reshaped
    assert found.config.norm_eps == 1e-6
    encoder = found.build().eval()
    assert (encoder.patch_size, encoder.mask_dim, found.config.window_size) == (patch_size, width, window)
    width, depths, heads = found.config.sizes()
    assert depths == tuple(arrays["depths"]) and heads == tuple(arrays["heads"])
    return found, encoder


@pytest.mark.parametrize("path", parity_files("ibot", "swin_backbone_io"))
def test_swin_tokens_of_all_image_sizes_and_masked_ones(path: Path) -> None:
    arrays = load_arrays(path)
    found, encoder = imported_swin(path, arrays)
    with torch.no_grad():
        mask = repeat_cells(tensor(arrays["mask"]), encoder.stride // encoder.patch_size).flatten(1)
        masked = encoder(tensor(arrays["images"]), mask=mask, mask_token=found.mask_token)
        close(joined(masked), arrays["tokens_masked"], "tokens_masked", 2e-5)
        sizes = [name.removeprefix("images") for name in arrays if name.startswith("images")]
        assert len(sizes) > 1
        for size in sizes:
            features = encoder(tensor(arrays[f"images{size}"]))
            close(joined(features), arrays[f"tokens{size}"], f"tokens{size}", 2e-5)
        pooled = encoder.forward_selected(tensor(arrays["images"])).summary
        close(pooled, arrays["pooled"], "pooled", 2e-5)


@pytest.mark.parametrize("path", parity_files("ibot", "swin_backbone_io"))
def test_swin_outputs_of_the_last_blocks(path: Path) -> None:
    """Those of the last stage after the final norm, earlier ones as they are, before they are merged."""
    arrays = load_arrays(path)
    _, encoder = imported_swin(path, arrays)
    of_last_stage = int(arrays["depths"][-1])
    with torch.no_grad():
        for name, n, i in last_blocks(arrays, "intermediate"):
            tokens = encoder.encode(tensor(arrays["images"]), [encoder.num_layers - n + 1 + i]).layers[0]
            if n - i <= of_last_stage:
                tokens = tokens._replace(patches=encoder.trunk.norm(tokens.patches))
            close(joined(tokens), arrays[name], name, 2e-5)
