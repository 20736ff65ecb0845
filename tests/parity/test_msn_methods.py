"""MSN as a whole against recorded training steps of the original: views in, weights out; and its schedules."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from configurations import config_of
from halfseen.backbones.build import build_encoder
from halfseen.backbones.config import ModelConfig
from halfseen.engine.config import OptimizerConfig
from halfseen.engine.optim import build_optimizer, clip_gradients, gradient_norm, parameter_groups
from halfseen.methods.msn import MSN, MSNConfig
from halfseen.ops.assignment import prototype_log_probs, sharpen, sinkhorn
from halfseen.ops.schedules import linear_ramp, msn_learning_rate, msn_weight_decay
from halfseen.types import Progress
from parity.discovery import load_arrays, parity_files, state_under

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALARS = ("loss", "ploss", "me_max", "ent")
CPU = torch.device("cpu")


def build(setting: dict) -> MSN:
    model = ModelConfig(
        name="vit_small",
        patch_size=setting["patch"],
        embed_dim=setting["dim"],
        depth=setting["depth"],
        num_heads=setting["heads"],
        mlp_ratio=setting["mlp_ratio"],
        norm_eps=setting["ln_eps"],
        position_rule="scale",
        crop_to_patches=setting["img"] % setting["patch"] > 0,
    )
    settings = {
        "num_prototypes": setting["num_proto"],
        "temperature": setting["temperature"],
        "start_sharpen": setting["start_sharpen"],
        "final_sharpen": setting["final_sharpen"],
        "memax_weight": setting["memax_weight"],
        "use_ent": setting["use_ent"],
        "ent_weight": setting["ent_weight"],
        "use_sinkhorn": setting["use_sinkhorn"],
        "label_smoothing": setting["label_smoothing"],
        "patch_drop": setting["patch_drop"],
        "rand_views": setting["rand_views"],
        "focal_views": setting["focal_views"],
        "focal_size": setting["focal"],
        "hidden_dim": setting["hidden"],
        "output_dim": setting["out"],
    }
    config = config_of(MSNConfig, settings)
    return MSN(config, build_encoder(model, setting["img"]), setting["img"], MEAN, STD).train()


def own_name(name: str) -> str:
    """The name that a tensor of the reference has here."""
    if name.startswith("encoder.fc."):
        return "head." + name.removeprefix("encoder.fc.")
    if name.startswith("target_encoder.fc."):
        return "teacher_head." + name.removeprefix("target_encoder.fc.")
    for theirs, ours in (("encoder.", "encoder.trunk."), ("target_encoder.", "teacher.trunk.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def is_noise(name: str) -> bool:
    """Gradients that vanish mathematically, and running means that absorb them (section 8 of the page)."""
    return name.endswith((".norm.bias", "fc1.bias", "fc2.bias", "running_mean")) and (
        "blocks" not in name or name.endswith("running_mean")
    )


def compared(name: str, tensor: np.ndarray, reference: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The parts of a tensor that are not noise: all but the key third of a qkv bias."""
    if is_noise(name):
        return
    if name.endswith("attn.qkv.bias"):
        third = len(reference) // 3
        yield tensor[:third], reference[:third]
        yield tensor[2 * third :], reference[2 * third :]
        return
    yield tensor, reference


def assert_near(found: object, expected: object, tolerance: float, what: str) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=what)


@contextlib.contextmanager
def listening(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of a module, call by call."""
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda _, given, out: outputs.append(out))
    yield outputs
    hook.remove()


def check_gradients(method: MSN, arrays: dict[str, np.ndarray], prefix: str) -> None:
    gradients = {name: parameter.grad for name, parameter in method.named_parameters() if parameter.grad is not None}
    recorded = [name for name in arrays if name.startswith(prefix)]
    for full in recorded:
        name = own_name(full.removeprefix(prefix))
        for found, expected in compared(name, gradients[name].numpy(), arrays[full]):
            assert_near(found, expected, 1e-4 * np.abs(arrays[full]).max(), full)


def check_gradient_statistics(method: MSN, expected: np.ndarray) -> None:
    norms = [
        float(parameter.grad.norm())
        for module in (method.encoder, method.head)
        for parameter in module.parameters()
        if parameter.ndim >= 2
    ]
    blocks = method.encoder.trunk.blocks
    first, last = (float(block.attn.qkv.weight.grad.norm()) for block in (blocks[0], blocks[-1]))
    found = [first, last, min(norms), max(norms), float(np.mean(norms))]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("path", parity_files("msn", "train_step_"))
def test_training_steps(path: Path) -> None:
    arrays = load_arrays(path)
    setting = json.loads(str(arrays["cfg_json"]))
    method = build(setting)
    state = {own_name(name): tensor for name, tensor in state_under(arrays, "init.").items()}
    method.load_state_dict(state)
    optimizer_config = OptimizerConfig(betas=(0.9, 0.999))
    groups = parameter_groups(method.named_parameters(), method.parameter_group, optimizer_config)
    optimizer = build_optimizer(groups, optimizer_config, CPU)
    clipped = [parameter for group in groups if group["clip"] for parameter in group["params"]]

    total, per_epoch = setting["ipe"] * setting["epochs"], setting["ipe"]
    horizon = int(method.schedule_horizon * total)
    names = [str(name) for name in arrays["scalar_names"]]
    steps = sum(name.endswith(".scalars") for name in arrays)
    assert steps >= 1
    rates = []
    for step in range(steps):
        prefix = f"step{step}."
        recorded = dict(zip(names, arrays[prefix + "scalars"].tolist(), strict=True))
        progress = Progress(step, total, per_epoch, 0, 0, setting["batch"])
        lr = msn_learning_rate(
            step,
            base=setting["lr"],
            start=setting["start_lr"],
            final=setting["final_lr"],
            warmup_steps=int(setting["warmup"] * per_epoch),
            horizon_steps=horizon,
        )
        decay = msn_weight_decay(step, start=setting["wd"], final=setting["final_wd"], horizon_steps=horizon)
        rates.append(lr)
        found = [lr, decay, method.sharpening(progress), method.momentum(progress)]
        expected = [recorded["lr"], recorded["wd"], recorded["T"], float(arrays[prefix + "momentum"])]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, decay if group["decay"] else 0.0

        count = sum(name.startswith(prefix + "view") for name in arrays)
        views = [torch.from_numpy(arrays[f"{prefix}view{number}"]) for number in range(count)]
        kept = torch.from_numpy(arrays[prefix + "kept_patches"])
        first = sum(view.shape[-1] == views[1].shape[-1] for view in views[1:])
        assert len(kept) == method.num_kept
        kept = kept.expand(first * setting["batch"], -1)
        with listening(method.head) as anchors, listening(method.teacher_head) as target:
            output = method.compare(views[0], views[1:], kept, method.sharpening(progress))
        output.loss.backward()

        assert_near(torch.cat(anchors).detach().numpy(), arrays[prefix + "anchor_z"], 3e-5, "anchor_z")
        assert_near(target[0].numpy(), arrays[prefix + "target_h"], 3e-5, "target_h")
        log_probs = prototype_log_probs(
            target[0], method.prototypes.detach(), setting["temperature"], setting["label_smoothing"]
        )
        targets = sharpen(log_probs, method.sharpening(progress))
        targets = sinkhorn(targets) if setting["use_sinkhorn"] else targets
        assert_near(targets.numpy(), arrays[prefix + "targets"], 5e-5, "targets")
        values = {"loss": float(output.loss.detach()), **{name: float(value) for name, value in output.metrics.items()}}
        for name in SCALARS:
            assert_near(values.get(name, 0.0), recorded[name], 1e-4, name)
        for name in ("max_t", "min_t"):
            assert_near(values[name], recorded[name], 5e-5, name)
        assert values["prototypes_used"] == recorded["np"]
        check_gradients(method, arrays, prefix + "grad.")
        check_gradient_statistics(method, arrays[prefix + "grad_stats"])
        assert float(gradient_norm(clipped)) == pytest.approx(recorded["grad_norm_preclip"], rel=1e-4)

        if setting["clip_grad"] > 0:
            clip_gradients(clipped, setting["clip_grad"])
        method.before_update(progress)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(progress)

    final = method.state_dict()
    for full in (name for name in arrays if name.startswith("final.")):
        name = own_name(full.removeprefix("final."))
        value = final[name].numpy()
        if is_noise(name):
            assert "running_mean" in name or np.abs(value - arrays[full]).max() <= 2 * sum(rates), full
        for found, expected in compared(name, value, arrays[full]):
            assert_near(found, expected, tightness(name), full)


def tightness(name: str) -> float:
    """Tolerance of a final weight; some are held closer, so that a wrong weight-decay group shows."""
    if name.endswith("pos_embed"):
        return 1.2e-5
    norms = "norm" in name or ".bn" in name
    if name == "prototypes" or name.endswith("cls_token") or (norms and name.endswith(".weight")):
        return 5e-6
    return 1e-4


@pytest.mark.parametrize("path", parity_files("msn", "schedules"))
def test_schedules(path: Path) -> None:
    arrays = load_arrays(path)
    cases = sorted({name.split(".")[0] for name in arrays if name.endswith(".json")})
    assert cases
    for case in cases:
        setting = json.loads(str(arrays[f"{case}.json"]))
        total = setting["epochs"] * setting["ipe"]
        horizon = int(1.25 * total)
        for at, i in enumerate(arrays[f"{case}.iteration"].tolist()):
            lr = msn_learning_rate(
                i,
                base=setting["lr"],
                start=setting["start_lr"],
                final=setting["final_lr"],
                warmup_steps=int(setting["warmup"] * setting["ipe"]),
                horizon_steps=horizon,
            )
            decay = msn_weight_decay(i, start=setting["wd"], final=setting["final_wd"], horizon_steps=horizon)
            momentum = linear_ramp(i, start=0.996, final=1.0, total=1.25 * total)
            sharpening = linear_ramp(i, start=setting["T0"], final=setting["T1"], total=1.25 * total)
            expected = [arrays[f"{case}.{name}"][at] for name in ("lr", "wd", "momentum", "sharpen")]
            np.testing.assert_allclose([lr, decay, momentum, sharpening], expected, rtol=1e-12, err_msg=f"{case} {i}")
