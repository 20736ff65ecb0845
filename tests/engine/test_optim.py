"""Groups, optimisers and learning rates against the originals' recorded numbers and torch's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from halfseen.engine.config import BatchSplit, LearningRateConfig, OptimizerConfig, TrainConfig
from halfseen.engine.optim import (
    LARS,
    LearningRate,
    build_optimizer,
    clip_gradients,
    gradient_norm,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
)
from halfseen.errors import CheckpointError
from halfseen.types import GroupKey
from parity.discovery import load_arrays, parity_files, state_under

CPU = torch.device("cpu")


def grouping(name: str, parameter: nn.Parameter) -> GroupKey:
    return GroupKey(decay=parameter.ndim > 1, lr_scale=0.5 if name.startswith("0.") else 1.0)


def make(config: OptimizerConfig, seed: int = 0) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[1].bias.requires_grad_(False)
    return model, build_optimizer(parameter_groups(model.named_parameters(), grouping, config), config, CPU)


def test_groups_follow_the_keys_and_leave_out_frozen_parameters() -> None:
    _, optimizer = make(OptimizerConfig(weight_decay=0.1))
    found = {name: (g["weight_decay"], g["lr_scale"]) for g in optimizer.param_groups for name in g["names"]}
    assert found == {
        "0.weight": (0.1, 0.5),
        "0.bias": (0.0, 0.5),
        "1.weight": (0.0, 1.0),
        "2.weight": (0.1, 1.0),
        "2.bias": (0.0, 1.0),
    }
    assert len(optimizer.param_groups) == 4


def test_decay_all_decays_biases_too() -> None:
    _, optimizer = make(OptimizerConfig(weight_decay=0.1, decay_all=True))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_a_parameter_may_join_later_as_if_it_started_then(name: str) -> None:
    """Methods freeze layers at first by taking their gradients away."""
    model, optimizer = make(OptimizerConfig(name=name))
    fresh, other = make(OptimizerConfig(name=name))
    for step in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        if step == 0:
            model[2].weight.grad = None
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.step()
    fresh[2].weight.grad = torch.ones_like(fresh[2].weight)
    for group in other.param_groups:
        group["lr"] = 0.1
    other.step()
    torch.testing.assert_close(model[2].weight, fresh[2].weight)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_moments_are_saved_by_name_and_survive_other_groups(name: str) -> None:
    """The moments go back to their parameters even if the groups are cut in another way."""
    config = OptimizerConfig(name=name)
    model, optimizer = make(config)
    one_group = OptimizerConfig(name=name, decay_all=True)
    for _ in range(3):
        model(torch.randn(5, 3)).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
    saved = {key: value.clone() for key, value in optimizer_tensors(optimizer).items()}
    assert any(key.startswith("2.weight|") for key in saved)
    _, fresh = make(one_group, seed=1)
    load_optimizer_tensors(fresh, saved)
    again = optimizer_tensors(fresh)
    assert again.keys() == saved.keys()
    for key, value in saved.items():
        assert torch.equal(value, again[key]), key


def test_moments_of_unknown_parameters_and_other_shapes_are_refused() -> None:
    _, optimizer = make(OptimizerConfig())
    with pytest.raises(CheckpointError, match="unknown parameters: other"):
        load_optimizer_tensors(optimizer, {"other|exp_avg": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"'exp_avg' of '2.bias' has shape \(3,\)"):
        load_optimizer_tensors(optimizer, {"2.bias|exp_avg": torch.zeros(3)})


def test_clipping_equals_torchs_own() -> None:
    parameters = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad, parameters[1].grad = torch.randn(3, 4), torch.randn(5)
    copies = [nn.Parameter(torch.zeros_like(parameter)) for parameter in parameters]
    for copy, parameter in zip(copies, parameters, strict=True):
        copy.grad = None if parameter.grad is None else parameter.grad.clone()
    expected = nn.utils.clip_grad_norm_(copies, 0.7)
    assert torch.equal(gradient_norm(parameters), expected)
    assert torch.equal(clip_gradients(parameters, 0.7), expected)
    assert float(gradient_norm(parameters)) == pytest.approx(0.7, rel=1e-5)
    for copy, parameter in zip(copies, parameters, strict=True):
        assert (copy.grad is None) == (parameter.grad is None)
        if copy.grad is not None:
            assert torch.equal(copy.grad, parameter.grad)


@pytest.mark.parametrize("path", parity_files("mae", "schedules_and_utils"))
def test_lars_equals_the_original(path: Path) -> None:
    """A batch-normed linear probe trained for the recorded steps; 1e-5 as the vectors promise."""
    arrays = load_arrays(path)
    lr, weight_decay, momentum, trust = (float(value) for value in arrays["lars.lr_wd_momentum_trust"])
    initial, final = state_under(arrays, "lars.init."), state_under(arrays, "lars.final.")
    classes, width = initial["1.weight"].shape
    head = nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), nn.Linear(width, classes))
    head.load_state_dict(initial)
    config = OptimizerConfig(name="lars", weight_decay=weight_decay, momentum=momentum, trust=trust)
    groups = parameter_groups(head.named_parameters(), lambda name, parameter: GroupKey(decay=True), config)
    optimizer = build_optimizer(groups, config, CPU)
    optimizer.param_groups[0]["lr"] = lr
    for step, expected in enumerate(arrays["lars.losses"]):
        images, labels = torch.from_numpy(arrays[f"lars.x{step}"]), torch.from_numpy(arrays[f"lars.y{step}"])
        loss = nn.functional.cross_entropy(head(images), labels)
        assert loss.item() == pytest.approx(expected, abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, tensor in head.state_dict().items():
        torch.testing.assert_close(tensor, final[name], rtol=1e-5, atol=1e-5, msg=name)


def test_lars_leaves_a_zero_weight_its_plain_gradient() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.1))


def learning_rate(
    train: TrainConfig, steps_per_epoch: int, accumulation: int = 1, micro_batches: int | None = None
) -> LearningRate:
    rows = steps_per_epoch * accumulation if micro_batches is None else micro_batches
    return LearningRate.of_run(train, BatchSplit(accumulation, 1, accumulation), steps_per_epoch, rows)


@pytest.mark.parametrize("path", parity_files("mae", "schedules_and_utils"))
def test_mae_learning_rates_of_a_run(path: Path) -> None:
    arrays = load_arrays(path)
    for name in [key for key in arrays if key.startswith("lr") and key.endswith(".json")]:
        settings = json.loads(str(arrays[name]))
        lr = {"base": settings["lr"] / 4, "reference_batch": 256, "schedule": "mae_cosine", "min": settings["min_lr"]}
        train = TrainConfig(
            epochs=settings["epochs"],
            batch_size=1024,
            lr=LearningRateConfig(**lr, warmup_epochs=settings["warmup_epochs"]),
        )
        rate = learning_rate(train, settings["ipe"])
        expected = arrays[name.replace(".json", ".lr")]
        assert [rate(step) for step in range(len(expected))] == pytest.approx(expected.tolist(), rel=1e-12, abs=1e-18)
        assert rate(7, 0.5) == pytest.approx(0.5 * rate(7))


@pytest.mark.parametrize("path", parity_files("kamim", "lr_"))
def test_kamim_learning_rates_of_a_run(path: Path) -> None:
    """The micro-batch quirk and the plain curve, over epochs + warm-up epochs."""
    arrays = load_arrays(path)
    value = {name: arrays[name].item() for name in arrays if arrays[name].ndim == 0}
    batch, accumulation, images = int(value["batch_size"]), int(value["accumulation"]), int(value["N"])
    epochs, warmup = int(value["epochs"]), int(value["warmup_epochs"])
    per_epoch, micro = -(-images // batch), -(-images // (batch // accumulation))
    lr = {
        "base": value["base_lr"],
        "reference_batch": None,
        "schedule": "kamim_cosine",
        "min": value["lr_min"],
        "warmup_start": value["warmup_lr_init"],
        "warmup_epochs": warmup,
        "epochs": epochs,
    }
    quirk = TrainConfig(
        epochs=epochs + warmup, batch_size=batch, lr=LearningRateConfig(**lr, lag_steps=1, index="microbatch")
    )
    plain = TrainConfig(epochs=epochs + warmup, batch_size=batch, lr=LearningRateConfig(**lr))
    used = arrays["lr_used_per_optimizer_step"]
    rate = learning_rate(quirk, per_epoch, accumulation, micro)
    assert [rate(step) for step in range(len(used))] == pytest.approx(used.tolist(), rel=1e-12)
    curve = arrays["lr_at_t"]
    rate = learning_rate(plain, per_epoch, accumulation, micro)
    assert [rate(step) for step in range(len(curve))] == pytest.approx(curve.tolist(), rel=1e-12)


@pytest.mark.parametrize("path", parity_files("simmim", "lr_schedule"))
@pytest.mark.parametrize("schedule", ["cosine", "multistep"])
def test_simmim_learning_rates_of_a_run(path: Path, schedule: str) -> None:
    arrays = load_arrays(path)
    meta = {
        name.removeprefix("meta/"): np.atleast_1d(array) for name, array in arrays.items() if name.startswith("meta/")
    }
    used = arrays[f"{schedule}/lr_used"]
    steps_per_epoch = int(meta["steps_per_epoch"][0])
    lr: dict = {"base": float(meta["base_lr"][0]), "reference_batch": None, "lag_steps": 1}
    lr |= {"warmup_start": float(meta["warmup_lr"][0]), "warmup_epochs": float(meta["warmup_epochs"][0])}
    if schedule == "cosine":
        lr |= {"schedule": "simmim_cosine", "min": float(meta["min_lr"][0])}
    else:
        milestones = tuple(float(epoch) for epoch in meta["multisteps_epochs"])
        lr |= {"schedule": "multistep", "milestones": milestones, "gamma": float(meta["gamma"][0])}
    train = TrainConfig(epochs=float(meta["epochs"][0]), lr=LearningRateConfig(**lr))
    rate = learning_rate(train, steps_per_epoch)
    for group, scale in enumerate(meta["group_scale"]):
        found = [rate(step, float(scale)) for step in range(len(used))]
        assert found == pytest.approx(used[:, group].tolist(), rel=1e-9)


def test_simmim_scales_all_three_rates_by_the_batch() -> None:
    lr = LearningRateConfig(
        base=1e-4,
        reference_batch=512,
        schedule="simmim_cosine",
        warmup_epochs=1,
        warmup_start=5e-7,
        min=1e-5,
        scale_all=True,
    )
    rate = learning_rate(TrainConfig(epochs=2, batch_size=2048, lr=lr), 10)
    assert rate(0) == pytest.approx(4 * 5e-7)
    assert rate.peak == pytest.approx(4e-4)
    assert rate(20) == pytest.approx(4e-5)


def test_micro_batch_index_of_simmim_measures_epochs_in_micro_batches() -> None:
    lr: dict = {"base": 1e-3, "reference_batch": None, "schedule": "simmim_cosine", "lag_steps": 1}
    plain = learning_rate(TrainConfig(epochs=4, lr=LearningRateConfig(**lr)), 5, accumulation=1)
    counted = learning_rate(TrainConfig(epochs=4, lr=LearningRateConfig(**lr, index="microbatch")), 5, accumulation=3)
    # Update g runs at the rate of micro-batch 3 g - 1 of 60, where `plain` has that of update g - 1 of 20.
    assert counted(0) == plain(0) == 1e-3
    for step in range(1, 20):
        expected = 0.5e-3 * (1 + np.cos(np.pi * (3 * step - 1) / 60))
        assert counted(step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"schedule": "constant", "warmup_epochs": 1}, [0, 0.5, 1, 1, 1, 1]),
        ({"schedule": "step", "decay_epochs": 1, "gamma": 0.1}, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        ({"schedule": "linear"}, [1, 0.835, 0.67, 0.505, 0.34, 0.175]),
    ],
)
def test_the_other_schedules(settings: dict, values: list[float]) -> None:
    train = TrainConfig(epochs=3, lr=LearningRateConfig(base=1.0, reference_batch=None, **settings))
    rate = learning_rate(train, 2)
    assert [rate(step) for step in range(6)] == pytest.approx(values)
