import pytest

from halfseen.ops.layer_decay import (
    finetune_decays,
    layer_decay_scales,
    swin_finetune_group,
    swin_layer_id,
    vit_finetune_group,
    vit_layer_id,
)
from halfseen.types import GroupKey


def test_ids_of_a_vit() -> None:
    names = ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.11.mlp.fc2.bias"]
    assert [vit_layer_id(name, 12) for name in names] == [0, 0, 0, 1, 12]
    assert [vit_layer_id(name, 12) for name in ("norm.weight", "fc_norm.bias", "head.weight")] == [13, 13, 13]


def test_ids_of_a_swin_in_timm_naming() -> None:
    depths = (2, 2, 6, 2)
    names = ["patch_embed.norm.bias", "layers.0.blocks.1.norm1.weight", "layers.1.downsample.reduction.weight"]
    assert [swin_layer_id(name, depths) for name in names] == [0, 2, 2]
    late = ["layers.3.blocks.0.attn.qkv.weight", "norm.weight", "head.fc.bias", "absolute_pos_embed"]
    assert [swin_layer_id(name, depths) for name in late] == [11, 13, 13, 13]


def test_scales_fall_by_the_decay_from_head_to_embedding() -> None:
    assert layer_decay_scales(2, 0.5) == (0.125, 0.25, 0.5, 1.0)
    assert vit_finetune_group("head.weight", 2, depth=12, layer_decay=0.75) == GroupKey(decay=True)
    assert vit_finetune_group("cls_token", 3, depth=2, layer_decay=0.5) == GroupKey(decay=False, lr_scale=0.125)
    group = swin_finetune_group("layers.1.blocks.0.attn.qkv.weight", 2, depths=(1, 1), layer_decay=0.5)
    assert (group.decay, group.lr_scale) == (True, pytest.approx(0.5))


def test_what_fine_tuning_does_not_decay() -> None:
    table = "blocks.0.attn.relative_position_bias_table"
    assert finetune_decays(table, 2)
    assert not finetune_decays(table, 2, decay_bias_tables=False)
    assert not finetune_decays("norm.weight", 1)
    assert not finetune_decays("pos_embed", 3)
    assert finetune_decays("patch_embed.proj.weight", 4)


@pytest.mark.parametrize("decayed", [False, True])
def test_bias_tables_of_a_swin_are_decayed_if_told(decayed: bool) -> None:
    table = "layers.1.blocks.0.attn.relative_position_bias_table"
    group = swin_finetune_group(table, 2, depths=(1, 1), layer_decay=0.5, decay_bias_tables=decayed)
    assert group == GroupKey(decay=decayed, lr_scale=0.5)
