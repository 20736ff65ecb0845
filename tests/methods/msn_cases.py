"""Tiny networks and views for the tests of MSN."""

from configurations import config_of
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.methods.msn import MSN, MSNConfig
from methods.steps import MEAN, STD

SIZE, FOCAL_SIZE = 32, 16
VIT = ModelConfig(name="vit_small", patch_size=8, embed_dim=16, depth=2, num_heads=2, position_rule="scale")
SMALL = {"num_prototypes": 12, "hidden_dim": 16, "output_dim": 8}
FOCAL = {"focal_size": FOCAL_SIZE, "focal_views": 2}


def build(model: ModelConfig = VIT, seed: int = 0, **settings: object) -> MSN:
    """A method in training mode; unless told otherwise one random and two focal views, with 4 of 16 patches dropped."""
    config = config_of(MSNConfig, SMALL | FOCAL | {"patch_drop": 0.25}, settings)
    return MSN(config, build_encoder(model, SIZE), SIZE, MEAN, STD, seed).train()
