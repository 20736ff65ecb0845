"""KAMIM as a whole (ViT and Swin) against recorded losses, gradients and two updates of the original."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from halfseen.backbones.weights import Imported, import_checkpoint
from halfseen.masking.random import CellGrid
from halfseen.methods.kamim import KAMIM, KAMIMConfig
from halfseen.ops.pixels import normalise
from halfseen.targets.keypoints import DENSITY_KEY, keypoint_density, keypoint_map
from halfseen.types import GroupKey
from parity.discovery import load_arrays, parity_files, state_under
from parity.reference_names import ReferenceNames, global_norm, gradients, load_method

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILES = parity_files("kamim", "vit_step") + parity_files("kamim", "swin_step")


def settings_of(arrays: dict[str, np.ndarray]) -> dict:
    return json.loads(bytes(arrays["meta_json"]).decode())


def imported(arrays: dict[str, np.ndarray], folder: Path) -> Imported:
    torch.save(state_under(arrays, "sd/"), folder / "checkpoint_final.pth")
    setting = settings_of(arrays)
    heads = setting["num_attention_heads"] if setting["kind"] == "vit" else None
    return import_checkpoint(folder / "checkpoint_final.pth", image_size=arrays["x"].shape[-1], num_heads=heads)


def build(found: Imported, arrays: dict[str, np.ndarray], **changes: object) -> tuple[KAMIM, torch.Tensor]:
    """The method with the recorded weights, and the recorded mask as hidden cells."""
    setting = settings_of(arrays)
    config = KAMIMConfig(
        **{
            "mask_ratio": setting["mask_ratio"],
            "mask_cell_size": setting["mask_patch"],
            "detector": setting["detector"],
            "weight_patch_size": setting["weight_ps"],
            "temperature": setting["temperature"],
            **changes,
        }
    )
    encoder = found.build()
    assert encoder.trunk.norm.eps == setting["layer_norm_eps"]
    method = KAMIM(config, encoder, found.image_size, MEAN, STD)
    load_method(method, found)
    scale = method.cells.patches_per_cell
    cells = torch.from_numpy(arrays["mask"][:, ::scale, ::scale].copy()).flatten(1)
    hidden_cells = cells.argsort(dim=1, descending=True, stable=True)[:, : method.cells.num_hidden]
    mask = method.cells.patch_mask(hidden_cells).reshape(arrays["mask"].shape)
    np.testing.assert_array_equal(mask.numpy(), arrays["mask"].astype(bool))
    return method, hidden_cells


@pytest.mark.parametrize("path", FILES)
def test_pictures_become_the_recorded_inputs(path: Path) -> None:
    arrays = load_arrays(path)
    setting = settings_of(arrays)
    views = torch.from_numpy(arrays["images_u8"]).permute(0, 3, 1, 2).contiguous()
    np.testing.assert_allclose(normalise(views, MEAN, STD).numpy(), arrays["x"], rtol=0, atol=1e-6)
    for image, marks in zip(arrays["images_u8"], arrays["map"], strict=True):
        np.testing.assert_array_equal(keypoint_map(image, setting["detector"]), marks)
    grid = CellGrid.of(views.shape[-1], setting["mask_patch"], setting["model_patch"], setting["mask_ratio"])
    assert (arrays["mask"].reshape(len(views), -1).sum(1) == grid.num_hidden_patches).all()


@pytest.mark.parametrize("path", FILES)
def test_losses_gradients_and_two_updates(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    setting = settings_of(arrays)
    found = imported(arrays, tmp_path)
    method, hidden_cells = build(found, arrays)
    images = torch.from_numpy(arrays["x"])
    density = np.stack([keypoint_density(marks, setting["weight_ps"]) for marks in arrays["map"]])
    extras = {DENSITY_KEY: torch.from_numpy(density)}
    names = ReferenceNames(found, state_under(arrays, "sd/"))

    optimizer = torch.optim.AdamW(
        method.parameters(), lr=setting["lr"], betas=setting["betas"], weight_decay=setting["weight_decay"]
    )
    assert all(method.parameter_group(name, p) == GroupKey(decay=True) for name, p in method.named_parameters())
    for step, recorded_loss in enumerate(arrays["loss_per_step"].tolist()):
        out = method.compare(images, hidden_cells, extras)
        assert float(out.loss.detach()) == pytest.approx(recorded_loss, rel=1e-5)
        optimizer.zero_grad()
        out.loss.backward()
        grads = gradients(method)
        assert global_norm(grads) == pytest.approx(float(arrays["grad_norm_per_step"][step]), rel=1e-4)
        if step == 0:
            assert float(out.metrics["l1_mean"]) == pytest.approx(float(arrays["hf_internal_loss"]), rel=1e-5)
            recorded = [name for name in arrays if name.startswith("grad/")]
            assert recorded
            for name in recorded:
                reference = arrays[name]
                tolerance = 1e-4 * np.abs(reference).max()
                assert tolerance > 0, name
                gradient = names.value(name.removeprefix("grad/"), grads)
                np.testing.assert_allclose(gradient.numpy(), reference, rtol=0, atol=tolerance, err_msg=name)
        torch.nn.utils.clip_grad_norm_(method.parameters(), setting["clip"])
        optimizer.step()

    updated = dict(method.named_parameters())
    recorded = [name for name in arrays if name.startswith("after/")]
    assert recorded
    for name in recorded:
        value = names.value(name.removeprefix("after/"), updated).detach()
        np.testing.assert_allclose(value.numpy(), arrays[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("path", FILES)
def test_without_a_detector_the_loss_is_simmims(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    keypoint_keys = {"detector": None, "weight_patch_size": 8, "temperature": 0.25}
    method, hidden_cells = build(imported(arrays, tmp_path), arrays, **keypoint_keys)
    assert method.view_plan().extras is None
    with torch.no_grad():
        loss = method.compare(torch.from_numpy(arrays["x"]), hidden_cells, {}).loss
    assert float(loss) == pytest.approx(float(arrays["hf_internal_loss"]), rel=1e-5)
