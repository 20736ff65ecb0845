import pytest
import torch
from pydantic import ValidationError
from torch import nn

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.errors import ConfigError
from halfseen.masking.random import random_visible_ids
from halfseen.methods.localmim import LocalMIM, LocalMIMConfig
from halfseen.ops.patches import patchify
from halfseen.types import Batch, Progress, ViewSpec
from methods.steps import check_checkpointing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 64
VIT = ModelConfig(name="vit_base", embed_dim=16, depth=7, num_heads=2)
SWIN = ModelConfig(name="swin_base", embed_dim=8, depths=(1, 2, 1), num_heads=(1, 2, 2))
SMALL_DECODER = {"decoder_embed_dim": 16, "decoder_num_heads": 2}
PIXELS = {"target": {"kind": "pixels"}}


def build(model: ModelConfig = VIT, size: int = SIZE, seed: int = 0, **settings: object) -> LocalMIM:
    config = LocalMIMConfig(**{**SMALL_DECODER, **settings})
    return LocalMIM(config, build_encoder(model, size), size, MEAN, STD, seed)


def batch(rows: int = 2) -> Batch:
    views = torch.randint(0, 256, (rows, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch((views,), torch.arange(rows), torch.full((rows,), -1))


def progress(step: int = 0, row_start: int = 0) -> Progress:
    return Progress(step, 10, 5, 0, row_start, 2)


@pytest.mark.parametrize("model", [VIT, SWIN])
def test_checkpointed_blocks_change_no_bit(model: ModelConfig) -> None:
    check_checkpointing(build(model.model_copy(update={"drop_path": 0.3}), decoder_depth=2), batch())


@pytest.mark.parametrize(("name", "depth"), [("vit_small", 12), ("vit_base", 12), ("vit_large", 24)])
def test_published_taps_and_cells(name: str, depth: int) -> None:
    with torch.device("meta"):
        method = LocalMIM(LocalMIMConfig(), build_encoder(ModelConfig(name=name), 224, "meta"), 224, MEAN, STD)
    assert method.taps == (2, 4, depth - 2, depth)
    assert method.cell_sizes == (4, 8, 16, 32)
    assert method.num_hidden == 147
    view = ViewSpec(224, 1, (0.2, 1.0), (3 / 4, 4 / 3), "bicubic", antialias=True, hflip=0.5, vflip=0.0)
    assert method.view_plan().views == (view,)


def test_the_maps_of_a_published_swin() -> None:
    with torch.device("meta"):
        encoder = build_encoder(ModelConfig(name="swin_base", norm_eps=1e-6), 224, "meta")
        config = LocalMIMConfig(decoder_embed_dim=128, decoder_num_heads=4)
        method = LocalMIM(config, encoder, 224, MEAN, STD)
    assert (method.taps, method.cell_sizes) == ((2, 4, 22, 24), (8, 16, 32, 32))
    assert [decoder.embed.weight.shape for decoder in method.decoder] == [
        (64, 256),
        (128, 512),
        (128, 1024),
        (128, 1024),
    ]
    assert method.num_hidden == 37
    assert [norm.eps for norm in method.norm] == [1e-6] * 3


def test_a_decoder_at_every_block_can_be_written() -> None:
    scales = (8, 4, 4, 2, 2, 2, 2, 2, 2, 1, 1, 0.5)
    deep = VIT.model_copy(update={"depth": 12})
    method = build(deep, taps=tuple(range(1, 13)), scales=scales)
    assert method.cell_sizes == (2, 4, 4, *[8] * 6, 16, 16, 32)
    out = method(batch(), progress())
    assert sum(name.startswith("loss_block") for name in out.metrics) == 12
    out.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_the_loss_is_the_weighted_sum_or_mean_of_the_logged_terms() -> None:
    weights = (4.0, 3.0, 2.0, 1.0)
    for reduction, divisor in (("sum", 1), ("mean", 4)):
        out = build(branch_weights=weights, loss_reduction=reduction)(batch(), progress())
        terms = [out.metrics[f"loss_block{block}"] for block in (2, 4, 5, 7)]
        expected = sum(weight * term for weight, term in zip(weights, terms, strict=True)) / divisor
        torch.testing.assert_close(out.loss.detach(), expected)


def test_branches_that_end_are_not_computed_and_keep_their_weights() -> None:
    method = build(target={"kind": "hog", "bins": 18, "bias": True})
    whole = method(batch(), progress())
    state = method.state_dict()
    method.drop_branches(2)
    assert method.state_dict().keys() == state.keys()
    rest = method(batch(), progress())
    terms = [whole.metrics[f"loss_block{block}"] for block in (5, 7)]
    torch.testing.assert_close(rest.loss.detach(), sum(terms), rtol=1e-5, atol=0)
    assert {name for name in rest.metrics if name.startswith("loss_block")} == {"loss_block5", "loss_block7"}
    rest.loss.backward()
    idle = {name for name, p in method.named_parameters() if p.requires_grad and p.grad is None}
    assert idle == {name for name, _ in method.named_parameters() if name.startswith(("norm.0", "norm.1"))} | {
        name
        for name, p in method.named_parameters()
        if name.startswith(("decoder.0.", "decoder.1.")) and p.requires_grad
    }


@pytest.mark.parametrize("model", [VIT, SWIN])
def test_a_branch_freezes_with_its_block(model: ModelConfig) -> None:
    method = build(model)
    last = len(method.taps) - 1
    for branch, block in enumerate(method.taps):
        assert method.freezing_unit(f"decoder.{branch}.embed.weight") == block
        if branch < last:
            assert method.freezing_unit(f"norm.{branch}.weight") == block
    assert method.taps[-1] == method.encoder.num_layers == method.freezing_unit("encoder.trunk.norm.weight")
    assert method.freezing_unit("encoder.trunk.patch_embed.proj.weight") == 0


def test_the_last_taps_norm_is_the_exported_one() -> None:
    method = build().eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    split = random_visible_ids(torch.rand(2, 16), 15)
    seen = method.see(images, split, [3])
    features = method.encoder(images, visible_ids=split.visible_ids)
    assert torch.equal(seen[0].tokens, torch.cat([features.prefix, features.patches], dim=1))
    assert {name for name in method.state_dict() if name.startswith("norm.")} == {
        f"norm.{tap}.{part}" for tap in range(3) for part in ("weight", "bias")
    }


def test_the_order_of_visible_patches_does_not_matter() -> None:
    method = build().eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    split = random_visible_ids(torch.rand(2, 16), 4)
    in_order = split._replace(visible_ids=split.visible_ids.sort().values, hidden_ids=split.hidden_ids.sort().values)
    torch.testing.assert_close(method.compare(images, in_order).loss, method.compare(images, split).loss)


def test_groups_follow_the_kind_of_encoder() -> None:
    for model, decayed_tokens in ((VIT, True), (SWIN, False)):
        method = build(model)
        decayed = {name: method.parameter_group(name, p).decay for name, p in method.named_parameters()}
        assert decayed["decoder.0.mask_token"] == decayed_tokens
        assert (
            decayed["decoder.0.embed.weight"] and not decayed["decoder.0.embed.bias"] and not decayed["norm.0.weight"]
        )
        tables = [name for name in decayed if "relative_position_bias_table" in name]
        assert bool(tables) != decayed_tokens and not any(decayed[name] for name in tables)
    assert build().parameter_group("encoder.trunk.cls_token", build().encoder.trunk.cls_token).decay


def test_weights_begin_as_in_the_original() -> None:
    method = build(VIT.model_copy(update={"embed_dim": 64}), decoder_embed_dim=64)
    state = method.state_dict()
    bound = (6 / (64 + 192)) ** 0.5
    qkv = state["encoder.trunk.blocks.0.attn.qkv.weight"]
    assert 0.95 * bound < float(qkv.abs().max()) <= bound
    bound = (6 / (3 * 16**2 + 64)) ** 0.5
    assert 0.95 * bound < float(state["encoder.trunk.patch_embed.proj.weight"].abs().max()) <= bound
    bound = 1 / (32 * 4) ** 0.5  # the framework's rule for a transposed convolution counts what comes out of it
    assert 0.95 * bound < float(state["decoder.0.pred.0.weight"].abs().max()) <= bound
    for name in ("encoder.trunk.cls_token", "decoder.3.mask_token"):
        assert 0.01 < float(state[name].std()) < 0.03
    assert float(state["decoder.1.embed.bias"].abs().max()) == 0
    assert not method.encoder.trunk.pos_embed.requires_grad


@pytest.mark.parametrize("settings", [{}, {"target": {"kind": "hog", "bins": 18, "bias": True}}, PIXELS])
@pytest.mark.parametrize("coords", ["reference", "fixed"])
def test_a_step_of_a_swin(settings: dict[str, object], coords: str) -> None:
    method = build(SWIN, coords=coords, **settings)
    out = method(batch(), progress(step=3))
    assert torch.isfinite(out.loss) and out.loss.dtype == torch.float32
    out.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    method.zero_grad()
    assert torch.equal(method(batch(), progress(step=3)).loss, out.loss)
    assert not torch.equal(method(batch(), progress(step=4)).loss, out.loss)
    assert not torch.equal(method(batch(), progress(step=3, row_start=1)).loss, out.loss)


def test_a_swins_exact_ratio_hides_one_patch_less() -> None:
    for exact, hidden in ((False, 13), (True, 12)):
        method = build(SWIN, exact_ratio=exact)
        masks = method.sample_masks(3, seed=0)
        assert masks.shape == (3, 1, SIZE, SIZE)
        assert (masks.flatten(1).sum(1) == hidden * 16**2).all()
        assert float(method(batch(), progress()).metrics["hidden_share"]) == hidden / 16


@pytest.mark.parametrize("model", [VIT, SWIN])
def test_reconstructions_show_the_finest_scale(model: ModelConfig) -> None:
    images = torch.randn(2, 3, SIZE, SIZE)
    method = build(model, norm_pix_loss=True, **PIXELS).eval()
    with torch.no_grad():
        for part in method.decoder[0].modules():
            if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                part.weight.zero_()
                part.bias.zero_()
    shown = method.reconstruct(images, seed=0)
    size = method.cell_sizes[0]
    # A standardised prediction of zero is the true mean of each cell.
    means = patchify(images, size).mean(-1, keepdim=True).expand(-1, -1, 3 * size**2)
    torch.testing.assert_close(patchify(shown.prediction, size), means)
    assert f"cells of {size} px" in shown.note and f"after block {method.taps[0]}" in shown.note
    fewer = method.reconstruct(images, seed=0, mask_ratio=0.25)
    assert fewer.pixel_mask.sum() < shown.pixel_mask.sum()
    assert build(model).reconstruct(images, seed=0) is None


def refused(match: str, model: ModelConfig = VIT, size: int = SIZE, **settings: object) -> None:
    with pytest.raises(ConfigError, match=match):
        build(model, size, **settings)


def test_taps_and_scales_that_do_not_fit_are_refused() -> None:
    for depth, taps in ((5, "2, 4, 3, 5"), (6, "2, 4, 4, 6")):
        shallow = VIT.model_copy(update={"depth": depth})
        refused(rf"method\.taps: the default ones, .*, are {taps} in a model of {depth} blocks", shallow)
        assert build(shallow, taps=(2, depth), scales=(2, 1)).taps == (2, depth)
    refused(r"method\.taps: the last is 6, but the model has 7 blocks: those above", taps=(2, 6), scales=(2, 1))
    refused(r"method\.taps: the last is 9, but the model has 7 blocks: no such block", taps=(2, 9), scales=(2, 1))
    refused(r"method\.taps: got none for 2 method\.scales", scales=(2, 1))
    refused(
        r"method\.scales: 4 cells along a patch of 14 px .* fit: 2, 1, 0\.5",
        VIT.model_copy(update={"patch_size": 14}),
        56,
    )
    refused(r"method\.scales: 0\.5 joins 2x2 patches, which don't tile a grid of 3x3", size=48)
    refused(
        r"decoder_embed_dim: the decoder after block 2 has 12 channels, .*num_heads=8",
        decoder_embed_dim=12,
        decoder_num_heads=8,
    )
    refused(r"method\.branch_weights: got 2 for 4 taps", branch_weights=(1, 2))
    refused(r"mask_ratio: 0\.95 of 16 patches leaves 0 visible", mask_ratio=0.95)
    for settings, sentence in (
        ({"taps": (2, 2), "scales": (1, 1)}, "must ascend"),
        ({"taps": (0, 2), "scales": (1, 1)}, "from 1 on"),
        ({"taps": (2, 7)}, "got 4 for 2 taps"),
        ({"scales": (3, 1, 1, 1)}, "allowed are 8, 4, 2, 1 and 0.5"),
        ({"branch_weights": (1, 0, 1, 1)}, "above 0"),
        ({"norm_pix_loss": True}, "no effect with target.kind=hog"),
    ):
        with pytest.raises(ValidationError, match=sentence):
            LocalMIMConfig(**settings)


def test_settings_of_the_other_kind_of_encoder_are_refused() -> None:
    refused(r"method\.coords: has no effect on a ViT", coords="fixed")
    refused(r"method\.exact_ratio: has no effect on a ViT", exact_ratio=True)
    refused(r"method\.scales: has no effect on a Swin", SWIN, scales=(2, 1, 1, 1))
    refused(r"decoder after block 1 has 8 channels, .*num_heads=16", SWIN, decoder_num_heads=16)


def test_encoders_that_cannot_drop_patches_are_refused() -> None:
    refused(
        r"model\.name: LocalMIM drops patches", ModelConfig(name="simmim_vit_base", embed_dim=16, depth=7, num_heads=2)
    )
    refused(r"model\.absolute_positions: got false, but LocalMIM", VIT.model_copy(update={"absolute_positions": False}))
    refused(r"model\.final_norm: got pooled, but LocalMIM", VIT.model_copy(update={"final_norm": "pooled"}))
    refused("convolutional stem looks beyond", ModelConfig(name="vitc_4gf", embed_dim=16, depth=7, num_heads=2))
