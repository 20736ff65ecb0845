"""LocalMIM's decoders against the same decoders written out densely, with the convolutions that their layers are."""

import pytest
import torch
from torch import Tensor, nn

from halfseen.backbones.scale_decoders import SCALES, PoolHead, ScaleDecoder, scale_head
from halfseen.errors import ConfigError
from halfseen.ops.patches import mask_from_ids, repeat_cells

SIDE, WIDTH, OUT = 6, 16, 5


def decoder(scale: float | None, prefix: int = 1, depth: int = 1, seed: int = 0) -> ScaleDecoder:
    """`scale` None: the linear head."""
    torch.manual_seed(seed)
    head = nn.Linear(WIDTH, OUT) if scale is None else scale_head(WIDTH, scale, OUT)
    made = ScaleDecoder(8, SIDE, head, embed_dim=WIDTH, depth=depth, num_heads=2, num_prefix_tokens=prefix).eval()
    for name, parameter in made.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.3)
    return made


def split(rows: int = 2, visible: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    order = torch.rand(rows, SIDE**2, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return order[:, :visible], order[:, visible:]


def dense(made: ScaleDecoder, tokens: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
    """As the paper's figure has it: [B, cells, OUT] in raster order."""
    B, prefix = len(tokens), made.num_prefix_tokens
    embedded = made.embed(tokens)
    waiting = made.mask_token.expand(B, hidden.shape[1], -1)
    order = torch.cat([visible, hidden], dim=1).argsort(dim=1).expand(B, -1)
    raster = torch.cat([embedded[:, prefix:], waiting], dim=1)[torch.arange(B)[:, None], order]
    x = torch.cat([embedded[:, :prefix], raster], dim=1) + made.pos_embed
    for block in made.blocks:
        x = block(x)
    x = made.norm(x)[:, prefix:]
    if isinstance(made.pred, nn.Linear):
        return made.pred(x)
    x = x.transpose(1, 2).reshape(B, WIDTH, SIDE, SIDE)
    for layer in made.pred.children():
        along_channels = isinstance(layer, nn.LayerNorm)
        x = layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if along_channels else layer(x)
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("scale", [*SCALES, None])
def test_hidden_cells_are_those_of_the_dense_form(scale: float | None, depth: int, prefix: int) -> None:
    made = decoder(scale, prefix, depth)
    visible, hidden = split()
    tokens = torch.randn(2, prefix + visible.shape[1], 8)
    expected = dense(made, tokens, visible, hidden)
    torch.testing.assert_close(made.predict_all(tokens, visible, hidden), expected, rtol=0, atol=1e-5)
    cells = made.cells(hidden)
    wanted = expected.gather(1, cells.unsqueeze(-1).expand(-1, -1, OUT))
    torch.testing.assert_close(made(tokens, visible, hidden), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [*SCALES, None])
def test_gradients_are_those_of_the_dense_form(scale: float | None) -> None:
    made = decoder(scale)
    visible, hidden = split()
    tokens = torch.randn(2, 1 + visible.shape[1], 8)
    cells = made.cells(hidden)
    target = torch.randn(*cells.shape, OUT)

    def gradients(predicted: Tensor) -> dict[str, Tensor]:
        made.zero_grad()
        (predicted - target).square().mean().backward()
        return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}

    plain = gradients(dense(made, tokens, visible, hidden).gather(1, cells.unsqueeze(-1).expand(-1, -1, OUT)))
    fast = gradients(made(tokens, visible, hidden))
    assert plain.keys() == fast.keys() == {name for name, p in made.named_parameters() if p.requires_grad}
    for name, gradient in plain.items():
        torch.testing.assert_close(fast[name], gradient, rtol=0, atol=1e-5 * max(1.0, float(gradient.abs().max())))


@pytest.mark.parametrize("scale", [*SCALES, None])
def test_predicted_cells_and_their_weights_follow_the_mask(scale: float | None) -> None:
    made = decoder(scale)
    _, hidden = split()
    patches = mask_from_ids(hidden, SIDE**2).reshape(-1, SIDE, SIDE)
    weights = made.weights(hidden)
    if scale == 0.5:
        expected = nn.functional.avg_pool2d(patches.float(), 2).flatten(1)
        torch.testing.assert_close(weights, expected, rtol=0, atol=0)
        assert made.cells(hidden).tolist() == [list(range(9))] * 2
        return
    assert weights is None
    fine = repeat_cells(patches, int(scale or 1)).flatten(1)
    assert torch.equal(mask_from_ids(made.cells(hidden), fine.shape[1]), fine)
    assert made.cells(hidden).shape[1] == fine[0].sum()


def test_one_row_of_places_serves_all_images() -> None:
    for scale in (*SCALES, None):
        made = decoder(scale, prefix=0)
        visible, hidden = split(rows=1)
        tokens = torch.randn(3, visible.shape[1], 8)
        every = (ids.expand(3, -1) for ids in (visible, hidden))
        torch.testing.assert_close(made(tokens, visible, hidden), made(tokens, *every))


def test_the_layers_have_the_official_places_and_shapes() -> None:
    places = {
        8.0: {"0": (16, 8, 2, 2), "1": (8,), "3": (8, 4, 2, 2), "4": (4,), "6": (4, 2, 2, 2), "7": (OUT, 2, 1, 1)},
        4.0: {"0": (16, 8, 2, 2), "1": (8,), "3": (8, 4, 2, 2), "4": (OUT, 4, 1, 1)},
        2.0: {"0": (16, 8, 2, 2), "1": (OUT, 8, 1, 1)},
        1.0: {"0": (OUT, 16, 1, 1)},
        0.5: {"1": (OUT, 16, 1, 1)},
    }
    for scale, layers in places.items():
        state = decoder(scale).state_dict()
        assert {name.split(".")[0] for name in state} == {"embed", "mask_token", "pos_embed", "blocks", "norm", "pred"}
        weights = {name: tuple(value.shape) for name, value in state.items() if name.startswith("pred.")}
        assert {f"pred.{place}.weight": shape for place, shape in layers.items()} == {
            name: shape for name, shape in weights.items() if name.endswith("weight")
        }
    assert decoder(None).state_dict()["pred.weight"].shape == (OUT, WIDTH)
    assert not decoder(1.0).pos_embed.requires_grad


def test_two_by_two_patches_must_tile_the_grid() -> None:
    with pytest.raises(ConfigError, match=r"method\.scales: 0\.5 joins 2x2 patches, which don't tile a grid of 7x7"):
        ScaleDecoder(8, 7, PoolHead(WIDTH, OUT), embed_dim=WIDTH, num_heads=2)
