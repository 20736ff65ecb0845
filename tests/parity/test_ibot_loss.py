"""The distillation losses and their centres against three recorded calls of the original loss object."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from halfseen.ops.distillation import class_token_loss, patch_token_loss, teacher_probabilities, update_center
from parity.discovery import load_arrays, parity_files

STUDENT_TEMPERATURE, CENTER_MOMENTUM = 0.1, 0.9


@pytest.mark.parametrize("path", parity_files("ibot", "ibot_loss"))
def test_losses_gradients_and_centers(path: Path) -> None:
    arrays = load_arrays(path)
    calls = sorted({name.split("_")[0] for name in arrays if name.startswith("call")})
    assert calls
    center = torch.zeros(1, arrays["call0_teacher_cls"].shape[-1])
    patch_center = torch.zeros(1, 1, arrays["call0_teacher_patch"].shape[-1])
    for call in calls:
        read = {name.removeprefix(f"{call}_"): array for name, array in arrays.items() if name.startswith(f"{call}_")}
        masks = [torch.from_numpy(read[f"mask{crop}"]).flatten(1) for crop in range(number_of(read, "mask"))]
        mask, images = torch.cat(masks), len(masks[0])
        given = {name: torch.from_numpy(array) for name, array in read.items() if name.startswith(("student", "teach"))}
        student = {name: tensor.requires_grad_() for name, tensor in given.items() if name.startswith("student")}
        epoch = int(read["epoch"])

        class_logits = [student[name] for name in ("student_cls", "student_local_cls") if name in student]
        views = torch.cat(class_logits).unflatten(0, (-1, images))
        targets = teacher_probabilities(given["teacher_cls"], center, float(arrays["temp_schedule"][epoch]))
        loss_cls = class_token_loss(targets.unflatten(0, (-1, images)), views, STUDENT_TEMPERATURE)
        patch_targets = teacher_probabilities(
            given["teacher_patch"][mask], patch_center, float(arrays["patch_temp_schedule"][epoch])
        )
        loss_patch = patch_token_loss(
            patch_targets, student["student_patch"][mask], STUDENT_TEMPERATURE, mask.nonzero()[:, 0], len(mask)
        )
        check_losses(read, loss_cls, loss_patch)

        (loss_cls + loss_patch).backward()
        for name, tensor in student.items():
            reference = read[f"grad_{name}"]
            tolerance = 1e-5 * np.abs(reference).max()
            assert tolerance > 0, name
            np.testing.assert_allclose(tensor.grad.numpy(), reference, rtol=0, atol=tolerance, err_msg=name)

        update_center(center, given["teacher_cls"].mean(0), CENTER_MOMENTUM)
        update_center(patch_center, given["teacher_patch"].mean((0, 1)), CENTER_MOMENTUM)
        np.testing.assert_allclose(center.numpy(), read["center_after"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(patch_center.numpy(), read["center2_after"], rtol=0, atol=1e-5)


def check_losses(read: dict[str, np.ndarray], loss_cls: Tensor, loss_patch: Tensor) -> None:
    """The recorded losses carry lambda1 = lambda2 = 1."""
    for name, value in {"cls": loss_cls, "patch": loss_patch}.items():
        np.testing.assert_allclose(value.detach().numpy(), read[f"loss_{name}"], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose((loss_cls + loss_patch).detach().numpy(), read["loss"], rtol=1e-5)


def number_of(arrays: dict[str, np.ndarray], prefix: str) -> int:
    """How many arrays are named by the prefix and a number."""
    return sum(name.startswith(prefix) and name.removeprefix(prefix).isdigit() for name in arrays)
