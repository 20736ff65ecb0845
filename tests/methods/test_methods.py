"""What all methods share: the contract of `methods.base`, on tiny networks."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.masking.random import random_visible_ids
from halfseen.methods.base import Method
from halfseen.methods.table import METHODS, MethodConfig, build_method
from halfseen.ops.patches import pixel_mask
from halfseen.ops.randomness import step_noise
from halfseen.types import Batch
from methods.steps import MEAN, STD, check_checkpointing, check_repeatable, check_step, progress, rows_of

SIZE = 64
TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2}
VIT = ModelConfig(name="vit_base", **TINY)
OFFICIAL_VIT = ModelConfig(name="simmim_vit_base", **TINY)
SWIN = ModelConfig(name="swin_base", embed_dim=8, depths=(1, 1, 1), num_heads=(1, 2, 2))
VINY = ModelConfig(name="viny_4m", embed_dim=16, depth=2)
SMALL_DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
TWO_TAPS = {"taps": [1, 2], "scales": [2, 0.5]}
KEYPOINTS = {"kind": "keypoints", "weight_patch_size": 8, "temperature": 0.5}

CASES = {
    "localmim hog": ({"name": "localmim", **TWO_TAPS, **SMALL_DECODER}, VIT),
    "localmim hog with bias": (
        {"name": "localmim", **TWO_TAPS, **SMALL_DECODER, "target": {"kind": "hog", "bins": 18, "bias": True}},
        VIT,
    ),
    "localmim pixels": (
        {"name": "localmim", **TWO_TAPS, **SMALL_DECODER, "target": {"kind": "pixels"}, "scales": [2, 1]},
        VIT,
    ),
    "simmim official vit": ({"name": "simmim"}, OFFICIAL_VIT),
    "simmim swin": ({"name": "simmim"}, SWIN),
    "simmim swin, cells below the stride": ({"name": "simmim", "mask_cell_size": 8}, SWIN),
    "simmim swin, cells below the stride, keypoints": (
        {"name": "simmim", "mask_cell_size": 8, "loss_weight": KEYPOINTS | {"weight_patch_size": 4}},
        SWIN,
    ),
    "simmim vit, keypoints": ({"name": "simmim", "loss_weight": KEYPOINTS}, VIT),
    "simmim viny": (
        {
            "name": "simmim",
            "mask_ratio": 0.5,
            "mask_cell_size": None,
            "mask_rounding": "floor",
            "decoder": "linear",
            "divide_twice": True,
        },
        VINY,
    ),
    "mae": ({"name": "mae", **SMALL_DECODER}, VIT),
    "mae normalised pixels": ({"name": "mae", "norm_pix_loss": True, **SMALL_DECODER}, VIT),
    "mae keypoints": ({"name": "mae", "loss_weight": KEYPOINTS, **SMALL_DECODER}, VIT),
    "kamim vit": ({"name": "kamim"}, VIT),
    "kamim swin": ({"name": "kamim", "detector": "orb", "weight_patch_size": 32}, SWIN),
    "kamim without detector": ({"name": "kamim", "detector": None}, VIT),
}
case = pytest.mark.parametrize("settings", CASES)
case_of_pixels = pytest.mark.parametrize("settings", [name for name in CASES if "hog" not in name])


def build(settings: str, seed: int = 0) -> Method:
    config, model = CASES[settings]
    parsed = TypeAdapter(MethodConfig).validate_python(config)
    return build_method(parsed, build_encoder(model, SIZE), SIZE, MEAN, STD, seed)


def make_batch(method: Method, rows: int = 4) -> Batch:
    """Pictures with corners, and what the method's view plan computes from them."""
    random = np.random.default_rng(5)
    cells = random.integers(0, 256, (rows, 8, 8, 3), dtype=np.uint8)
    pictures = cells.repeat(8, axis=1).repeat(8, axis=2)
    plan = method.view_plan()
    assert [view.size for view in plan.views] == [SIZE]
    extras: dict[str, torch.Tensor] = {}
    if plan.extras is not None:
        computed = [plan.extras((picture,), random) for picture in pictures]
        extras = {key: torch.from_numpy(np.stack([each[key] for each in computed])) for key in computed[0]}
    views = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    return Batch((views,), torch.arange(rows), torch.full((rows,), -1), extras)


@case
def test_a_step_gives_a_finite_loss_and_reaches_every_trained_parameter(settings: str) -> None:
    method = build(settings)
    check_step(method, make_batch(method))


@case
def test_checkpointed_blocks_change_no_bit(settings: str) -> None:
    config, model = CASES[settings]
    parsed = TypeAdapter(MethodConfig).validate_python(config)
    encoder = build_encoder(model.model_copy(update={"drop_path": 0.3}), SIZE)
    method = build_method(parsed, encoder, SIZE, MEAN, STD)
    check_checkpointing(method, make_batch(method))


@case
def test_the_step_decides_the_mask_and_nothing_else_does(settings: str) -> None:
    method = build(settings).eval()
    batch = make_batch(method)
    first = check_repeatable(method, batch)
    assert not torch.equal(method(batch, progress(step=4)).loss, first)
    assert not torch.equal(method(batch, progress(step=3, seed=1)).loss, first)


@case
def test_two_micro_batches_average_to_the_double_batch(settings: str) -> None:
    method = build(settings).eval()
    whole = make_batch(method)
    parts = []
    for start in (0, 2):
        part = rows_of(whole, slice(start, start + 2))
        parts.append(method(part, progress(row_start=start)).loss)
    torch.testing.assert_close(torch.stack(parts).mean(), method(whole, progress()).loss, rtol=1e-5, atol=0)


@case
def test_initial_weights_are_a_function_of_the_seed(settings: str) -> None:
    first = build(settings, seed=7).state_dict()
    torch.manual_seed(1234)
    second, other = build(settings, seed=7).state_dict(), build(settings, seed=8).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@case
def test_the_state_dict_has_the_promised_layout(settings: str) -> None:
    method = build(settings)
    heads = {name.split(".")[0] for name in method.state_dict()}
    assert heads <= {"encoder", "decoder", "mask_token"} | ({"norm", "hog"} if method.name == "localmim" else set())
    assert method.encoders()["student"] is method.encoder
    assert METHODS[method.name].method_class is type(method)


@case_of_pixels
def test_reconstructions_show_the_mask_of_their_seed(settings: str) -> None:
    method = build(settings).eval()
    images = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    shown = method.reconstruct(images, seed=1)
    assert shown.prediction.shape == images.shape and shown.pixel_mask.shape == (3, 1, SIZE, SIZE)
    assert shown.note.endswith(".")
    again, other = method.reconstruct(images, seed=1), method.reconstruct(images, seed=2)
    assert torch.equal(shown.prediction, again.prediction) and torch.equal(shown.pixel_mask, again.pixel_mask)
    assert not torch.equal(shown.pixel_mask, other.pixel_mask)
    fewer = method.reconstruct(images, seed=1, mask_ratio=0.25)
    assert float(fewer.pixel_mask.float().mean()) == 0.25


@case
def test_sampled_masks_hide_what_training_hides(settings: str) -> None:
    method = build(settings)
    masks = method.sample_masks(5, seed=1)
    assert masks.shape == (5, 1, SIZE, SIZE) and masks.dtype == torch.bool
    hidden = masks.flatten(1).float().mean(1)
    trained = method(make_batch(method), progress()).metrics["hidden_share"]
    assert hidden.tolist() == pytest.approx([float(trained)] * 5)
    assert torch.equal(masks, method.sample_masks(5, seed=1))
    assert not torch.equal(masks, method.sample_masks(5, seed=2))


@case_of_pixels
def test_the_loss_sees_hidden_pixels_only(settings: str) -> None:
    method = build(settings).eval()
    with torch.no_grad():  # the same prediction for every patch, so pixels act as targets only
        for part in [method.decoder.decoder_pred] if method.name == "mae" else method.decoder.modules():
            if isinstance(part, torch.nn.Linear | torch.nn.Conv2d):
                part.weight.zero_()
                part.bias.normal_()  # not flat: every constant is as far from a standardised patch
    batch = make_batch(method)
    hidden = hidden_pixels(method, 4)
    loss = method(batch, progress()).loss.detach()

    def loss_with_noise(where: torch.Tensor) -> torch.Tensor:
        noise = torch.randint(0, 256, batch.views[0].shape, dtype=torch.uint8)
        changed = torch.where(where, noise, batch.views[0])
        return method(Batch((changed,), batch.index, batch.labels, batch.extras), progress()).loss.detach()

    assert torch.equal(loss_with_noise(~hidden), loss)
    assert abs(float(loss_with_noise(hidden) - loss)) > 1e-5 * float(loss)


def hidden_pixels(method: Method, rows: int) -> torch.Tensor:
    """What the method hides in the first step: bool [rows, 1, SIZE, SIZE]."""
    side = SIZE // method.encoder.patch_size
    if method.name in ("mae", "localmim"):
        noise = step_noise(progress(), rows, side**2, "mask")
        mask = random_visible_ids(noise, side**2 // 4).mask
    else:
        noise = step_noise(progress(), rows, method.cells.num_cells, "mask")
        mask = method.cells.patch_mask(method.cells.hide(noise))
    return pixel_mask(mask, (side, side), method.encoder.patch_size)


def test_the_discriminator_names_the_methods() -> None:
    adapter = TypeAdapter(MethodConfig)
    for name, entry in METHODS.items():
        config = adapter.validate_python({"name": name})
        assert isinstance(config, entry.config_class)
        assert adapter.validate_json(adapter.dump_json(config)) == config
    with pytest.raises(ValidationError, match="mea"):
        adapter.validate_python({"name": "mea"})
    with pytest.raises(ValidationError, match="mask_ratio"):
        adapter.validate_python({"name": "mae", "mask_ratio": 75})
    with pytest.raises(ValidationError, match="norm_pix"):
        adapter.validate_python({"name": "simmim", "norm_pix_loss": True})
    with pytest.raises(ValidationError, match="must not be larger"):
        adapter.validate_python({"name": "simmim", "crop_scale": [1.0, 0.5]})
