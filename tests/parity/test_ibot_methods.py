"""iBOT as a whole against recorded training steps of the original: crops and masks in, weights out."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from configurations import config_of
from halfseen.backbones.base import Features
from halfseen.backbones.weights import Imported, import_checkpoint
from halfseen.engine.config import OptimizerConfig
from halfseen.engine.optim import build_optimizer, clip_each_tensor, parameter_groups
from halfseen.methods.ibot import IBOT, IBOTConfig
from halfseen.types import Progress
from parity.discovery import companion, load_arrays, parity_files

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Arrays = dict[str, np.ndarray]
State = dict[str, Tensor]

FORWARD = 1e-5
LOSS = 1e-5
WEIGHTS = 5e-5


@pytest.mark.parametrize("path", parity_files("ibot", "train_"))
def test_training_steps(path: Path, tmp_path: Path) -> None:
    arrays = load_arrays(path)
    weights = load_file(companion(path.with_suffix(".safetensors"), path.stem, f"{path.stem}_weights"))
    student = {f"module.{name}": tensor for name, tensor in state_of(weights, "init.student.").items()}
    torch.save({"student": student, "teacher": state_of(weights, "init.teacher.")}, tmp_path / "checkpoint.pth")
    image_size, heads = int(arrays["config"][0]), int(arrays["config"][4])
    found = import_checkpoint(tmp_path / "checkpoint.pth", role="student", image_size=image_size, num_heads=heads)
    method = build(arrays, found)
    check_names(method, arrays)
    load_student(method, found)
    method.start_averages()
    check_weights(method, weights, "init", lr_sum=0.0, tolerance=0.0)

    sgd = path.stem.startswith("train_cli_default")
    betas = {} if sgd else {"betas": (0.9, 0.999)}
    settings = OptimizerConfig(name="sgd" if sgd else "adamw", weight_decay=1.0, **betas)
    groups = parameter_groups(method.named_parameters(), method.parameter_group, settings)
    check_groups(groups, arrays)
    optimizer = build_optimizer(groups, settings, torch.device("cpu"))
    parameters = [parameter for group in groups for parameter in group["params"]]

    for step in range(len(arrays["lr"])):
        read = {
            name.removeprefix(f"step{step}_"): array
            for name, array in arrays.items()
            if name.startswith(f"step{step}_")
        }
        progress = Progress(step, len(arrays["lr"]), 1, 0, 0, len(read["image0"]))
        gradient_tolerance = 1e-5 if step == 0 or sgd else 1e-4
        train_step(method, read, progress, gradient_tolerance)
        if float(arrays["clip_grad"]) > 0:
            clip_each_tensor(parameters, float(arrays["clip_grad"]))
        method.before_update(progress)
        for group in optimizer.param_groups:
            group["lr"] = float(arrays["lr"][step])
            group["weight_decay"] = float(arrays["wd"][step]) if group["decay"] else 0.0
        optimizer.step()
        optimizer.zero_grad()
        follow(method, float(arrays["momentum"][step]))
        np.testing.assert_allclose(method.center.numpy(), read["center"], rtol=0, atol=FORWARD)
        np.testing.assert_allclose(method.center2.numpy(), read["center2"], rtol=0, atol=FORWARD)
        if any(name.startswith(f"after_step{step}.") for name in weights):
            check_weights(method, weights, f"after_step{step}", lr_sum=float(arrays["lr"][: step + 1].sum()))


def train_step(method: IBOT, read: Arrays, progress: Progress, gradient_tolerance: float) -> None:
    """One forward and backward pass, compared with the record on the way."""
    crops = [torch.from_numpy(read[f"image{crop}"]) for crop in range(number_of(read, "image"))]
    num_global = method.config.global_crops_number
    images, local_crops = torch.cat(crops[:num_global]), crops[num_global:]
    mask = torch.cat([torch.from_numpy(read[f"mask{crop}"]).flatten(1) for crop in range(num_global)])

    with torch.no_grad():
        check_outputs(read, "teacher", method.teacher_head, method.teacher, images)
        check_outputs(read, "student", method.head, method.encoder, images, mask=mask, mask_token=method.mask_token)
        if local_crops:
            features = method.encoder(torch.cat(local_crops))
            found = method.head.logits(method.head.bottleneck(method.encoder.summary(features)))
            np.testing.assert_allclose(found.numpy(), read["student_local_cls"], rtol=0, atol=FORWARD)

    out = method.compare(images, local_crops, method.look(images), mask, progress)
    for name, value in {"loss": out.loss, "cls": out.metrics["loss_cls"], "patch": out.metrics["loss_patch"]}.items():
        np.testing.assert_allclose(value.detach().numpy(), read[f"loss_{name}"], rtol=LOSS, err_msg=name)
    out.loss.backward()

    ours = dict(method.named_parameters())
    prefix = "grad_preclip."
    recorded = [name.removeprefix(prefix) for name in read if name.startswith(prefix)]
    assert recorded
    for name in recorded:
        reference = read[prefix + name]
        gradient = ours[own_name(name)].grad.reshape(reference.shape)
        tolerance = gradient_tolerance * np.abs(reference).max()
        np.testing.assert_allclose(gradient.numpy(), reference, rtol=0, atol=tolerance, err_msg=name)
    names = read["grad_norm_names"].tolist()
    assert {own_name(name) for name in names} == {name for name, p in ours.items() if p.requires_grad}
    norms = [float(ours[own_name(name)].grad.norm()) for name in names]
    np.testing.assert_allclose(norms, read["grad_norms"], rtol=gradient_tolerance, atol=1e-9)


def check_outputs(
    read: Arrays, role: str, head: torch.nn.Module, encoder: torch.nn.Module, images: Tensor, **hiding: Tensor
) -> None:
    """All outputs of a network, as the original computes them, against the record."""
    features: Features = encoder(images, **hiding)
    classes = head.logits(head.bottleneck(encoder.summary(features)))
    patches = head.patch_logits(head.bottleneck(features.patches))
    np.testing.assert_allclose(classes.numpy(), read[f"{role}_cls"], rtol=0, atol=FORWARD, err_msg=role)
    np.testing.assert_allclose(patches.numpy(), read[f"{role}_patch"], rtol=0, atol=FORWARD, err_msg=role)


def follow(method: IBOT, momentum: float) -> None:
    """After a step: the record gives the momentum of each step, the method a cosine from its first value."""
    method.config = method.config.model_copy(update={"momentum_teacher": momentum})
    method.after_step(Progress(0, 1, 1, 0, 0, 1))


def build(arrays: Arrays, found: Imported) -> IBOT:
    """A method of the recorded sizes and settings."""
    image_size, _, _, _, _, hidden, bottleneck, local_size = arrays["config"].tolist()
    warm, final, warmup_epochs, epochs = arrays["teacher_temp_args"].tolist()
    patch_warm, patch_final, patch_warmup_epochs, _ = arrays["teacher_patch_temp_args"].tolist()
    assert warmup_epochs == patch_warmup_epochs
    shared = {
        role: "head.last_layer2.weight_v" not in arrays[f"{role}_param_names"].tolist()
        for role in ("student", "teacher")
    }
    settings = {
        "out_dim": int(arrays["out_dim"]),
        "patch_out_dim": int(arrays["patch_out_dim"]),
        "shared_head": shared["student"],
        "shared_head_teacher": shared["teacher"],
        "norm_last_layer": "head.last_layer.weight_g" not in arrays["param_group_regularized"].tolist(),
        "head_hidden_dim": hidden,
        "head_bottleneck_dim": bottleneck,
        "head_num_layers": sum(bool(re.fullmatch(r"mlp\.\d+\.weight", name)) for name in found.projection_state),
        "lambda1": float(arrays["lambda1"]),
        "lambda2": float(arrays["lambda2"]),
        "pred_start_epoch": int(arrays["mim_start_epoch"]),
        "freeze_last_layer": int(arrays["freeze_last_layer"]),
        "warmup_teacher_temp": warm,
        "teacher_temp": final,
        "warmup_teacher_patch_temp": patch_warm,
        "teacher_patch_temp": patch_final,
        "warmup_teacher_temp_epochs": int(warmup_epochs),
        "global_crops_number": number_of(arrays, "step0_mask"),
        "local_crops_number": int(arrays["n_local"]),
        "local_crop_size": local_size,
    }
    config = config_of(IBOTConfig, settings)
    encoder = found.build()
    sizes = [encoder.image_size, encoder.patch_size, encoder.embed_dim, encoder.num_layers, encoder.num_heads]
    assert sizes == arrays["config"][:5].tolist()
    method = IBOT(config, encoder, image_size, MEAN, STD).train()
    for epoch in range(int(epochs)):
        if config.lambda1 > 0:
            assert method.temperature(epoch) == pytest.approx(arrays["teacher_temp_schedule"][epoch], abs=1e-9)
        assert method.patch_temperature(epoch) == pytest.approx(arrays["teacher_patch_temp_schedule"][epoch], abs=1e-9)
    return method


def own_name(name: str, role: str = "student") -> str:
    """The name in a method of what the original calls `name` in its student or teacher."""
    if name == "backbone.masked_embed":
        return "mask_token"
    encoder, head = {"student": ("encoder", "head"), "teacher": ("teacher", "teacher_head")}[role]
    part, _, rest = name.partition(".")
    return f"{encoder}.trunk.{rest}" if part == "backbone" else f"{head}.{rest}"


def state_of(weights: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def load_student(method: IBOT, found: Imported) -> None:
    """Encoder, mask token and head of an imported checkpoint."""
    found.load_into(method.encoder)
    with torch.no_grad():
        method.mask_token.copy_(found.mask_token)
    method.head.load_state_dict(found.projection_state)


def check_weights(method: IBOT, weights: State, moment: str, lr_sum: float, tolerance: float = WEIGHTS) -> None:
    """Student and teacher at one moment.

    Key biases have a true gradient of zero, since a softmax doesn't see them; AdamW turns the rounding noise into steps
    of the learning rate's size.
    """
    own = method.state_dict()
    for role in ("student", "teacher"):
        for name, reference in state_of(weights, f"{moment}.{role}.").items():
            if own_name(name, role) not in own:
                assert name.startswith("head.last_layer2."), name
                continue
            found = own[own_name(name, role)].reshape(reference.shape)
            allowed = torch.full_like(reference, tolerance)
            if name.endswith("attn.qkv.bias"):
                allowed[len(reference) // 3 : 2 * len(reference) // 3] = max(2 * lr_sum, tolerance)
            assert ((found - reference).abs() <= allowed).all(), f"{moment} {role} {name}"


def check_names(method: IBOT, arrays: Arrays) -> None:
    ours = {name for name, _ in method.named_parameters()}
    recorded = {
        own_name(name, role) for role in ("student", "teacher") for name in arrays[f"{role}_param_names"].tolist()
    }
    assert ours == recorded


def check_groups(groups: list[dict], arrays: Arrays) -> None:
    found = {True: set(), False: set()}
    for group in groups:
        found[group["decay"]] |= set(group["names"])
    assert found[True] == {own_name(name) for name in arrays["param_group_regularized"].tolist()}
    assert found[False] == {own_name(name) for name in arrays["param_group_not_regularized"].tolist()}


def number_of(arrays: Arrays, prefix: str) -> int:
    """How many arrays are named by the prefix and a number."""
    return sum(name.startswith(prefix) and name.removeprefix(prefix).isdigit() for name in arrays)
