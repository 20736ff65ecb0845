"""SimMIM's parts against recorded outputs of the original: masks, learning rates, fine-tuning's parameter groups."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer

from halfseen.masking.random import CellGrid, count_hidden, legacy_cell_order
from halfseen.ops.layer_decay import swin_finetune_group, vit_finetune_group
from halfseen.ops.patches import mask_from_ids
from halfseen.ops.schedules import multistep, schedule_index, unshifted_cosine
from parity.discovery import load_arrays, parity_files


@pytest.mark.parametrize("path", parity_files("simmim", "mask_generator"))
def test_mask_sizes_permutations_and_masks(path: Path) -> None:
    arrays = load_arrays(path)
    for case, (image_size, cell_size, patch_size, ratio) in enumerate(arrays["configs"].tolist()):
        recorded = {name: arrays[f"{case}/{name}"] for name in ("rand_size", "scale", "token_count", "mask_count")}
        side = int(image_size) // int(cell_size)
        num_hidden = count_hidden(side**2, ratio, "ceil")
        grid = CellGrid(side, int(cell_size) // int(patch_size), num_hidden)
        assert [grid.side, grid.patches_per_cell, grid.num_cells, num_hidden] == [int(n) for n in recorded.values()]
        generator = np.random.RandomState(int(arrays[f"{case}/np_seed"]))
        masks = arrays[f"{case}/masks"]
        for order, mask in zip(arrays[f"{case}/permutations"], masks, strict=True):
            drawn = legacy_cell_order(generator, grid.num_cells)
            np.testing.assert_array_equal(drawn, order)
            hidden = torch.from_numpy(drawn[:num_hidden])[None]
            np.testing.assert_array_equal(grid.patch_mask(hidden)[0].numpy(), mask.astype(bool).ravel())
            assert int(mask.sum()) == grid.num_hidden_patches
            # The cells themselves, without repetition, mark the same part of the picture.
            cells = mask_from_ids(hidden, grid.num_cells).reshape(grid.side, grid.side)
            step = grid.patches_per_cell
            np.testing.assert_array_equal(cells.numpy(), mask[::step, ::step].astype(bool))


@pytest.mark.parametrize("path", parity_files("simmim", "lr_schedule"))
def test_learning_rate_used_at_each_step(path: Path) -> None:
    arrays = load_arrays(path)
    setting = {name.removeprefix("meta/"): value for name, value in arrays.items() if name.startswith("meta/")}
    steps_per_epoch = int(setting["steps_per_epoch"])
    warmup = int(setting["warmup_epochs"]) * steps_per_epoch
    total = int(setting["epochs"]) * steps_per_epoch
    milestones = [epoch * steps_per_epoch for epoch in setting["multisteps_epochs"].tolist()]
    warmup_start = float(setting["warmup_lr"])
    minimum = float(setting["min_lr"])
    for group, scale in enumerate(setting["group_scale"].tolist()):
        base = float(setting["base_lr"]) * scale
        cosine, steps = [], []
        for step in range(total):
            t = schedule_index(step, lag_steps=1)
            cosine.append(
                unshifted_cosine(
                    t,
                    base=base,
                    warmup_start=warmup_start,
                    minimum=minimum,
                    warmup=warmup,
                    total=total,
                )
            )
            steps.append(
                multistep(
                    t,
                    base=base,
                    gamma=float(setting["gamma"]),
                    milestones=milestones,
                    warmup=warmup,
                    warmup_start=warmup_start,
                )
            )
        np.testing.assert_allclose(cosine, arrays["cosine/lr_used"][:, group], rtol=1e-9)
        np.testing.assert_allclose(steps, arrays["multistep/lr_used"][:, group], rtol=1e-9)


def block_counts(names: list[str]) -> list[int]:
    """Blocks per stage, counted in parameter names (one stage for a ViT)."""
    pattern = r"(?:layers\.(\d+)\.)?blocks\.(\d+)\."
    found = {(int(match[1] or 0), int(match[2])) for name in names if (match := re.match(pattern, name))}
    return [sum(stage == wanted for stage, _ in found) for wanted in range(max(found)[0] + 1)]


def in_timm_naming(name: str) -> str:
    """A reference name of a fine-tuned Swin as timm has it: the merge belongs to the next stage, the head has an fc."""
    name = re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample", name)
    return re.sub(r"^head\.", "head.fc.", name)


@pytest.mark.parametrize("path", parity_files("simmim", "param_groups"))
@pytest.mark.parametrize("family", ["vit", "swin"])
def test_parameter_groups_of_fine_tuning(path: Path, family: str) -> None:
    recorded = json.loads(path.read_text())[f"{family}_finetune"]
    names = [name for group in recorded["groups"] for name in group["params"]]
    depths, layer_decay = block_counts(names), recorded["layer_decay"]
    base = next(group["lr"] for group in recorded["groups"] if group["lr_scale"] in (None, 1.0))
    if family == "vit":
        model = Beit(
            img_size=32,
            patch_size=16,
            embed_dim=8,
            depth=depths[0],
            num_heads=2,
            num_classes=3,
            init_values=0.1,
            use_abs_pos_emb="pos_embed" in names,
            use_rel_pos_bias=True,
            global_pool="avg",
        )
        to_timm = {name: name for name in names}
    else:
        stages = len(depths)
        model = SwinTransformer(
            img_size=4 * 2 ** (stages + 1),
            patch_size=4,
            embed_dim=8,
            depths=depths,
            num_heads=[1] * stages,
            window_size=2,
            num_classes=3,
        )
        to_timm = {name: in_timm_naming(name) for name in names}
    axes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    if "absolute_pos_embed" in names:
        axes["absolute_pos_embed"] = 3  # the original's option; timm's Swin has no such parameter
    assert set(axes) == set(to_timm.values())
    for recorded_group in recorded["groups"]:
        for name in recorded_group["params"]:
            timm_name = to_timm[name]
            if family == "vit":
                group = vit_finetune_group(timm_name, axes[timm_name], depth=depths[0], layer_decay=layer_decay)
            else:
                group = swin_finetune_group(timm_name, axes[timm_name], depths=depths, layer_decay=layer_decay)
            assert base * group.lr_scale == pytest.approx(recorded_group["lr"], rel=1e-12), name
            assert group.lr_scale == pytest.approx(recorded_group["lr_scale"], rel=1e-12), name
            assert group.decay == (recorded_group["weight_decay"] > 0), name
