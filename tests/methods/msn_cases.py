"""Tiny networks and views for the tests of MSN."""

import numpy as np
import torch

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.methods.msn import MSN, MSNConfig
from halfseen.types import Batch, Progress
from settings import config_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, FOCAL_SIZE = 32, 16
VIT = ModelConfig(name="vit_small", patch_size=8, embed_dim=16, depth=2, num_heads=2, position_rule="scale")
SMALL = {"num_prototypes": 12, "hidden_dim": 16, "output_dim": 8}
FOCAL = {"focal_size": FOCAL_SIZE, "focal_views": 2}


def build(model: ModelConfig = VIT, seed: int = 0, **settings: object) -> MSN:
    """A method in training mode; unless told otherwise one random and two focal views, with 4 of 16 patches dropped."""
    config = config_of(MSNConfig, SMALL | FOCAL | {"patch_drop": 0.25}, settings)
    return MSN(config, build_encoder(model, SIZE), SIZE, MEAN, STD, seed).train()


def make_batch(method: MSN, rows: int = 4) -> Batch:
    """Views of noise in cells of 4 pixels."""
    random = np.random.default_rng(5)
    views = []
    for spec in method.view_plan().views:
        for _ in range(spec.count):
            side = -(-spec.size // 4)
            cells = random.integers(0, 256, (rows, 3, side, side), dtype=np.uint8)
            pixels = cells.repeat(4, axis=2).repeat(4, axis=3)[..., : spec.size, : spec.size]
            views.append(torch.from_numpy(np.ascontiguousarray(pixels)))
    return Batch(tuple(views), torch.arange(rows), torch.full((rows,), -1))


def rows_of(batch: Batch, rows: slice | torch.Tensor) -> Batch:
    """Some images of a batch."""
    return Batch(tuple(view[rows] for view in batch.views), batch.index[rows], batch.labels[rows])


def progress(step: int = 0, row_start: int = 0, seed: int = 0) -> Progress:
    """Ten steps of two epochs, four images each."""
    return Progress(step, 10, 5, seed, row_start, 4)
