"""MAE's encoder, decoder, positions and classifiers against the original's recorded outputs, through the importer."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from halfseen.backbones.build import build_encoder, timm_call
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.decoders import MAEDecoder
from halfseen.backbones.weights import Imported, import_checkpoint
from halfseen.ops.positions import resize_positions_to_size, sincos_positions
from parity.discovery import load_arrays, parity_files, state_under


def imported(state: dict[str, Tensor], folder: Path, **settings: int) -> Imported:
    """What the public importer makes of a reference state dict, written as the official files are."""
    path = folder / "checkpoint.pth"
    torch.save({"model": state, "epoch": 3}, path)
    return import_checkpoint(path, **settings)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())


@pytest.mark.parametrize("path", parity_files("mae", "schedules_and_utils"))
def test_sincos_tables(path: Path) -> None:
    arrays = load_arrays(path)
    names = [name for name in arrays if name.startswith("sincos.")]
    assert names
    for name in names:
        dim, grid = (int(number) for number in re.fullmatch(r"sincos\.dim(\d+)_grid(\d+)", name).groups())
        table = sincos_positions(dim, grid, grid, num_prefix_tokens=1)
        np.testing.assert_allclose(table.numpy(), arrays[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("path", parity_files("mae", "schedules_and_utils"))
def test_position_resizing(path: Path) -> None:
    arrays = load_arrays(path)
    names = [name.removesuffix(".in") for name in arrays if name.startswith("interp.") and name.endswith(".in")]
    assert names
    for name in names:
        side = int(name.rpartition("to")[2])
        given = tensor(arrays[f"{name}.in"])
        resized = resize_positions_to_size(given, side, side, num_prefix_tokens=1)
        np.testing.assert_allclose(resized.numpy(), arrays[f"{name}.out"], rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(resized[:, 0].numpy(), arrays[f"{name}.in"][:, 0])


@pytest.mark.parametrize("path", parity_files("mae", "tiny_mae"))
def test_latent_and_prediction(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    setting = json.loads(str(arrays["cfg_json"]))
    state = state_under(arrays, "state.")
    found = imported(state, tmp_path, num_heads=setting["num_heads"])
    assert found.kind == "mae" and found.image_size == setting["img"]
    assert found.report == ((), (), (), ())
    encoder = found.build().eval()
    assert encoder.trunk.norm.eps == setting["ln_eps"]
    side = setting["img"] // setting["patch"]
    decoder = MAEDecoder(
        setting["embed_dim"],
        (side, side),
        setting["patch"],
        embed_dim=setting["decoder_embed_dim"],
        depth=setting["decoder_depth"],
        num_heads=setting["decoder_num_heads"],
        mlp_ratio=setting["mlp_ratio"],
        norm_eps=setting["ln_eps"],
    ).eval()
    np.testing.assert_array_equal(decoder.decoder_pos_embed.detach().numpy(), arrays["state.decoder_pos_embed"])
    decoder.load_state_dict(found.decoder_state)
    fresh = build_encoder(found.config, found.image_size)
    fresh.use_sincos_positions()
    np.testing.assert_array_equal(fresh.trunk.pos_embed.detach().numpy(), arrays["state.pos_embed"])

    images = tensor(arrays["images"])
    cases = sorted({name.split(".")[0] for name in arrays if re.match(r"case\d+\.", name)})
    assert cases
    for case in cases:
        order = tensor(arrays[f"{case}.noise"]).argsort(dim=1)
        num_kept = arrays[f"{case}.latent"].shape[1] - 1
        visible, hidden = order[:, :num_kept], order[:, num_kept:]
        with torch.no_grad():
            features = encoder(images, visible_ids=visible)
            predicted = decoder.predict_all(features.prefix, features.patches, visible, hidden)
            only_hidden = decoder(features.prefix, features.patches, visible, hidden)
        latent = torch.cat([features.prefix, features.patches], dim=1)
        np.testing.assert_allclose(latent.numpy(), arrays[f"{case}.latent"], rtol=0, atol=2e-5)
        np.testing.assert_allclose(predicted.numpy(), arrays[f"{case}.pred"], rtol=0, atol=2e-5)
        recorded = np.take_along_axis(arrays[f"{case}.pred"], hidden.numpy()[:, :, None], axis=1)
        np.testing.assert_allclose(only_hidden.numpy(), recorded, rtol=0, atol=2e-5)


@pytest.mark.parametrize("path", parity_files("mae", "finetune_vit"))
@pytest.mark.parametrize("flavour", ["gap", "cls"])
def test_fine_tuned_classifiers(path: Path, flavour: str, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    setting = json.loads(str(arrays["cfg_json"]))
    images = tensor(arrays["images"])
    found = imported(state_under(arrays, f"{flavour}.state."), tmp_path, num_heads=setting["num_heads"])
    assert found.config.final_norm == ("pooled" if flavour == "gap" else "tokens")
    assert found.report == ((), (), (), ())
    call = timm_call(found.config, setting["img"])
    model = timm.create_model(call.model_name, **{**call.kwargs, "num_classes": setting["num_classes"]}).eval()
    assert found.load_into(model).missing == ()
    encoder = found.build().eval()
    with torch.no_grad():
        whole = model.forward_head(model.forward_features(images), pre_logits=True)
        features = encoder(images)
        if flavour == "gap":
            ours = encoder.trunk.fc_norm(features.patches.mean(dim=1))
        else:
            ours = features.prefix[:, 0]
        np.testing.assert_allclose(model(images).numpy(), arrays[f"{flavour}.logits"], rtol=0, atol=1e-5)
        logits = torch.nn.functional.linear(ours, found.head_state["head.weight"], found.head_state["head.bias"])
    np.testing.assert_allclose(logits.numpy(), arrays[f"{flavour}.logits"], rtol=0, atol=1e-5)
    for feature in (whole, ours):
        np.testing.assert_allclose(feature.numpy(), arrays[f"{flavour}.features"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", parity_files("mae", "tiny_mae"))
def test_an_encoder_only_file_is_a_plain_timm_vit(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    setting = json.loads(str(arrays["cfg_json"]))
    state = {
        name: value
        for name, value in state_under(arrays, "state.").items()
        if not name.startswith(("decoder", "mask_token"))
    }
    found = imported(state, tmp_path, num_heads=setting["num_heads"])
    assert found.report == ((), (), (), ()) and not found.decoder_state
    call = timm_call(ModelConfig.model_validate(found.config.model_dump()), found.image_size)
    timm.create_model(call.model_name, **call.kwargs).load_state_dict(state, strict=True)
