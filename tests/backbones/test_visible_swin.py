"""A Swin on visible tokens: equal to the dense one where it should be, blind to hidden patches, packed exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.swin import SwinEncoder
from halfseen.backbones.visible_swin import (
    VisibleTap,
    check_visible,
    encode_visible,
    group_windows,
    mask_grid,
    tap_shapes,
)
from halfseen.errors import ConfigError, ShapeError


def small(
    image_size: int = 96, depths: tuple[int, ...] = (2, 2, 1), window_size: int = 3, drop_path: float = 0.0
) -> SwinEncoder:
    """Three stages of 24, 12 and 6 tokens a side (96 px), windows of 3."""
    config = ModelConfig(
        name="swin_tiny", embed_dim=8, depths=depths, num_heads=2, window_size=window_size, drop_path=drop_path
    )
    encoder = build_encoder(config, image_size)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    assert isinstance(encoder, SwinEncoder)
    return encoder.eval()


def pictures(encoder: SwinEncoder, count: int = 2) -> Tensor:
    side = encoder.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def random_mask(encoder: SwinEncoder, num_hidden: int, seed: int = 3) -> Tensor:
    side, _ = mask_grid(encoder)
    return torch.randperm(side**2, generator=torch.Generator().manual_seed(seed)) < num_hidden


def in_raster_order(tap: VisibleTap, fill: float = 0.0) -> Tensor:
    """The whole map [B, side, side, C], `fill` where it is hidden."""
    B, _, C = tap.tokens.shape
    whole = tap.tokens.new_full((B, tap.shape.side**2, C), fill)
    whole[:, tap.visible_ids[0]] = tap.tokens
    return whole.reshape(B, tap.shape.side, tap.shape.side, C)


def dense_maps(encoder: SwinEncoder, images: Tensor, mask: Tensor) -> list[Tensor]:
    """The maps [B, h, w, C] after each stage's merging, by the dense blocks, hidden tokens as keys shut out."""
    side, _ = mask_grid(encoder)
    stages = list(encoder.trunk.layers)
    x = encoder.trunk.patch_embed(images)
    maps = []
    for number, stage in enumerate(stages):
        inner = 2 ** (len(stages) - 1 - number)
        hidden = mask.reshape(side, side).repeat_interleave(inner, 0).repeat_interleave(inner, 1)
        for block in stage.blocks:
            x = x + plain_attention(block, block.norm1(x), hidden)
            x = x + block.mlp(block.norm2(x))
        if number + 1 < len(stages):
            x = stages[number + 1].downsample(x)
        maps.append(x)
    return maps


def plain_attention(block: torch.nn.Module, x: Tensor, hidden: Tensor) -> Tensor:
    """Attention of every token to the visible ones of its window, over one matrix of all pairs."""
    B, rows, columns, C = x.shape
    window, shift = block.window_size[0], block.shift_size[0]
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    owner = (places + (window - shift) % window) // window
    apart = (owner[:, None] != owner[None]).any(-1) | hidden.flatten()[None]
    delta = places[:, None] - places[None] + window - 1
    ids = (delta[..., 0] * (2 * window - 1) + delta[..., 1]).masked_fill(apart, 0)
    bias = block.attn.relative_position_bias_table[ids].permute(2, 0, 1).masked_fill(apart, -1e4)
    qkv = block.attn.qkv(x).reshape(B, rows * columns, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    weights = (qkv[0] @ qkv[1].transpose(-2, -1) * block.attn.scale + bias).softmax(-1)
    out = block.attn.proj((weights @ qkv[2]).transpose(1, 2).reshape(B, rows * columns, C))
    return out.reshape(x.shape)


@pytest.mark.parametrize(
    ("image_size", "depths", "window"), [(96, (2, 2, 1), 3), (64, (2, 2, 2, 2), 4), (48, (2,), 4), (112, (1, 3), 7)]
)
def test_with_nothing_hidden_it_is_the_dense_swin(image_size: int, depths: tuple[int, ...], window: int) -> None:
    encoder = small(image_size, depths, window)
    images = pictures(encoder)
    ends = [sum(depths[: number + 1]) for number in range(len(depths))]
    with torch.no_grad():
        dense = encoder(images, layers=ends).layers
        taps = encode_visible(encoder, images, random_mask(encoder, 0), "fixed")
        for number, (tap, tokens) in enumerate(zip(taps, dense, strict=True)):
            x = tokens.patches.unflatten(1, tokens.grid)
            if number + 1 < len(depths):
                x = encoder.trunk.layers[number + 1].downsample(x)
            torch.testing.assert_close(in_raster_order(tap), x, rtol=0, atol=2e-5)


@settings(max_examples=12)
@given(num_hidden=st.integers(0, 35), seed=st.integers(0, 1000))
def test_visible_tokens_are_those_of_a_dense_swin_that_attends_to_no_hidden_one(num_hidden: int, seed: int) -> None:
    encoder = small()
    images, mask = pictures(encoder, 1), random_mask(encoder, num_hidden, seed)
    with torch.no_grad():
        taps = encode_visible(encoder, images, mask, "fixed")
        for tap, expected in zip(taps, dense_maps(encoder, images, mask), strict=True):
            found = in_raster_order(tap, fill=float("nan"))
            times = tap.shape.side // mask_grid(encoder)[0]
            hidden = mask.reshape(mask_grid(encoder)).repeat_interleave(times, 0).repeat_interleave(times, 1)
            assert torch.equal(found.isnan().all(-1)[0], hidden)
            torch.testing.assert_close(found[:, ~hidden], expected[:, ~hidden], rtol=0, atol=2e-5)


def test_gradients_are_those_of_the_dense_swin() -> None:
    encoder = small().double()
    images, mask = pictures(encoder).double(), random_mask(encoder, 20)
    names, parameters = zip(*encoder.trunk.named_parameters(), strict=True)
    taps = encode_visible(encoder, images, mask, "fixed")
    found = torch.autograd.grad(sum(tap.tokens.sin().sum() for tap in taps), parameters, allow_unused=True)
    total = torch.zeros((), dtype=torch.float64)
    for tap, whole in zip(taps, dense_maps(encoder, images, mask), strict=True):
        times = tap.shape.side // mask_grid(encoder)[0]
        hidden = mask.reshape(mask_grid(encoder)).repeat_interleave(times, 0).repeat_interleave(times, 1)
        total = total + whole[:, ~hidden].sin().sum()
    expected = torch.autograd.grad(total, parameters, allow_unused=True)
    for name, ours, theirs in zip(names, found, expected, strict=True):
        assert (ours is None) == (theirs is None) == name.startswith("norm."), name
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("coords", ["reference", "fixed"])
def test_hidden_pixels_and_other_images_do_not_matter(coords: str) -> None:
    encoder = small()
    images, mask = pictures(encoder), random_mask(encoder, 20)
    hidden = mask.reshape(1, 1, *mask_grid(encoder)).repeat_interleave(encoder.stride, 2)
    other = images.masked_fill(hidden.repeat_interleave(encoder.stride, 3), 7.0)
    with torch.no_grad():
        first = encode_visible(encoder, images, mask, coords)
        second = encode_visible(encoder, other.flip(0), mask, coords)
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one.tokens, two.tokens.flip(0), rtol=0, atol=1e-5)


def test_reference_coordinates_depart_in_the_middle_stages_only() -> None:
    encoder = small()
    images, mask = pictures(encoder), random_mask(encoder, 20)
    with torch.no_grad():
        first, second, _ = (
            (one.tokens - two.tokens).abs().max()
            for one, two in zip(
                encode_visible(encoder, images, mask, "reference"),
                encode_visible(encoder, images, mask, "fixed"),
                strict=True,
            )
        )
    assert first == 0 and second > 1e-2


@given(
    side=st.integers(2, 20),
    window=st.integers(2, 7),
    share=st.floats(0.05, 1.0),
    shifted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_packing_keeps_windows_whole_and_groups_small(
    side: int, window: int, share: float, shifted: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = max(1, int(share * side**2))
    ids = torch.randperm(side**2, generator=generator)[:count]
    rows, columns = ids // side, ids % side
    shift = window // 2 if shifted else 0
    places, pairs = group_windows(rows, columns, window, shift)
    owner = torch.stack([(axis - shift + window) // window for axis in (rows, columns)])
    together = (owner[:, :, None] == owner[:, None]).all(0)
    delta = torch.stack([axis[:, None] - axis[None] + window - 1 for axis in (rows, columns)])
    expected = torch.where(together, delta[0] * (2 * window - 1) + delta[1], (2 * window - 1) ** 2)
    if places is None:
        assert count <= 2 * window**2
        assert torch.equal(pairs[0], expected)
        return
    groups, size, _ = pairs.shape
    assert size <= window**2 and len(places.unique()) == count
    group, position = places // size, places % size
    assert (group[:, None] == group[None])[together].all()
    for number in range(groups):
        inside = group == number
        block = pairs[number][position[inside]][:, position[inside]]
        assert torch.equal(block, expected[inside][:, inside])
        # Slots without a token are closed to all that have one, and the other way round.
        empty = torch.ones(size, dtype=torch.bool).index_fill(0, position[inside], False)
        closed = pairs[number] == (2 * window - 1) ** 2
        assert closed[empty][:, ~empty].all() and closed[~empty][:, empty].all() and not closed[empty][:, empty].any()


def test_places_are_patch_major_and_complete() -> None:
    encoder = small()
    side, _ = mask_grid(encoder)
    mask = random_mask(encoder, 20)
    for tap in encode_visible(encoder, pictures(encoder, 1), mask):
        times = tap.shape.side // side
        rows = torch.arange(tap.shape.side) // times
        patch = (rows[:, None] * side + rows).flatten()
        for ids, hidden in ((tap.visible_ids[0], False), (tap.hidden_ids[0], True)):
            # Patch after patch, and inside each in raster order.
            expected = [(patch == number).nonzero().squeeze(1) for number in (mask == hidden).nonzero()]
            assert torch.equal(ids, torch.cat(expected))


def test_shapes_are_known_beforehand() -> None:
    encoder = small(224, (1, 1, 1, 1), 7)
    assert mask_grid(encoder) == (7, 7)
    assert tap_shapes(encoder) == ((28, 16), (14, 32), (7, 64), (7, 64))
    taps = encode_visible(encoder, pictures(encoder, 1), random_mask(encoder, 37))
    assert [tuple(tap.tokens.shape) for tap in taps] == [(1, 192, 16), (1, 48, 32), (1, 12, 64), (1, 12, 64)]
    assert [tap.shape for tap in taps] == list(tap_shapes(encoder))


def test_runs_in_half_precision_with_finite_gradients() -> None:
    encoder = small(drop_path=0.2).train()
    images, mask = pictures(encoder), random_mask(encoder, 20)
    with torch.autocast("cpu", torch.bfloat16):
        taps = encode_visible(encoder, images, mask)
        loss = torch.stack([tap.tokens.float().square().mean() for tap in taps]).sum()
    loss.backward()
    gradients = [p.grad for name, p in encoder.trunk.named_parameters() if not name.startswith("norm.")]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    with torch.no_grad():
        exact = encode_visible(encoder.eval(), images, mask)
        with torch.autocast("cpu", torch.bfloat16):
            half = encode_visible(encoder, images, mask)
    for one, two in zip(exact, half, strict=True):
        assert (one.tokens - two.tokens).abs().mean() < 0.05 * one.tokens.std()


def test_resting_units_get_no_gradient_and_later_ones_do() -> None:
    encoder = small().train()
    encoder.freeze(2)  # The embedding and the first block.
    taps = encode_visible(encoder, pictures(encoder), random_mask(encoder, 20))
    torch.stack([tap.tokens.square().mean() for tap in taps]).sum().backward()
    for name, parameter in encoder.named_parameters():
        if not name.startswith("trunk.norm."):
            assert (parameter.grad is None) == (encoder.freezing_unit(name) < 2), name


def test_what_does_not_fit_is_refused() -> None:
    encoder = small()
    images, mask = pictures(encoder), random_mask(encoder, 20)
    with pytest.raises(ShapeError, match="laid out for 96x96"):
        encode_visible(encoder, images[..., :64], mask)
    with pytest.raises(ShapeError, match="6x6 grid"):
        encode_visible(encoder, images, mask[:-1])
    with pytest.raises(ShapeError, match="at least one"):
        encode_visible(encoder, images, torch.ones_like(mask))
    check_visible(encoder)
    padded = ModelConfig(name="swin_tiny", embed_dim=8, depths=(1, 1), num_heads=2, window_size=7, pad_windows=True)
    with pytest.raises(ConfigError, match=r"model\.window_size"):
        check_visible(build_encoder(padded, 64))
