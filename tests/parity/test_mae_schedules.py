"""MAE's learning rates and layer-wise decay against recorded outputs of the original."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from timm.models import VisionTransformer

from halfseen.ops.layer_decay import layer_decay_scales, vit_finetune_group
from halfseen.ops.schedules import mae_cosine
from parity.discovery import load_arrays, parity_files


@pytest.mark.parametrize("path", parity_files("mae", "schedules_and_utils"))
def test_learning_rate_over_the_fractional_epoch(path: Path) -> None:
    arrays = load_arrays(path)
    cases = [name.removesuffix(".json") for name in arrays if re.fullmatch(r"lr\d+\.json", name)]
    assert cases
    for case in cases:
        setting = json.loads(str(arrays[f"{case}.json"]))
        steps = range(setting["epochs"] * setting["ipe"])
        np.testing.assert_allclose([step / setting["ipe"] for step in steps], arrays[f"{case}.epoch"], rtol=1e-12)
        rates = [
            mae_cosine(
                epoch,
                base=setting["lr"],
                minimum=setting["min_lr"],
                warmup_epochs=setting["warmup_epochs"],
                epochs=setting["epochs"],
            )
            for epoch in arrays[f"{case}.epoch"].tolist()
        ]
        np.testing.assert_allclose(rates, arrays[f"{case}.lr"], rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("path", parity_files("mae", "schedules_and_utils"))
def test_layer_decay_scales_and_exclusions(path: Path) -> None:
    arrays = load_arrays(path)
    cases = [name.removesuffix(".names") for name in arrays if re.fullmatch(r"layerdecay\..*\.names", name)]
    assert cases
    for case in cases:
        wanted = re.fullmatch(r"layerdecay\.depth(\d+)_([\d.]+)", case)
        depth, decay = int(wanted[1]), float(wanted[2])
        np.testing.assert_allclose(layer_decay_scales(depth, decay), arrays[f"{case}.per_layer"], rtol=1e-12)
        model = VisionTransformer(
            img_size=8, patch_size=4, embed_dim=8, depth=depth, num_heads=1, num_classes=3, global_pool="avg"
        )
        axes = {name: parameter.ndim for name, parameter in model.named_parameters()}
        assert set(axes) == set(arrays[f"{case}.names"].tolist())
        for name, scale, weight_decay in zip(
            arrays[f"{case}.names"].tolist(),
            arrays[f"{case}.lr_scale"].tolist(),
            arrays[f"{case}.weight_decay"].tolist(),
            strict=True,
        ):
            group = vit_finetune_group(name, axes[name], depth=depth, layer_decay=decay)
            assert group.lr_scale == pytest.approx(scale, rel=1e-12), name
            assert group.decay == (weight_decay > 0), name
