"""SimMIM and MAE with histograms of oriented gradients as their target."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.errors import ConfigError
from halfseen.masking.random import random_visible_ids
from halfseen.methods.base import Method
from halfseen.methods.mae import MAE
from halfseen.methods.simmim import SimMIM
from halfseen.methods.table import MethodConfig, build_method
from halfseen.ops.pixels import normalise
from halfseen.targets.hog import HOGTarget
from halfseen.types import Batch, Progress

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 64
TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2}
VIT = ModelConfig(name="vit_base", **TINY)
OFFICIAL_VIT = ModelConfig(name="simmim_vit_base", **TINY)
SWIN = ModelConfig(name="swin_base", embed_dim=8, depths=(1, 1, 1), num_heads=(1, 2, 2))
VINY = ModelConfig(name="viny_4m", embed_dim=16, depth=2)
SMALL_DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
HOG = {"kind": "hog"}

CASES = {
    "simmim": ({"name": "simmim", "target": HOG}, OFFICIAL_VIT, 4 * 27),
    "simmim swin, one cell a token": ({"name": "simmim", "target": HOG | {"cell_size": 16}}, SWIN, 27),
    "simmim swin, mask cells below the stride": (
        {"name": "simmim", "mask_cell_size": 4, "target": HOG | {"bins": 18, "bias": True}},
        SWIN,
        4 * 54,
    ),
    "simmim viny": (
        {"name": "simmim", "mask_cell_size": None, "decoder": "linear", "divide_twice": True, "target": HOG},
        VINY,
        4 * 27,
    ),
    "mae": ({"name": "mae", "target": HOG, **SMALL_DECODER}, VIT, 4 * 27),
    "mae, small cells with a bias": (
        {"name": "mae", "target": HOG | {"bins": 18, "bias": True, "cell_size": 4}, **SMALL_DECODER},
        VIT,
        16 * 54,
    ),
}
case = pytest.mark.parametrize("settings", CASES)


def build(config: dict[str, object], model: ModelConfig = VIT, seed: int = 0) -> Method:
    parsed = TypeAdapter(MethodConfig).validate_python(config)
    return build_method(parsed, build_encoder(model, SIZE), SIZE, MEAN, STD, seed)


def make_batch(rows: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (rows, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return Batch((pixels,), torch.arange(rows), torch.full((rows,), -1), {})


def progress(step: int = 0) -> Progress:
    return Progress(step, 20, 5, 0, 0, 4)


@case
def test_a_few_steps_learn_histograms(settings: str) -> None:
    config, model, values = CASES[settings]
    method = build(config, model)
    last = method.decoder.decoder_pred if isinstance(method, MAE) else list(method.decoder.modules())[-1]
    assert last.weight.shape[0] == values
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        out = method(make_batch(), progress())
        out.loss.backward()
        idle = [name for name, weight in method.named_parameters() if weight.requires_grad and weight.grad is None]
        assert idle == []
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out.loss.detach()))
        assert out.metrics.keys() == {"mse", "mean_loss", "hidden_share", "prediction_std", "target_std"}
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.8 * losses[0]


@case
def test_the_loss_is_the_mean_squared_error_over_hidden_cells(settings: str) -> None:
    """With a constant prediction, against HOG of the whole picture and a mask of pixels."""
    config, model, _ = CASES[settings]
    method = build(config, model)
    with torch.no_grad():
        for part in method.decoder.modules():
            if isinstance(part, torch.nn.Linear | torch.nn.Conv2d):
                part.weight.zero_()
                part.bias.fill_(0.25)
    images, hog = normalise(make_batch().views[0], MEAN, STD), method.hog
    target = HOGTarget((hog.cell_size,), hog.channels // 3, hog.hog.bias is not None)
    target.load_state_dict(hog.hog.state_dict())
    errors = (target(images)[0] - 0.25).square().mean(-1)  # [B, cells]
    noise = torch.rand(4, method.num_patches if isinstance(method, MAE) else method.cells.num_cells)
    if isinstance(method, MAE):
        hidden = random_visible_ids(noise, method.num_visible)
        patches = hidden.mask
    else:
        hidden = method.cells.hide(noise)
        patches = method.cells.patch_mask(hidden)
    side = SIZE // method.encoder.patch_size
    pixels = patches.float().view(4, side, side).repeat_interleave(SIZE // side, 1).repeat_interleave(SIZE // side, 2)
    weights = torch.nn.functional.avg_pool2d(pixels, hog.cell_size).flatten(1)
    expected = (errors * weights).sum() / weights.sum()
    if config.get("divide_twice"):
        expected = expected / method.cells.num_hidden_patches
    out = method.compare(images, hidden, {})
    torch.testing.assert_close(out.loss, expected)
    assert float(out.metrics["hidden_share"]) == pytest.approx(float(patches.float().mean()))


@pytest.mark.parametrize("settings", ["simmim", "mae", "mae, small cells with a bias"])
def test_the_mean_of_the_targets_is_what_a_constant_loses(settings: str) -> None:
    config, model, _ = CASES[settings]
    metrics = build(config, model)(make_batch(), progress()).metrics
    assert float(metrics["mean_loss"]) == pytest.approx(float(metrics["target_std"]) ** 2, rel=1e-3)


@case
def test_histograms_make_no_picture(settings: str) -> None:
    config, model, _ = CASES[settings]
    assert build(config, model).reconstruct(torch.randn(2, 3, SIZE, SIZE), seed=0) is None


def test_a_bias_is_kept_with_the_weights() -> None:
    config = {"name": "mae", "target": HOG | {"bias": True}, **SMALL_DECODER}
    first, again, other = build(config), build(config), build(config, seed=1)
    name = "hog.hog.bias"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert name not in dict(first.named_parameters())
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(make_batch(), progress()).loss, first(make_batch(), progress()).loss)
    plain = build({"name": "mae", "target": HOG, **SMALL_DECODER})
    assert {key.split(".")[0] for key in plain.state_dict()} == {"encoder", "decoder"}


def test_pixels_remain_the_default() -> None:
    for name, method_class in (("simmim", SimMIM), ("mae", MAE)):
        method = build({"name": name})
        assert isinstance(method, method_class)
        assert method.hog is None and method.config.target.kind == "pixels"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"name": "mae", "norm_pix_loss": True},
            r"norm_pix_loss: got true, but it has no effect with target\.kind=hog",
        ),
        (
            {"name": "mae", "loss_weight": {"kind": "keypoints"}},
            r"loss_weight: got \{kind: keypoints\}, but it has no effect with target\.kind=hog",
        ),
        (
            {"name": "simmim", "loss_weight": {"kind": "keypoints"}},
            r"loss_weight: got \{kind: keypoints\}, but it has no effect with target\.kind=hog",
        ),
    ],
)
def test_settings_of_pixels_are_refused(config: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        build({**config, "target": HOG})


@pytest.mark.parametrize("bad", [{"bins": 0}, {"bins": 181}, {"cell_size": 0}, {"cells": 8}, {"kind": "sift"}])
def test_targets_that_do_not_exist(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="target"):
        build({"name": "mae", "target": HOG | bad})


def test_cells_that_do_not_divide_what_is_predicted() -> None:
    with pytest.raises(ConfigError, match=r"cell_size: 12 px cells don't divide a predicted patch of 16 px.*8, 16"):
        build({"name": "mae", "target": HOG | {"cell_size": 12}, **SMALL_DECODER})
    with pytest.raises(ConfigError, match=r"cell_size: 32 px cells don't divide a predicted patch of 16 px"):
        build({"name": "simmim", "target": HOG | {"cell_size": 32}}, SWIN)
