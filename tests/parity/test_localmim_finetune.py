"""LocalMIM's classifiers against the original's: features and logits, resized positions, layer-wise rates and decay."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from halfseen.backbones.build import build_encoder, timm_call
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.weights import fit_state
from halfseen.ops.layer_decay import swin_finetune_group, vit_finetune_group
from halfseen.ops.positions import resize_positions
from halfseen.types import GroupKey
from parity.discovery import load_arrays, parity_files
from parity.localmim_images import prepare
from parity.localmim_weights import setting

WEIGHT_DECAY = 0.05


def pretrained(path: Path) -> Path:
    """The vector whose weights, settings and pictures a classifier's vector builds on."""
    return path.with_name(path.stem.partition("_finetune")[0] + ".npz")


def classifier_config(path: Path, pool: str) -> ModelConfig:
    sizes = setting(load_arrays(pretrained(path)))
    weights = load_file(pretrained(path).with_suffix(".safetensors"))
    return ModelConfig(
        name="vit_tiny",
        patch_size=weights["patch_embed.proj.weight"].shape[-1],
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        final_norm="pooled" if pool == "avg" else "tokens",
    )


def cases(path: Path) -> list[tuple[str, int]]:
    """(pooling, side of the images) of all features in a file."""
    found = (re.fullmatch(r"feat_(avg|cls)_img(\d+)", name) for name in load_arrays(path))
    return [(match[1], int(match[2])) for match in found if match]


@pytest.mark.parametrize("path", parity_files("localmim", "_finetune"))
def test_features_and_logits(path: Path) -> None:
    arrays, source = load_arrays(path), load_arrays(pretrained(path))
    weights = load_file(pretrained(path).with_suffix(".safetensors"))
    trunk = {name: tensor for name, tensor in weights.items() if not name.startswith(("norm.", "decoder.", "hog_enc."))}
    images = prepare(source["images_u8_nhwc"])
    assert cases(path)
    for pool, side in cases(path):
        encoder = build_encoder(classifier_config(path, pool), side).eval()
        fitted, report = fit_state(trunk, encoder.trunk)
        norm = "fc_norm" if pool == "avg" else "norm"
        assert set(report.missing) == {f"{norm}.weight", f"{norm}.bias"} and not report.unexpected
        encoder.trunk.load_state_dict(fitted, strict=False)
        nearest = torch.arange(side) * images.shape[-1] // side
        with torch.no_grad():
            features = encoder(images[:, :, nearest][:, :, :, nearest])
            pooled = encoder.trunk.fc_norm(features.patches.mean(dim=1)) if pool == "avg" else features.prefix[:, 0]
            logits = F.linear(pooled, torch.from_numpy(arrays["head_weight"]))
        case = f"{pool}_img{side}"
        np.testing.assert_allclose(pooled.numpy(), arrays[f"feat_{case}"], rtol=0, atol=2e-5, err_msg=case)
        np.testing.assert_allclose(logits.numpy(), arrays[f"logits_{case}"], rtol=0, atol=2e-5, err_msg=case)


@pytest.mark.parametrize("path", parity_files("localmim", "_finetune"))
def test_positions_are_resized_without_antialiasing(path: Path) -> None:
    expected = load_arrays(path)["pos_embed_resized"]
    positions = load_file(pretrained(path).with_suffix(".safetensors"))["pos_embed"]
    side = round((expected.shape[1] - 1) ** 0.5)
    resized = resize_positions(positions, side, side, num_prefix_tokens=1, rule="size")
    np.testing.assert_allclose(resized.numpy(), expected, rtol=0, atol=1e-6)


def assert_same_groups(groups: dict[str, GroupKey], names: np.ndarray, scales: np.ndarray, decays: np.ndarray) -> None:
    assert sorted(groups) == sorted(names)
    for name, scale, decay in zip(names, scales, decays, strict=True):
        np.testing.assert_allclose(groups[name].lr_scale, scale, rtol=1e-12, atol=0, err_msg=name)
        assert (WEIGHT_DECAY if groups[name].decay else 0.0) == decay, name


@pytest.mark.parametrize("path", parity_files("localmim", "_finetune"))
def test_rates_and_decay_of_a_vit(path: Path) -> None:
    arrays = load_arrays(path)
    config = classifier_config(path, "avg")
    call = timm_call(config, load_arrays(pretrained(path))["images_u8_nhwc"].shape[1])
    model = timm.create_model(call.model_name, **{**call.kwargs, "num_classes": len(arrays["head_weight"])})
    recorded = [match[1] for match in (re.fullmatch(r"lrd(.+)_names", name) for name in arrays) if match]
    assert recorded
    for number in recorded:
        groups = {
            name: vit_finetune_group(name, parameter.ndim, depth=config.depth, layer_decay=float(number))
            for name, parameter in model.named_parameters()
        }
        assert_same_groups(groups, *(arrays[f"lrd{number}_{part}"] for part in ("names", "scale", "wd")))
        assert len(set(groups.values())) == arrays["num_groups"]


def reference_name(name: str) -> str:
    """The original ends a stage with its patch merging, where timm begins the next one with it."""
    name = re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
    return name.replace("head.fc.", "head.")


@pytest.mark.parametrize("path", parity_files("localmim", "_layer_decay"))
def test_rates_and_decay_of_a_swin(path: Path) -> None:
    arrays = load_arrays(path)
    depths = tuple(arrays["depths"].tolist())
    call = timm_call(ModelConfig(name="swin_tiny", embed_dim=8, depths=depths, num_heads=1), 8 * 2 ** len(depths))
    model = timm.create_model(call.model_name, **{**call.kwargs, "num_classes": 10}, device="meta")
    groups = {
        reference_name(name): swin_finetune_group(
            name,
            parameter.ndim,
            depths=depths,
            layer_decay=float(arrays["layer_decay"]),
            decay_bias_tables=True,
        )
        for name, parameter in model.named_parameters()
    }
    assert_same_groups(groups, *(arrays[name] for name in ("names", "lr_scale", "weight_decay")))
