"""Tiny networks, crops and masks for the tests of iBOT."""

from configurations import config_of
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.methods.ibot import IBOT, IBOTConfig
from methods.steps import MEAN, STD

SIZE, LOCAL_SIZE = 32, 16
VIT = ModelConfig(name="vit_small", patch_size=8, embed_dim=16, depth=3, num_heads=2, position_rule="scale_offset")
SWIN = ModelConfig(name="swin_tiny", patch_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2))
HEAD = {"out_dim": 12, "head_hidden_dim": 16, "head_bottleneck_dim": 8}
SHARED = {"shared_head": True, "shared_head_teacher": True}
BLOCKS = {"kind": "block", "pred_ratio": 0.4, "pred_ratio_var": 0.1}
HIGH = {"kind": "attention", "pred_ratio": 0.4, "masking_prob": 1.0}
ROLLOUT = HIGH | {"score": "rollout"}


def build(model: ModelConfig = VIT, seed: int = 0, **settings: object) -> IBOT:
    """A method in training mode; unless told otherwise its heads share their layers and its masks hide something."""
    given = {"mask": BLOCKS, "local_crop_size": LOCAL_SIZE, "local_crops_number": 1, "freeze_last_layer": 0}
    config = config_of(IBOTConfig, HEAD | SHARED | given, settings)
    return IBOT(config, build_encoder(model, SIZE), SIZE, MEAN, STD, seed).train()
