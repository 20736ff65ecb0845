import pytest
import torch

from halfseen.backbones.decoders import LinearPatchDecoder, MAEDecoder, PixelShuffleDecoder


def test_the_pixel_shuffle_decoder_equals_convolution_and_pixel_shuffle() -> None:
    decoder = PixelShuffleDecoder(8, stride=4)
    assert {name: tuple(value.shape) for name, value in decoder.state_dict().items()} == {
        "0.weight": (48, 8, 1, 1),
        "0.bias": (48,),
    }
    tokens = torch.randn(2, 6, 8)
    grid = tokens.transpose(1, 2).reshape(2, 8, 2, 3)
    expected = torch.nn.functional.pixel_shuffle(decoder.projection(grid), 4)
    torch.testing.assert_close(decoder.picture(tokens, (2, 3)), expected)
    # Wanted tokens only: the same values as in the whole picture, colour by colour.
    one = decoder(tokens[:, 4:5])[1, 0].reshape(3, 4, 4)
    torch.testing.assert_close(one, expected[1, :, 4:8, 4:8])


def test_the_linear_decoder_has_the_colour_last() -> None:
    decoder = LinearPatchDecoder(8, patch_size=2)
    assert set(decoder.state_dict()) == {"weight", "bias"}
    tokens = torch.randn(1, 6, 8)
    picture = decoder.picture(tokens, (2, 3))
    torch.testing.assert_close(picture[0, :, 2:4, 2:4].permute(1, 2, 0).flatten(), decoder(tokens)[0, 4])


def mae_decoder(num_prefix_tokens: int = 1) -> MAEDecoder:
    decoder = MAEDecoder(8, (3, 3), 2, embed_dim=16, depth=2, num_heads=2, num_prefix_tokens=num_prefix_tokens).eval()
    torch.nn.init.normal_(decoder.mask_token)
    return decoder


@pytest.mark.parametrize("num_prefix_tokens", [0, 1])
def test_maes_decoder_equals_the_shuffle_back_of_the_paper(num_prefix_tokens: int) -> None:
    decoder = mae_decoder(num_prefix_tokens)
    order = torch.rand(2, 9).argsort(dim=1)
    visible, hidden = order[:, :4], order[:, 4:]
    prefix, patches = torch.randn(2, num_prefix_tokens, 8), torch.randn(2, 4, 8)
    # Written out: embed, append mask tokens, restore raster order, add positions, run, predict, drop the prefix.
    embedded = decoder.decoder_embed(torch.cat([prefix, patches], dim=1))
    row = torch.cat([embedded[:, num_prefix_tokens:], decoder.mask_token.expand(2, 5, -1)], dim=1)
    raster = row.gather(1, order.argsort(dim=1).unsqueeze(-1).expand(-1, -1, 16))
    tokens = torch.cat([embedded[:, :num_prefix_tokens], raster], dim=1) + decoder.decoder_pos_embed
    tokens = decoder.decoder_norm(decoder.decoder_blocks(tokens))
    expected = decoder.decoder_pred(tokens)[:, num_prefix_tokens:]

    torch.testing.assert_close(decoder.predict_all(prefix, patches, visible, hidden), expected, rtol=0, atol=1e-5)
    wanted = expected.gather(1, hidden.unsqueeze(-1).expand(-1, -1, 12))
    torch.testing.assert_close(decoder(prefix, patches, visible, hidden), wanted, rtol=0, atol=1e-5)
    assert decoder.picture(expected).shape == (2, 3, 6, 6)


def test_maes_positions_are_fixed_and_stored() -> None:
    decoder = mae_decoder()
    assert not decoder.decoder_pos_embed.requires_grad and "decoder_pos_embed" in decoder.state_dict()
    names = {name.split(".")[0] for name in decoder.state_dict()}
    assert names == {
        "mask_token",
        "decoder_embed",
        "decoder_pos_embed",
        "decoder_blocks",
        "decoder_norm",
        "decoder_pred",
    }


@pytest.mark.parametrize(("width", "patch_size", "millions"), [(768, 16, 26.11), (1024, 16, 26.24), (1280, 14, 26.31)])
def test_published_parameter_counts_of_maes_decoder(width: int, patch_size: int, millions: float) -> None:
    side = 224 // patch_size
    with torch.device("meta"):
        decoder = MAEDecoder(width, (side, side), patch_size)
    assert round(sum(p.numel() for p in decoder.parameters()) / 1e6, 2) == millions
