import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from halfseen.backbones import initialise
from halfseen.backbones.base import Encoder
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.backbones.decoders import LinearPatchDecoder, MAEDecoder, PixelShuffleDecoder
from halfseen.backbones.heads import DistillationHead, MSNHead
from halfseen.errors import ConfigError

VIT = ModelConfig(name="vit_tiny", patch_size=8, embed_dim=64, depth=3, num_heads=4)
SWIN = ModelConfig(name="swin_tiny", embed_dim=32, depths=(2, 2), num_heads=2)
BEIT = ModelConfig(name="simmim_vit_tiny", patch_size=8, embed_dim=64, depth=3, num_heads=4)
VINY = ModelConfig(name="viny_4m", patch_size=8, embed_dim=64, depth=2, num_heads=2, head_dim=32)

Init = Callable[[Encoder, torch.Tensor, nn.Module, torch.Generator], None]


def initialised(config: ModelConfig, init: Init, seed: int = 5) -> tuple[Encoder, nn.Parameter, nn.Module]:
    encoder = build_encoder(config, 32)
    mask_token = nn.Parameter(torch.full((1, 1, encoder.mask_dim), 7.0))
    decoder: nn.Module = (
        LinearPatchDecoder(encoder.embed_dim, 8) if config is VINY else PixelShuffleDecoder(encoder.embed_dim, 8)
    )
    init(encoder, mask_token, decoder, torch.Generator().manual_seed(seed))
    return encoder, mask_token, decoder


CASES = [
    (VIT, initialise.init_kamim),
    (SWIN, initialise.init_kamim),
    (VIT, initialise.init_simmim),
    (SWIN, initialise.init_simmim),
    (BEIT, initialise.init_simmim),
    (VINY, initialise.init_simmim),
]


@pytest.mark.parametrize(("config", "init"), CASES)
def test_all_weights_are_a_function_of_the_generator(config: ModelConfig, init: Init) -> None:
    runs = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)  # the framework's own draws must leave no trace
        encoder, mask_token, decoder = initialised(config, init)
        runs.append({**encoder.state_dict(), "mask": mask_token.data, **decoder.state_dict(prefix="decoder.")})
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    other, _, _ = initialised(config, init, seed=6)
    assert not torch.equal(
        other.state_dict()["trunk.patch_embed.proj.weight"], runs[0]["trunk.patch_embed.proj.weight"]
    )


def test_mae() -> None:
    encoder = build_encoder(VIT, 32)
    decoder = MAEDecoder(64, (4, 4), 8, embed_dim=32, depth=1, num_heads=2)
    initialise.init_mae(encoder, decoder, torch.Generator().manual_seed(0))
    trunk = encoder.trunk
    qkv = trunk.blocks[0].attn.qkv
    bound = math.sqrt(6 / (64 + 3 * 64))  # Xavier on the whole 3D x D matrix
    assert qkv.weight.abs().max() <= bound and qkv.weight.abs().max() > 0.97 * bound and not qkv.bias.any()
    projection = trunk.patch_embed.proj
    bound = math.sqrt(6 / (64 + 3 * 64))
    assert 0.97 * bound < projection.weight.abs().max() <= bound
    assert projection.bias.any() and projection.bias.abs().max() <= 1 / math.sqrt(3 * 64)
    assert 0.01 < trunk.cls_token.std() < 0.03 and 0.01 < decoder.mask_token.std() < 0.03
    assert not trunk.pos_embed.requires_grad and not trunk.pos_embed[:, 0].any()
    with pytest.raises(ConfigError, match="plain ViT"):
        initialise.init_mae(build_encoder(SWIN, 32), decoder, torch.Generator())


def test_official_simmim_vit_is_cut_at_one_standard_deviation_and_scaled_by_depth() -> None:
    encoder, mask_token, decoder = initialised(BEIT, initialise.init_simmim)
    for tensor in (mask_token, encoder.trunk.cls_token, encoder.trunk.patch_embed.proj.weight):
        assert 0.018 < tensor.abs().max() <= 0.02
    assert not encoder.trunk.patch_embed.proj.bias.any()
    for number, block in enumerate(encoder.blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert float(weight.detach().abs().max()) * math.sqrt(2 * number) == pytest.approx(0.02, rel=1e-2)
        assert 0.0199 < block.mlp.fc1.weight.abs().max() <= 0.02
        assert torch.equal(block.gamma_1, torch.full((64,), 0.1)) and not block.attn.q_bias.any()
    assert not encoder.trunk.rel_pos_bias.relative_position_bias_table.any()
    assert decoder.projection.bias.any()  # the framework's default


def test_official_simmim_swin() -> None:
    encoder, mask_token, _ = initialised(SWIN, initialise.init_simmim)
    block = encoder.blocks[0]
    for tensor in (mask_token, block.attn.relative_position_bias_table, block.mlp.fc1.weight):
        assert 0.012 < tensor.std() < 0.028
    assert block.mlp.fc1.weight.abs().max() > 0.04  # cut at the absolute value 2, hence not at all
    assert encoder.trunk.patch_embed.proj.bias.any()


@pytest.mark.parametrize("config", [VIT, SWIN])
def test_kamim_is_truncated_normal_and_zero(config: ModelConfig) -> None:
    encoder, mask_token, decoder = initialised(config, initialise.init_kamim)
    assert not mask_token.any() and not decoder.projection.bias.any()
    assert 0.015 < decoder.projection.weight.std() < 0.025
    assert not encoder.trunk.patch_embed.proj.bias.any()
    if config is VIT:
        assert 0.015 < encoder.trunk.pos_embed.std() < 0.025


def test_viny_has_unit_normal_tokens_and_default_layers() -> None:
    encoder, mask_token, decoder = initialised(VINY, initialise.init_simmim)
    assert 0.8 < encoder.trunk.pos_embed.std() < 1.2 and 0.6 < mask_token.std() < 1.4
    weight = encoder.blocks[0].mlp.fc1.weight
    assert 0.97 / 8 < weight.abs().max() <= 1 / 8  # uniform within 1 / sqrt(64)
    assert decoder.bias.any()


STEM = ModelConfig(name="vitc_4gf", patch_size=8, embed_dim=64, depth=1, num_heads=2)


def scrambled(*modules: nn.Module) -> None:
    """Leave nothing of what the framework has put there."""
    with torch.no_grad():
        for module in modules:
            for tensor in module.state_dict().values():
                tensor.fill_(7)


@pytest.mark.parametrize("config", [VIT, SWIN])
@pytest.mark.parametrize("norm", [None, "bn", "syncbn", "csyncbn", "ln"])
def test_ibot_is_truncated_normal_but_for_patch_projection_and_last_layers(
    config: ModelConfig, norm: str | None
) -> None:
    runs = []
    for _ in range(2):
        encoder = build_encoder(config, 32)
        head = DistillationHead(64, 300, 200, hidden_dim=128, bottleneck_dim=64, norm=norm)
        mask_token = nn.Parameter(torch.ones(1, encoder.mask_dim))
        scrambled(encoder, head)
        initialise.init_ibot(encoder, head, mask_token, torch.Generator().manual_seed(3))
        runs.append({**encoder.state_dict(), **head.state_dict(prefix="head.")})
    buffers = ("relative_position_index", "attn_mask")
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]), name
        assert name.endswith(buffers) or not (tensor == 7).any(), f"{name} is not initialised"
    assert not mask_token.any()
    drawn = [encoder.blocks[0].mlp.fc1.weight, head.mlp[0].weight, head.mlp[-1].weight]
    if config is VIT:
        drawn += [encoder.trunk.pos_embed, encoder.trunk.cls_token]
    else:
        drawn += [encoder.blocks[0].attn.relative_position_bias_table]
    for tensor in drawn:
        assert 0.012 < tensor.std() < 0.028
    assert drawn[0].abs().max() > 0.05, "cut at the absolute value 2, hence not at all"
    assert not head.mlp[0].bias.any() and not encoder.blocks[0].attn.qkv.bias.any()
    projection = encoder.trunk.patch_embed.proj
    bound = 1 / math.sqrt(projection.weight[0].numel())
    assert 0.97 * bound < projection.weight.abs().max() <= bound and projection.bias.any()
    for layer in (head.last_layer, head.last_layer2):
        assert 0.97 / 8 < layer.weight_v.abs().max() <= 1 / 8 and layer.weight_v.std() > 0.9 / 8 / math.sqrt(3)
        assert (layer.weight_g == 1).all()
    assert not torch.equal(head.last_layer.weight_v[:200], head.last_layer2.weight_v)


@pytest.mark.parametrize("config", [VIT, STEM])
def test_msn_draws_convolutions_by_their_inputs(config: ModelConfig) -> None:
    runs = []
    for _ in range(2):
        encoder, head, prototypes = build_encoder(config, 32), MSNHead(64, 128, 64), nn.Parameter(torch.ones(300, 64))
        scrambled(encoder, head)
        initialise.init_msn(encoder, head, prototypes, torch.Generator().manual_seed(3))
        runs.append({**encoder.state_dict(), **head.state_dict(prefix="head."), "prototypes": prototypes.data})
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]) and not (tensor == 7).any(), name
    for tensor in (encoder.trunk.pos_embed, encoder.blocks[0].mlp.fc1.weight, head.fc1.weight, head.fc3.weight):
        assert 0.015 < tensor.std() < 0.025
    for convolution in (part for part in encoder.modules() if isinstance(part, nn.Conv2d)):
        expected = math.sqrt(2 / convolution.weight[0].numel())
        assert 0.9 * expected < convolution.weight.std() < 1.1 * expected
        assert convolution.bias is None or not convolution.bias.any()
    assert not head.fc2.bias.any() and (head.bn2.weight == 1).all() and not head.bn1.running_mean.any()
    assert 0.97 / 8 < prototypes.abs().max() <= 1 / 8 and prototypes.std() > 0.9 / 8 / math.sqrt(3)
