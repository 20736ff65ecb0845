"""Tiny networks, crops and masks for the tests of iBOT."""

import numpy as np
import torch

from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.methods.ibot import IBOT, IBOTConfig
from halfseen.types import Batch, Progress
from settings import config_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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


def make_batch(method: IBOT, rows: int = 4) -> Batch:
    """Views of noise in cells, and what the method's view plan computes beside them."""
    random = np.random.default_rng(5)
    plan = method.view_plan()
    views = []
    for spec in plan.views:
        for _ in range(spec.count):
            cells = random.integers(0, 256, (rows, 3, spec.size // 4, spec.size // 4), dtype=np.uint8)
            views.append(torch.from_numpy(cells.repeat(4, axis=2).repeat(4, axis=3)))
    extras: dict[str, torch.Tensor] = {}
    if plan.extras is not None:
        drawn = [plan.extras((), random) for _ in range(rows)]
        extras = {key: torch.from_numpy(np.stack([each[key] for each in drawn])) for key in drawn[0]}
    return Batch(tuple(views), torch.arange(rows), torch.full((rows,), -1), extras)


def rows_of(batch: Batch, rows: slice | torch.Tensor) -> Batch:
    """Some images of a batch."""
    return Batch(
        tuple(view[rows] for view in batch.views),
        batch.index[rows],
        batch.labels[rows],
        {key: value[rows] for key, value in batch.extras.items()},
    )


def progress(step: int = 0, row_start: int = 0, seed: int = 0) -> Progress:
    """Ten steps of two epochs, four images each."""
    return Progress(step, 10, 5, seed, row_start, 4)
