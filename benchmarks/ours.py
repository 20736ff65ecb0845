"""A training step of this library on a fixed batch, with the parts that a run uses: method, autocast, optimiser."""

import torch
from pydantic import TypeAdapter
from torch import Tensor

from benchmarks.cases import Case, Contestant
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.data.config import IMAGENET_MEAN, IMAGENET_STD
from halfseen.engine.config import TrainConfig
from halfseen.engine.optim import build_optimizer, clip_each_tensor, clip_gradients, parameter_groups
from halfseen.methods.base import Method
from halfseen.methods.table import MethodConfig, build_method
from halfseen.ops.precision import autocast
from halfseen.ops.recompute import activation_checkpointing
from halfseen.types import Batch, Progress

TOTAL_STEPS = 100_000
"""Steps of the whole run of which a few are measured; its length is only asked for by schedules."""


def build(case: Case) -> Method:
    """The method of a case with its published settings, on its encoder."""
    model = ModelConfig.model_validate({"name": case.model, **case.model_settings})
    encoder = build_encoder(model, case.image_size)
    config = TypeAdapter(MethodConfig).validate_python({"name": case.method, **case.settings})
    return build_method(config, encoder, case.image_size, IMAGENET_MEAN, IMAGENET_STD)


def build_ours(case: Case, precision: str, batch: Batch, checkpoints: bool = False) -> Contestant:
    """Our contestant of a case, ready to take steps; with `checkpoints`, blocks keep their inputs only."""
    torch.manual_seed(0)
    method = build(case).train()
    train = TrainConfig.model_validate(case.train)
    device = torch.device("cpu")
    groups = parameter_groups(method.named_parameters(), method.parameter_group, train.optimizer)
    clipped = [parameter for group in groups if group["clip"] for parameter in group["params"]]
    clip = clip_each_tensor if train.clip_scope == "tensor" else clip_gradients
    optimizer = build_optimizer(groups, train.optimizer, device)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    done = TOTAL_STEPS // 2  # In the middle of a run nothing is frozen any more.

    def progress() -> Progress:
        return Progress(
            step=done,
            total_steps=TOTAL_STEPS,
            steps_per_epoch=TOTAL_STEPS // 100,
            seed=0,
            row_start=0,
            global_batch_size=case.batch_size,
        )

    def forward() -> Tensor:
        with autocast(device, precision), activation_checkpointing(checkpoints):
            return method(batch, progress()).loss

    def backward(loss: Tensor) -> None:
        loss.backward()

    def update() -> None:
        nonlocal done
        if train.clip_norm is not None:
            clip(clipped, train.clip_norm)
        method.before_update(progress())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(progress())
        done += 1

    trained = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    return Contestant(forward, backward, update, trained)
