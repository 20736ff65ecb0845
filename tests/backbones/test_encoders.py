"""The encoder contract, on small models of every family."""

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer

from halfseen.backbones.base import Encoder
from halfseen.backbones.blocks import fused_attention_pays
from halfseen.backbones.build import build_encoder, swin_window
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.masked import project_patches
from halfseen.errors import ConfigError, ShapeError

SMALL: dict[str, tuple[dict[str, object], int]] = {
    "vit": ({"name": "vit_tiny", "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}, 28),
    "vit_no_class": (
        {"name": "vit_tiny", "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False},
        28,
    ),
    "swin": ({"name": "swin_tiny", "embed_dim": 16, "depths": (2, 2, 2), "num_heads": 1}, 64),
    "vit_conv": ({"name": "vitc_4gf", "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}, 28),
    "beit": ({"name": "simmim_vit_tiny", "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}, 32),
    "beit_absolute": (
        {
            "name": "simmim_vit_tiny",
            "patch_size": 8,
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 4,
            "absolute_positions": True,
            "relative_positions": "per_block",
        },
        32,
    ),
    "viny": (
        {"name": "viny_4m", "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "head_dim": 24},
        32,
    ),
}


def small(family: str, **more: object) -> Encoder:
    settings, image_size = SMALL[family]
    encoder = build_encoder(ModelConfig.model_validate({**settings, **more}), image_size)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return encoder.eval()


def num_patches(encoder: Encoder) -> int:
    return (encoder.image_size // encoder.patch_size) ** 2


def pictures(encoder: Encoder, count: int = 2) -> torch.Tensor:
    side = encoder.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", SMALL)
def test_sizes_of_the_contract(family: str) -> None:
    encoder = small(family)
    layers = [encoder.num_layers, 0, 1]
    features = encoder.encode(pictures(encoder), layers=layers)
    side = encoder.image_size // encoder.stride
    assert features.grid == (side, side)
    assert features.patches.shape == (2, side * side, encoder.embed_dim)
    assert features.prefix.shape == (2, encoder.num_prefix_tokens, encoder.embed_dim)
    assert len(encoder.blocks) == encoder.num_layers
    assert len(features.layers) == 3
    assert features.layers[1].patches.shape == (2, num_patches(encoder), encoder.mask_dim)
    final = encoder.trunk.norm(features.layers[0].patches)
    torch.testing.assert_close(final, features.patches)
    assert encoder.final_norm is encoder.trunk.norm


@pytest.mark.parametrize("family", SMALL)
def test_layers_alone_are_those_of_the_whole_pass(family: str) -> None:
    encoder = small(family).eval()
    images = pictures(encoder)
    whole = encoder.encode(images, layers=[1, 0]).layers
    alone = encoder.encode_layers(images, [1, 0])
    for one, other in zip(whole, alone, strict=True):
        assert torch.equal(one.patches, other.patches)
        assert torch.equal(one.prefix, other.prefix)
    with pytest.raises(ConfigError, match="has blocks 1 to"):
        encoder.encode_layers(images, [99])


def test_a_vit_runs_no_block_after_the_last_that_is_asked_for() -> None:
    encoder = small("vit").eval()
    run = []
    for number, block in enumerate(encoder.blocks, start=1):
        block.norm1.register_forward_hook(lambda *_, number=number: run.append(number))
    with torch.no_grad():
        encoder.encode_layers(pictures(encoder), [1])
    assert run == [1]


@pytest.mark.parametrize("family", [name for name in SMALL if name != "viny"])
def test_nothing_hidden_equals_timms_own_forward(family: str) -> None:
    encoder = small(family)
    images = pictures(encoder)
    with torch.no_grad():
        theirs = encoder.trunk.forward_features(images)
        ours = encoder(images)
    if isinstance(encoder.trunk, SwinTransformer):
        torch.testing.assert_close(ours.patches, theirs.flatten(1, 2), rtol=0, atol=1e-5)
    else:
        torch.testing.assert_close(torch.cat([ours.prefix, ours.patches], 1), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", [name for name in SMALL if name != "vit_conv"])
def test_hidden_patches_have_no_influence_when_replaced(family: str) -> None:
    encoder = small(family)
    images, patch = pictures(encoder), encoder.patch_size
    mask = torch.zeros(2, num_patches(encoder), dtype=torch.bool)
    mask[:, 0] = True
    token = torch.randn(1, 1, encoder.mask_dim)
    other = images.clone()
    other[:, :, :patch, :patch] += 1.0
    with torch.no_grad():
        first = encoder(images, mask=mask, mask_token=token).patches
        assert torch.equal(first, encoder(other, mask=mask, mask_token=token).patches)
        assert not torch.allclose(first, encoder(images).patches, atol=1e-3)
        nothing = encoder(images, mask=torch.zeros_like(mask), mask_token=token).patches
        torch.testing.assert_close(nothing, encoder(images).patches)


@pytest.mark.parametrize("family", ["vit", "vit_no_class", "vit_conv", "beit", "viny"])
def test_dropped_patches_keep_positions_and_the_order_of_the_ids(family: str) -> None:
    encoder = small(family)
    images, N = pictures(encoder), num_patches(encoder)
    order = torch.rand(2, N, generator=torch.Generator().manual_seed(3)).argsort(dim=1)
    with torch.no_grad():
        whole = encoder(images).patches
        shuffled = encoder(images, visible_ids=order).patches
        expected = whole.gather(1, order.unsqueeze(-1).expand_as(whole))
        torch.testing.assert_close(shuffled, expected, rtol=0, atol=1e-5)
        few = order[:, : N // 2]
        seen = encoder(images, visible_ids=few)
        assert seen.patches.shape == (2, N // 2, encoder.embed_dim) and seen.grid == encoder(images).grid
        if family == "vit_conv":
            return
        # Pixels of dropped patches are never read (but by a stem, whose windows overlap).
        dark = images.clone()
        for row in range(2):
            for number in order[row, N // 2 :].tolist():
                y, x = divmod(number, seen.grid[1])
                p = encoder.patch_size
                dark[row, :, y * p : (y + 1) * p, x * p : (x + 1) * p] = float("nan")
        assert torch.equal(encoder(dark, visible_ids=few).patches, seen.patches)


def test_swin_and_per_block_tables_refuse_dropped_patches() -> None:
    for family, words in (("swin", "can't drop patches"), ("beit_absolute", "shared table")):
        encoder = small(family)
        ids = torch.arange(4).expand(2, -1)
        with pytest.raises(ShapeError, match=words):
            encoder(pictures(encoder), visible_ids=ids)


def test_projection_of_kept_patches_equals_the_convolution() -> None:
    convolution = torch.nn.Conv2d(3, 10, 4, 4)
    images = torch.randn(2, 3, 12, 20)
    whole = convolution(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(project_patches(images, convolution), whole)
    ids = torch.tensor([[14, 0, 7], [3, 2, 11]])
    kept = whole.gather(1, ids.unsqueeze(-1).expand(-1, -1, 10))
    torch.testing.assert_close(project_patches(images, convolution, ids), kept)


@pytest.mark.parametrize("family", ["vit", "beit", "beit_absolute", "viny"])
def test_attention_rows_sum_to_one_and_give_the_blocks_output(family: str) -> None:
    encoder = small(family)
    images = pictures(encoder)
    with torch.no_grad():
        weights = encoder.attention(images, 2)
        tokens = num_patches(encoder) + encoder.num_prefix_tokens
        assert weights.shape == (2, encoder.num_heads, tokens, tokens)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        features = encoder.encode(images, layers=[1])
        before = torch.cat([features.layers[0].prefix, features.layers[0].patches], dim=1)
        block = encoder.blocks[1]
        normed = block.norm1(before)
        value = torch.nn.functional.linear(normed, block.attn.qkv.weight).chunk(3, dim=-1)[2]
        bias = block.attn.qkv.bias
        if bias is not None:
            value = value + bias.chunk(3)[2]
        elif getattr(block.attn, "v_bias", None) is not None:
            value = value + block.attn.v_bias
        value = value.reshape(2, tokens, encoder.num_heads, -1).transpose(1, 2)
        ours = block.attn.proj((weights @ value).transpose(1, 2).flatten(2))
        shared = getattr(encoder.trunk, "rel_pos_bias", None)
        theirs = block.attn(normed, shared_rel_pos_bias=shared()) if shared is not None else block.attn(normed)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_arguments_that_do_not_go_together_are_refused() -> None:
    encoder = small("vit")
    images, N = pictures(encoder), num_patches(encoder)
    mask, token = torch.zeros(2, N, dtype=torch.bool), torch.zeros(encoder.mask_dim)
    with pytest.raises(ShapeError, match="give one of them"):
        encoder(images, mask=mask, mask_token=token, visible_ids=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ShapeError, match="needs a mask_token"):
        encoder(images, mask=mask)
    with pytest.raises(ShapeError, match="patch grid needs"):
        encoder(images, mask=mask[:, :-1], mask_token=token)
    with pytest.raises(ShapeError, match="mask_token: got 7 values"):
        encoder(images, mask=mask, mask_token=torch.zeros(7))
    with pytest.raises(ConfigError, match="blocks 1 to 3"):
        encoder(images, layers=[4])


def test_images_that_cannot_be_cut_name_the_nearest_sides() -> None:
    with pytest.raises(ShapeError, match=r"28, 32"):
        small("vit")(torch.zeros(1, 3, 30, 30))
    with pytest.raises(ShapeError, match=r"28, 32"):
        build_encoder(ModelConfig(name="vit_tiny", patch_size=4), 30)
    with pytest.raises(ShapeError, match=r"192 or 224"):
        build_encoder(ModelConfig(name="swin_tiny"), 200)
    with pytest.raises(ShapeError, match=r"Windows that do: .*6"):
        build_encoder(ModelConfig(name="swin_tiny", window_size=7), 192)
    with pytest.raises(ShapeError, match="image_size=64"):
        small("beit")(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(("image_size", "window"), [(224, 7), (192, 6), (96, 6), (64, 4), (32, 4)])
def test_swins_window_is_the_largest_up_to_seven_that_tiles(image_size: int, window: int) -> None:
    assert swin_window(image_size, 4, 4, None) == window


def test_a_vit_takes_images_of_another_size_with_resized_positions() -> None:
    encoder = small("vit")
    features = encoder(torch.randn(1, 3, 40, 36))
    assert features.grid == (10, 9) and features.patches.shape == (1, 90, 32)


@pytest.mark.parametrize("window", [7, 14])
def test_ibots_swin_windows_take_global_and_local_crops(window: int) -> None:
    """At 224 px the last stage has 7 tokens a side, so a window of 14 shrinks there and shifts no more."""
    settings = {"name": "swin_tiny", "embed_dim": 12, "num_heads": 1, "window_size": window, "norm_eps": 1e-6}
    encoder = build_encoder(ModelConfig.model_validate(settings), 224).eval()
    assert [stage.blocks[1].window_size[0] for stage in encoder.trunk.layers] == [window, window, window, 7]
    assert [stage.blocks[1].shift_size[0] for stage in encoder.trunk.layers] == (
        [window // 2] * 3 + [0] if window == 7 else [7, 7, 0, 0]
    )
    assert {part.eps for part in encoder.modules() if isinstance(part, torch.nn.LayerNorm)} == {1e-6}
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, 224, 224)).grid == (7, 7)
        local = encoder(torch.randn(2, 3, 96, 96))
    assert local.grid == (3, 3) and local.patches.isfinite().all()


def test_windows_that_stick_out_are_padded_when_asked() -> None:
    settings = {"name": "swin_tiny", "embed_dim": 16, "depths": (2, 2), "num_heads": 1, "window_size": 5}
    with pytest.raises(ShapeError, match="pad_windows=true"):
        build_encoder(ModelConfig.model_validate(settings), 32)
    encoder = build_encoder(ModelConfig.model_validate({**settings, "pad_windows": True}), 32).eval()
    assert [stage.blocks[1].shift_size[0] for stage in encoder.trunk.layers] == [2, 0] and encoder.pads_windows
    assert not small("swin").pads_windows
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        whole = encoder(images)
        one = encoder(images[:1])
    assert whole.grid == (4, 4)
    torch.testing.assert_close(one.patches, whole.patches[:1], rtol=0, atol=1e-5)


def test_swin_pads_images_of_another_size_than_it_was_built_for() -> None:
    encoder = small("swin")
    features = encoder(torch.randn(1, 3, 80, 48))
    assert features.grid == (5, 3)


def test_sincos_positions_are_in_the_state_dict_and_never_trained() -> None:
    encoder = small("vit")
    encoder.use_sincos_positions()
    assert not encoder.trunk.pos_embed.requires_grad
    assert "trunk.pos_embed" in encoder.state_dict()
    assert not encoder.trunk.pos_embed[:, 0].any()


def test_the_kernel_of_attention_is_chosen_by_device_and_precision() -> None:
    tensor = torch.zeros(1)
    assert fused_attention_pays(tensor)
    assert not fused_attention_pays(tensor.bfloat16())
    assert fused_attention_pays(torch.zeros(1, device="meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not fused_attention_pays(tensor)


@pytest.mark.parametrize("family", SMALL)
def test_bfloat16_autocast_is_close_to_float32(family: str) -> None:
    encoder = small(family)
    images = pictures(encoder)
    mask = torch.zeros(2, num_patches(encoder), dtype=torch.bool)
    mask[:, ::2] = True
    token = torch.randn(encoder.mask_dim)
    with torch.no_grad():
        exact = encoder(images, mask=mask, mask_token=token).patches
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = encoder(images, mask=mask, mask_token=token).patches
    assert torch.nn.functional.cosine_similarity(exact, rough.float(), dim=-1).min() > 0.99


def test_the_class_token_of_viny_stays_out_of_the_way_until_asked_for() -> None:
    encoder = small("viny")
    encoder(pictures(encoder)).patches.sum().backward()
    assert encoder.num_prefix_tokens == 0 and encoder.trunk.cls_token.grad is None
    with_class = small("viny", class_token=True)
    with_class(pictures(with_class)).prefix.sum().backward()
    assert with_class.trunk.cls_token.grad is not None


def test_viny_with_one_full_head_has_no_output_projection() -> None:
    encoder = small("viny", num_heads=1, head_dim=32)
    assert not any(name.endswith("attn.proj.weight") for name in encoder.state_dict())


def test_timm_names_work_and_other_architectures_are_refused() -> None:
    encoder = build_encoder(ModelConfig(name="vit_tiny_patch16_224"), 32, device="meta")
    assert encoder.num_prefix_tokens == 1 and encoder.patch_size == 16
    registers = build_encoder(ModelConfig(name="vit_small_patch14_reg4_dinov2"), 28)
    assert registers.num_prefix_tokens == 5
    images = torch.randn(1, 3, 28, 28)
    ours, theirs = registers.eval()(images), registers.trunk.forward_features(images)
    torch.testing.assert_close(torch.cat([ours.prefix, ours.patches], 1), theirs, rtol=0, atol=1e-5)
    for name, words in (("vit_small_r26_s32_224", "convolutional stem"), ("vit_relpos_small_patch16_224", "plain")):
        with pytest.raises(ConfigError, match=words):
            build_encoder(ModelConfig(name=name), 224, device="meta")


def count(name: str, image_size: int, **more: object) -> int:
    encoder = build_encoder(ModelConfig.model_validate({"name": name, **more}), image_size, device="meta")
    return sum(parameter.numel() for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "image_size", "mask_token", "published"),
    [
        ("simmim_vit_base", 224, 768, 85_666_128),
        ("swin_base", 192, 128, 86_725_304),
        ("viny_4m", 128, 0, 4_842_880),
        ("vit_tiny", 192, 192, 5_514_624),
        ("vit_small", 192, 384, 21_646_080),
        ("vit_base", 192, 768, 85_759_488),
        ("swin_tiny", 192, 96, 27_512_826),
    ],
)
def test_published_parameter_counts(name: str, image_size: int, mask_token: int, published: int) -> None:
    assert count(name, image_size) + mask_token == published


@pytest.mark.parametrize(("name", "millions"), [("vit_base", 85.80), ("vit_large", 303.30), ("vit_huge", 630.76)])
def test_published_parameter_counts_of_mae(name: str, millions: float) -> None:
    assert round(count(name, 224) / 1e6, 2) == millions


def test_depth_of_drop_path_rises_linearly() -> None:
    encoder = build_encoder(ModelConfig(name="vit_tiny", embed_dim=12, depth=3, drop_path=0.2), 32)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("family", SMALL)
@torch.no_grad()
def test_block_views_are_the_forward_pass_seen_from_within(family: str) -> None:
    encoder = small(family)
    if family.startswith("beit"):
        encoder.trunk.blocks[0].gamma_1.fill_(0.3)
    images = pictures(encoder)
    numbers = range(encoder.num_layers + 1)
    views = list(encoder.block_views(images))
    features = encoder.encode(images, layers=numbers)
    assert [view.number for view in views] == list(numbers)
    close = {"rtol": 1e-4, "atol": 1e-5}
    for view, tokens in zip(views, features.layers, strict=True):
        assert view.tokens.grid == tokens.grid
        torch.testing.assert_close(view.tokens.patches, tokens.patches, **close)
        torch.testing.assert_close(view.tokens.prefix, tokens.prefix, **close)
    torch.testing.assert_close(encoder.final_norm(views[-1].tokens.patches), features.patches, **close)
    assert views[0][2:] == (None, None, None, None)
    swin = family == "swin"
    for view, block in zip(views[1:], encoder.blocks, strict=True):
        assert view.attended is not None and view.attention_input is not None and view.attention_output is not None
        change = view.attended.patches - views[view.number - 1].tokens.patches if not swin else None
        scale = getattr(block, "gamma_1", None)
        if change is not None:
            scaled = view.attention_output.patches * (1 if scale is None else scale)
            torch.testing.assert_close(change, scaled, **close)
        if swin:
            assert view.attention is None
            continue
        whole = encoder.attention(images, view.number)
        torch.testing.assert_close(view.attention, whole, **close)
        torch.testing.assert_close(view.attention.sum(dim=-1), torch.ones_like(view.attention[..., 0]), **close)
