"""SimMIM as a whole (official ViT and Swin, ViNy) against recorded losses, gradients and updates of the originals."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.weights import Imported, import_checkpoint
from halfseen.masking.random import hidden_by_topk
from halfseen.methods.simmim import SimMIM, SimMIMConfig
from halfseen.ops.patches import gather_tokens, unpatchify
from halfseen.targets.pixels import pixel_target
from halfseen.types import GroupKey
from parity.discovery import load_arrays, parity_files, state_under
from parity.reference_names import ReferenceNames, global_norm, gradients, load_method

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFFICIAL = parity_files("simmim", "vit_official") + parity_files("simmim", "swin_official")


def imported(arrays: dict[str, np.ndarray], folder: Path, **settings: int) -> Imported:
    path = folder / "checkpoint.pth"
    torch.save({"model": state_under(arrays, "sd/"), "epoch": 3}, path)
    return import_checkpoint(path, image_size=arrays["in/img"].shape[-1], **settings)


def assert_gradient_close(gradient: Tensor, reference: np.ndarray, name: str) -> None:
    """Relative to the largest entry: some gradients are only 1e-5 large."""
    tolerance = 1e-4 * np.abs(reference).max()
    assert tolerance > 0, name
    np.testing.assert_allclose(gradient.numpy(), reference, rtol=0, atol=tolerance, err_msg=name)


def cells_per_mask_side(mask: Tensor, largest: bool) -> int:
    """On how many cells per side a recorded mask can be drawn: the fewest (largest cells) or one per patch."""
    side = mask.shape[-1]
    if not largest:
        return side
    for cells in range(2, side + 1):
        scale, rest = divmod(side, cells)
        if rest == 0:
            blocks = mask.reshape(len(mask), cells, scale, cells, scale).float().mean((2, 4))
            if ((blocks == 0) | (blocks == 1)).all():
                return cells
    raise AssertionError("unreachable: one cell per patch always fits")


@pytest.mark.parametrize("path", OFFICIAL)
@pytest.mark.parametrize("largest_cells", [True, False])
def test_loss_and_gradients_of_the_official_models(path: Path, largest_cells: bool, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    images, mask = torch.from_numpy(arrays["in/img"]), torch.from_numpy(arrays["in/mask"])
    found = imported(arrays, tmp_path)
    encoder = build_encoder(found.config, found.image_size)
    cells = cells_per_mask_side(mask, largest_cells)
    scale = mask.shape[-1] // cells
    in_cells = mask[:, ::scale, ::scale].flatten(1)
    num_hidden = int(in_cells[0].sum())
    assert (in_cells.sum(1) == num_hidden).all()
    config = SimMIMConfig(mask_cell_size=scale * encoder.patch_size, mask_ratio=(num_hidden - 0.5) / cells**2)
    method = SimMIM(config, encoder, found.image_size, MEAN, STD)
    load_method(method, found)
    method.eval()  # drop path off, as recorded

    hidden_cells = in_cells.argsort(dim=1, descending=True, stable=True)[:, :num_hidden]
    np.testing.assert_array_equal(
        method.cells.patch_mask(hidden_cells).reshape(mask.shape).numpy(), arrays["in/mask"].astype(bool)
    )
    out = method.compare(images, hidden_cells, {})
    assert abs(float(out.loss.detach()) - float(arrays["out/loss"])) < 1e-6
    assert float(out.metrics["l1_mean"]) == pytest.approx(float(arrays["out/loss"]), abs=1e-6)

    out.loss.backward()
    state = state_under(arrays, "sd/")
    names, grads = ReferenceNames(found, state), gradients(method)
    recorded = [name for name in arrays if name.startswith("grad/") and name != "grad/global_norm"]
    assert recorded
    for name in recorded:
        assert_gradient_close(names.value(name.removeprefix("grad/"), grads), arrays[name], name)
    assert global_norm(grads) == pytest.approx(float(arrays["grad/global_norm"]), rel=1e-4)
    assert parameters_without_gradient(method, names) == {str(name) for name in arrays["out/no_grad_params"]} - {""}


def parameters_without_gradient(method: SimMIM, names: ReferenceNames) -> set[str]:
    return {
        reference
        for name, parameter in method.named_parameters()
        if parameter.grad is None
        for reference in names.names_of(name)
        if not reference.startswith("get_patch_embedding.")  # a second name of the same tensor
    }


@pytest.mark.parametrize("path", OFFICIAL)
def test_the_picture_behind_the_loss_is_the_recorded_one(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    images, mask = torch.from_numpy(arrays["in/img"]), torch.from_numpy(arrays["in/mask"]).flatten(1).bool()
    found = imported(arrays, tmp_path)
    method = SimMIM(SimMIMConfig(mask_cell_size=None), found.build(), found.image_size, MEAN, STD)
    load_method(method, found)
    with torch.no_grad():
        features = method.eval().encoder(images, mask=mask, mask_token=method.mask_token)
        patches = method.decoder(features.patches)
    picture = unpatchify(patches, features.grid, method.encoder.stride, method.pixel_order)
    np.testing.assert_allclose(picture.numpy(), arrays["out/rec"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", parity_files("simmim", "vit_seed_simmim"))
def test_viny_masks_targets_loss_gradients_and_one_update(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    images = torch.from_numpy(arrays["in/img"])
    found = imported(arrays, tmp_path, num_heads=int(arrays["meta/heads"]))
    config = SimMIMConfig(
        mask_ratio=float(arrays["meta/masking_ratio"]),
        mask_cell_size=None,
        mask_rounding="floor",
        decoder="linear",
        divide_twice=True,
    )
    method = SimMIM(config, build_encoder(found.config, found.image_size), found.image_size, MEAN, STD)
    load_method(method, found)

    hidden = method.cells.hide(torch.from_numpy(arrays["in/noise"]))
    np.testing.assert_array_equal(hidden.numpy(), arrays["out/masked_indices"])
    assert torch.equal(hidden, hidden_by_topk(torch.from_numpy(arrays["in/noise"]), hidden.shape[1]))
    assert torch.equal(method.cells.tokens_in_loss(hidden, 1).ids, hidden)
    target = pixel_target(images, method.encoder.stride, ids=hidden, order=method.pixel_order)
    np.testing.assert_array_equal(target.numpy(), arrays["out/masked_patches"])
    with torch.no_grad():
        features = method.encoder(images, mask=method.cells.patch_mask(hidden), mask_token=method.mask_token)
        prediction = method.decoder(gather_tokens(features.patches, hidden))
    np.testing.assert_allclose(prediction.numpy(), arrays["out/pred_patches"], rtol=0, atol=1e-5)

    out = method.compare(images, hidden, {})
    assert float(out.loss.detach()) == pytest.approx(float(arrays["out/loss"]), abs=1e-5)
    assert float(out.metrics["l1_mean"]) == pytest.approx(float(arrays["out/loss"]) * hidden.shape[1], rel=1e-5)
    out.loss.backward()
    names, grads = ReferenceNames(found, state_under(arrays, "sd/")), gradients(method)
    for name in (name for name in arrays if name.startswith("grad/") and name != "grad/global_norm"):
        assert_gradient_close(names.value(name.removeprefix("grad/"), grads), arrays[name], name)
    if "grad/global_norm" in arrays:
        assert global_norm(grads) == pytest.approx(float(arrays["grad/global_norm"]), rel=1e-4)
    assert parameters_without_gradient(method, names) == {str(name) for name in arrays["out/no_grad_params"]} - {""}

    torch.optim.AdamW(method.parameters(), lr=1e-3, weight_decay=0.05).step()
    updated = dict(method.named_parameters())
    recorded = [name for name in arrays if name.startswith("after1step/")]
    assert recorded
    for name in recorded:
        value = names.value(name.removeprefix("after1step/"), updated).detach()
        np.testing.assert_allclose(value.numpy(), arrays[name], rtol=0, atol=2e-4, err_msg=name)
    with torch.no_grad():
        again = method.compare(images, method.cells.hide(torch.from_numpy(arrays["in/noise2"])), {}).loss
    assert float(again) == pytest.approx(float(arrays["out/loss_after1step"]), abs=1e-5)


@pytest.mark.parametrize("path", parity_files("simmim", "param_groups"))
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_parameter_groups_of_pre_training(path: Path, family: str) -> None:
    groups = json.loads(path.read_text())[f"{family}_pretrain"]
    names = [name for group in groups for name in group["params"]]
    sizes = block_counts(names)
    if family == "vit":
        model = ModelConfig(
            name="simmim_vit_base",
            embed_dim=8,
            depth=sizes[0],
            num_heads=2,
            absolute_positions=True if "encoder.pos_embed" in names else None,
        )
    else:
        model = ModelConfig(name="swin_base", embed_dim=8, depths=sizes, num_heads=(1,) * len(sizes))
    image_size = 64 if family == "vit" else 32 * 2 ** (len(sizes) - 1)
    encoder = build_encoder(model, image_size)
    method = SimMIM(SimMIMConfig(mask_cell_size=None), encoder, image_size, MEAN, STD)
    ours = {in_reference_naming(name): method.parameter_group(name, p) for name, p in method.named_parameters()}
    assert set(ours) == set(names) - {"encoder.absolute_pos_embed"}
    rates = {group["lr"] for group in groups}
    assert len(rates) == 1 and all(group["lr_scale"] is None for group in groups)
    for group in groups:
        for name in set(group["params"]) - {"encoder.absolute_pos_embed"}:
            assert ours[name] == GroupKey(decay=group["weight_decay"] > 0), name

    mended = SimMIM(SimMIMConfig(mask_cell_size=None, decay_exclude_position_bias=True), encoder, image_size, MEAN, STD)
    changed = {
        name
        for name, p in mended.named_parameters()
        if mended.parameter_group(name, p) != method.parameter_group(name, p)
    }
    assert changed == {name for name, _ in method.named_parameters() if name.endswith("relative_position_bias_table")}


def block_counts(names: list[str]) -> tuple[int, ...]:
    """Blocks per stage, counted in parameter names (one stage for a ViT)."""
    pattern = r"encoder\.(?:layers\.(\d+)\.)?blocks\.(\d+)\."
    found = {(int(match[1] or 0), int(match[2])) for name in names if (match := re.match(pattern, name))}
    return tuple(sum(stage == wanted for stage, _ in found) for wanted in range(max(found)[0] + 1))


def in_reference_naming(name: str) -> str:
    """Our name as the official code has it: the mask token in the encoder, a Swin's merge at the end of its stage."""
    if name == "mask_token":
        return "encoder.mask_token"
    name = name.replace("encoder.trunk.", "encoder.")
    return re.sub(r"layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name)
