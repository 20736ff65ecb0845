"""ViTs with a convolutional stem: sizes, names, hiding, and what other parts say of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from halfseen.backbones.build import build_encoder, timm_call
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.conv_stem import ConvStem
from halfseen.backbones.initialise import init_kamim, init_mae
from halfseen.backbones.weights import export_encoder, import_checkpoint, load_encoder
from halfseen.errors import ConfigError, ShapeError

SMALL = ModelConfig(name="vitc_4gf", patch_size=4, embed_dim=32, depth=2, num_heads=4)


@pytest.mark.parametrize(("name", "mlp_ratio"), [("vitc_4gf", 3), ("vit_small_convstem", 6)])
def test_presets_have_the_published_sizes(name: str, mlp_ratio: int) -> None:
    encoder = build_encoder(ModelConfig(name=name), 224, device="meta")
    stem = encoder.trunk.patch_embed.conv
    convolutions = [part for part in stem if isinstance(part, nn.Conv2d)]
    assert [part.out_channels for part in convolutions] == [48, 96, 192, 384, 384]
    assert [part.kernel_size[0] for part in convolutions] == [3, 3, 3, 3, 1]
    assert [part.stride[0] for part in convolutions] == [2, 2, 2, 2, 1]
    assert [part.bias is not None for part in convolutions] == [False, False, False, False, True]
    assert encoder.num_layers == 11 and encoder.embed_dim == 384 and encoder.num_heads == 6
    assert encoder.blocks[0].mlp.fc1.out_features == mlp_ratio * 384
    assert tuple(encoder.trunk.pos_embed.shape) == (1, 197, 384)
    names = {key.removeprefix("patch_embed.") for key in encoder.trunk.state_dict() if key.startswith("patch_embed.")}
    assert {"conv.0.weight", "conv.1.running_mean", "conv.10.num_batches_tracked", "conv.12.bias"} <= names
    assert {part.eps for part in encoder.modules() if isinstance(part, nn.LayerNorm)} == {1e-6}


def test_a_token_stands_for_the_pixels_of_its_patch_and_its_neighbours() -> None:
    stem = ConvStem(16, 4, 3, 8).eval()
    images = torch.randn(1, 3, 16, 16)
    tokens = stem(images)
    assert tokens.shape == (1, 16, 8)
    other = images.clone()
    other[..., 12:, 12:] += 1  # the last patch; each 3x3 window looks one pixel back, never ahead
    changed = (stem(other) != tokens).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [15]
    other = images.clone()
    other[..., :4, :4] += 1
    changed = (stem(other) != tokens).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [0, 1, 4, 5]


def test_statistics_are_those_of_the_batch_while_training() -> None:
    encoder = build_encoder(SMALL, 28)
    images = torch.randn(2, 3, 28, 28) * 3 + 5
    first = encoder(images).patches
    norm = encoder.trunk.patch_embed.conv[1]
    assert int(norm.num_batches_tracked) == 1 and norm.running_mean.any()
    assert not torch.allclose(first, encoder.eval()(images).patches, atol=1e-3)


def test_patch_sizes_are_powers_of_two() -> None:
    for patch_size, width in ((7, 32), (1, 32), (16, 36)):
        with pytest.raises(ShapeError, match="convolutional stem"):
            ConvStem(32, patch_size, 3, width)


def test_mae_refuses_it_and_initialisation_resets_its_statistics() -> None:
    encoder, generator = build_encoder(SMALL, 28), torch.Generator().manual_seed(0)
    decoder = nn.Linear(32, 48)
    with pytest.raises(ConfigError, match="hidden patches would be seen"):
        init_mae(encoder, decoder, generator)
    encoder(torch.randn(2, 3, 28, 28) + 5)
    init_kamim(encoder, torch.zeros(32), decoder, generator)
    norm = encoder.trunk.patch_embed.conv[4]
    assert not norm.running_mean.any() and int(norm.num_batches_tracked) == 0


def test_timm_has_no_name_for_it_and_the_export_says_so(tmp_path: Path) -> None:
    assert timm_call(SMALL, 28) is None
    encoder = build_encoder(SMALL, 28).eval()
    export_encoder(encoder, tmp_path, mean=(0.5,) * 3, std=(0.5,) * 3)
    about = json.loads((tmp_path / "encoder.json").read_text())
    assert about["timm"] is None and "timm has no name" in about["notes"][0]
    back = load_encoder(tmp_path).encoder.eval()
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(back(images).patches, encoder(images).patches)


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_its_sizes_are_read_off_the_weights(prefix: str, tmp_path: Path) -> None:
    encoder = build_encoder(SMALL, 28).eval()
    save_file({prefix + name: tensor for name, tensor in encoder.state_dict().items()}, tmp_path / "own.safetensors")
    found = import_checkpoint(tmp_path / "own.safetensors", num_heads=4)
    assert found.config == SMALL and found.image_size == 28
    images = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(found.build().eval()(images).patches, encoder(images).patches)


@pytest.mark.parametrize("name", ["vit_tiny", "vitc_4gf"])
def test_a_border_that_fills_no_patch_is_cut_off_when_asked(name: str) -> None:
    settings = {"name": name, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}
    strict = build_encoder(ModelConfig.model_validate(settings), 16).eval()
    asked = ModelConfig.model_validate({**settings, "crop_to_patches": True})
    generous = build_encoder(asked, 18).eval()
    generous.load_state_dict(strict.state_dict())
    images = torch.randn(2, 3, 19, 17)
    with torch.no_grad():
        assert torch.equal(generous(images).patches, strict(images[..., :16, :16]).patches)
    for call in (lambda: strict(images), lambda: build_encoder(ModelConfig.model_validate(settings), 18)):
        with pytest.raises(ShapeError, match="both sides must be"):
            call()
