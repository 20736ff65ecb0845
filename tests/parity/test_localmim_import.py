"""LocalMIM's checkpoints, and those of its fork with progressive freezing, through the public importer."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from halfseen.backbones.visible_swin import encode_visible
from halfseen.backbones.weights import Imported, export_encoder, import_checkpoint
from halfseen.masking.random import random_visible_ids
from halfseen.methods.localmim import LocalMIM, LocalMIMConfig
from halfseen.pretraining.initial_weights import load_initial_weights
from halfseen.targets.hog import HOGConfig
from halfseen.targets.pixels import PixelConfig
from parity.discovery import companion, load_arrays, parity_files
from parity.localmim_images import MEAN, STD, prepare
from parity.localmim_weights import mask_ratio, setting

Arrays = dict[str, np.ndarray]
Weights = dict[str, Tensor]
SCALES = {0: 4.0, 1: 2.0, 2: 1.0, 3: 0.5}


def official(path: Path, weights: Weights) -> Path:
    """A checkpoint as the original's training writes it: optimizer, gradient scaler and settings beside the model."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": np.float64(1e-3), "params": [0]}]}
    args = argparse.Namespace(model="MIM_vit_base_patch16", hog_nbins=9, output_dir=Path("out"))
    content = {"model": weights, "optimizer": optimizer, "epoch": 3, "scaler": {"scale": 65536.0}, "args": args}
    torch.save(content, path)
    return path


def without_first_branches(weights: Weights, count: int) -> Weights:
    """What progressive freezing leaves: the shallowest branches deleted, the others numbered from 0 again."""
    left = {}
    for name, tensor in weights.items():
        found = re.fullmatch(r"(norm|decoder|hog_enc)\.(\d+)\.(.*)", name)
        if found is None:
            left[name] = tensor
        elif int(found[2]) >= count:
            left[f"{found[1]}.{int(found[2]) - count}.{found[3]}"] = tensor
    return left


def vit(path: Path, tmp_path: Path, gone: int = 0) -> tuple[Arrays, Weights, Imported]:
    arrays, weights = load_arrays(path), load_file(path.with_suffix(".safetensors"))
    written = official(tmp_path / f"checkpoint-{gone}.pth", without_first_branches(weights, gone))
    return arrays, weights, import_checkpoint(written, num_heads=setting(arrays)["heads"])


def assert_near(found: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("path", parity_files("localmim", "vit_"))
def test_a_vits_sizes_and_keys_are_told(path: Path, tmp_path: Path) -> None:
    arrays, weights, found = vit(path, tmp_path)
    sizes = setting(arrays)
    assert found.kind == "localmim_vit"
    assert found.config.sizes() == (sizes["dim"], (sizes["depth"],), (sizes["heads"],))
    assert (found.image_size, found.scales) == (sizes["img"], SCALES)
    assert found.report.missing == found.report.unexpected == found.report.reshaped == ()
    assert set(found.report.ignored) == {f"hog_enc.{number}.conv.weight" for number in SCALES}
    biases = {f"hog_bias.{number}" for number in SCALES if sizes["bias"]}
    assert {name for name in found.branch_state if not name.startswith("norm.")} == biases
    decoder = {name.removeprefix("decoder."): tensor for name, tensor in weights.items() if name.startswith("decoder.")}
    assert found.decoder_state.keys() == decoder.keys()
    assert all(torch.equal(found.decoder_state[name], tensor) for name, tensor in decoder.items())


@pytest.mark.parametrize("path", parity_files("localmim", "vit_"))
def test_a_vits_taps_on_visible_patches(path: Path, tmp_path: Path) -> None:
    """The final norm gives what the last decoder saw; the other taps are raw blocks and their own norms."""
    arrays, _, found = vit(path, tmp_path)
    encoder = found.build().eval()
    depth = encoder.num_layers
    visible = int((arrays["mask"] == 0).sum(axis=1)[0])
    split = random_visible_ids(torch.from_numpy(arrays["noise"]), visible)
    with torch.no_grad():
        features = encoder(prepare(arrays["images_u8_nhwc"]), visible_ids=split.visible_ids, layers=(2, 4, depth - 2))
    assert_near(torch.cat([features.prefix, features.patches], dim=1), arrays["latent3"])
    for number, raw in enumerate(features.layers):
        norm = torch.nn.LayerNorm(encoder.embed_dim, eps=1e-6)
        norm.load_state_dict({name: found.branch_state[f"norm.{number}.{name}"] for name in ("weight", "bias")})
        with torch.no_grad():
            assert_near(norm(torch.cat([raw.prefix, raw.patches], dim=1)), arrays[f"latent{number}"])


@pytest.mark.parametrize("gone", [1, 2, 3])
@pytest.mark.parametrize("path", parity_files("localmim", "vit_"))
def test_branches_that_were_numbered_anew_get_their_numbers_back(path: Path, gone: int, tmp_path: Path) -> None:
    _, weights, whole = vit(path, tmp_path)
    _, _, found = vit(path, tmp_path, gone)
    assert found.kind == "localmim_vit"
    assert found.scales == {number: scale for number, scale in SCALES.items() if number >= gone}
    assert found.report.missing == found.report.unexpected == ()
    assert all(torch.equal(found.encoder_state[name], whole.encoder_state[name]) for name in whole.encoder_state)
    assert torch.equal(found.encoder_state["norm.weight"], weights["norm.3.weight"])
    for state, all_of in ((found.decoder_state, whole.decoder_state), (found.branch_state, whole.branch_state)):
        there = {name for name in all_of if int(re.search(r"\d+", name)[0]) >= gone}  # type: ignore[index]
        assert state.keys() == there
        assert all(torch.equal(state[name], all_of[name]) for name in there)


@pytest.mark.parametrize("path", parity_files("freezeout", "train_trace_"))
def test_the_last_checkpoint_of_a_run_with_freezing(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    left = int(arrays["n_branches"][-1])
    weights = load_file(companion(path, "train_trace_", "train_trace_").with_suffix(".safetensors"))
    gone = len(SCALES) - left
    final = without_first_branches(weights, gone)
    assert set(final) == set(arrays["final_state_keys"].tolist())
    final |= {
        name: torch.from_numpy(arrays[f"final/{name}"])
        for name in final
        if f"final/{name}" in arrays and not name.startswith(("norm.", "decoder.", "hog_enc."))
    }
    final["norm.0.weight"] = final["norm.0.weight"] + 1
    found = import_checkpoint(official(tmp_path / "checkpoint-99.pth", final), num_heads=int(arrays["cfg"][9]))
    assert list(found.scales) == list(SCALES)[gone:]
    assert found.report.missing == found.report.unexpected == ()
    trunk = found.build().trunk.state_dict()
    assert all(torch.equal(trunk[name], final[name]) for name in trunk if not name.startswith("norm."))
    assert torch.equal(trunk["norm.bias"], final[f"norm.{left - 1}.bias"])


def swin(path: Path, tmp_path: Path, **settings: str) -> tuple[Arrays, Imported]:
    weights = load_file(path.with_suffix(".safetensors"))
    for name in [name for name in weights if name.endswith(".relative_position_bias_table")]:
        weights[name.replace("_bias_table", "_index")] = torch.zeros(49, 49, dtype=torch.int64)  # in genuine files
    return load_arrays(path), import_checkpoint(official(tmp_path / "swin.pth", weights), **settings)


@pytest.mark.parametrize("path", parity_files("localmim", "swin_"))
def test_a_swins_sizes_and_keys_are_told(path: Path, tmp_path: Path) -> None:
    arrays, found = swin(path, tmp_path)
    sizes = setting(arrays)
    assert (found.kind, found.config.norm_eps, found.image_size) == ("localmim_swin", 1e-6, 224)
    assert found.config.sizes() == (sizes["embed"], tuple(arrays["depths"]), tuple(arrays["num_heads"]))
    assert found.config.window_size == sizes["window"]
    assert found.report.missing == found.report.unexpected == ()
    assert all("relative_position_index" in name or "hog_enc" in name for name in found.report.ignored)
    assert list(found.scales) == [0, 1, 2, 3]


@pytest.mark.parametrize(("order", "key"), [(None, "timm_swap1_final"), ("as_published", "timm_swap0_final")])
@pytest.mark.parametrize("path", parity_files("localmim", "swin_"))
def test_the_order_of_patch_merging(path: Path, order: str | None, key: str, tmp_path: Path) -> None:
    arrays, found = swin(path, tmp_path, **({} if order is None else {"patch_merge_order": order}))
    if key not in arrays:
        pytest.skip(f"the file has no {key}")
    encoder = found.build().eval()
    with torch.no_grad():
        (raw,) = encoder(prepare(arrays["images_u8_nhwc"]), layers=(encoder.num_layers,)).layers
    assert_near(raw.patches, arrays[key].reshape(raw.patches.shape))


@pytest.mark.parametrize("path", parity_files("localmim", "swin_"))
def test_a_swins_taps_on_visible_patches(path: Path, tmp_path: Path) -> None:
    arrays, found = swin(path, tmp_path)
    encoder = found.build().eval()
    with torch.no_grad():
        taps = encode_visible(
            encoder, prepare(arrays["images_u8_nhwc"]), torch.from_numpy(arrays["mask"][0]), "reference"
        )
        assert_near(encoder.trunk.norm(taps[-1].tokens), arrays[f"latent{len(taps) - 1}"])


def method_for(arrays: Arrays, found: Imported) -> LocalMIM:
    """A method with the sizes of a recorded model, at its random start."""
    sizes = setting(arrays)
    hog = "nbins" in sizes and any(name.startswith("hog_bias") or "hog_enc" in name for name in _all_names(found))
    config = LocalMIMConfig(
        mask_ratio=mask_ratio(arrays),
        decoder_embed_dim=sizes["ddim"],
        decoder_depth=sizes.get("ddepth", 1),
        decoder_num_heads=sizes["dheads"],
        target=HOGConfig(kind="hog", bins=sizes["nbins"], bias=bool(sizes["bias"])) if hog else PixelConfig(),
    )
    encoder = found.build()
    encoder.trunk.apply(lambda part: part.reset_parameters() if hasattr(part, "reset_parameters") else None)
    return LocalMIM(config, encoder, found.image_size, MEAN, STD)


def _all_names(found: Imported) -> list[str]:
    return [*found.branch_state, *found.report.ignored]


@pytest.mark.parametrize(
    "path", [*parity_files("localmim", "vit_"), *parity_files("localmim", "swin_")]
)  # fmt: skip
def test_a_run_goes_on_from_an_official_checkpoint(path: Path, tmp_path: Path) -> None:
    arrays, weights = load_arrays(path), load_file(path.with_suffix(".safetensors"))
    written = official(tmp_path / "checkpoint.pth", weights)
    found = import_checkpoint(written, num_heads=setting(arrays).get("heads"))
    method = method_for(arrays, found)
    load_initial_weights(method, str(written))
    state = method.state_dict()
    for name, tensor in state.items():
        inside = name.removeprefix("encoder.trunk.")
        if inside != name:
            assert name.endswith("relative_position_index") or torch.equal(tensor, found.encoder_state[inside]), name
        elif name == "hog.bias":
            assert torch.equal(tensor, torch.stack([weights[f"hog_enc.{k}.conv.bias"] for k in range(4)]))
        elif name.startswith("norm."):
            assert torch.equal(tensor, weights.get(name, weights.get(f"encoder.{name}"))), name
        elif name.endswith("pos_embed"):
            np.testing.assert_allclose(tensor.numpy(), weights[name].numpy(), rtol=0, atol=1e-6)
        else:
            assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("path", parity_files("localmim", "vit_"))
def test_only_whole_branches_are_taken(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file with the two deepest branches: the others start fresh, wholly, and the log names what did not fit."""
    arrays, weights, found = vit(path, tmp_path, gone=2)
    method = method_for(arrays, found)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    load_initial_weights(method, found.origin)
    after = method.state_dict()
    for name in after:
        number = re.match(r"(?:decoder|norm)\.(\d)\.", name)
        if number and int(number[1]) >= 2:
            assert torch.equal(after[name], weights[name]), name
        elif number:
            assert torch.equal(after[name], before[name]), name
    if "hog.bias" in after:
        assert torch.equal(after["hog.bias"][:2], before["hog.bias"][:2])
        assert torch.equal(after["hog.bias"][3], weights["hog_enc.3.conv.bias"])
    other = LocalMIMConfig.model_validate(
        {**method.config.model_dump(), "taps": (2, setting(arrays)["depth"]), "scales": (4.0, 2.0)}
    )
    narrow = LocalMIM(other, found.build(), found.image_size, MEAN, STD)
    fresh = {name: tensor.clone() for name, tensor in narrow.state_dict().items()}
    with caplog.at_level("INFO", logger="halfseen"):
        load_initial_weights(narrow, str(official(tmp_path / "all.pth", weights)))
    assert "did not fit: decoder.1." in caplog.text
    for name, tensor in narrow.state_dict().items():
        if name.startswith(("decoder.0.", "norm.0.")):
            assert torch.equal(tensor, weights[name]), name
        elif name.startswith("decoder.1."):
            assert torch.equal(tensor, fresh[name]), name


@pytest.mark.parametrize(
    "path", [*parity_files("localmim", "vit_"), *parity_files("localmim", "swin_")]
)  # fmt: skip
def test_what_is_imported_loads_in_timm_with_equal_features(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    written = official(tmp_path / "checkpoint.pth", load_file(path.with_suffix(".safetensors")))
    encoder = import_checkpoint(written, num_heads=setting(arrays).get("heads")).build().eval()
    export_encoder(encoder, tmp_path, mean=MEAN, std=STD)
    about = json.loads((tmp_path / "encoder.json").read_text())
    model = timm.create_model(about["timm"]["model_name"], **about["timm"]["kwargs"]).eval()
    model.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    for part in model.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = about["layer_norm_eps"]
    images = prepare(arrays["images_u8_nhwc"])
    with torch.no_grad():
        theirs, ours = model.forward_features(images), encoder(images)
    theirs = theirs.flatten(1, 2) if theirs.ndim == 4 else theirs
    torch.testing.assert_close(torch.cat([ours.prefix, ours.patches], dim=1), theirs, rtol=0, atol=2e-5)
