"""MSN's losses and Sinkhorn against recorded values and gradients, in float64; several processes emulated in one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from halfseen.ops.assignment import (
    mean_entropy,
    mean_entropy_gap,
    prototype_log_probs,
    sharpen,
    sinkhorn,
    view_cross_entropy,
)
from parity.discovery import load_arrays, parity_files

TOLERANCE = 1e-10


def assert_close(found: Tensor, expected: np.ndarray, name: str) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("path", parity_files("msn", "loss"))
def test_terms_and_their_gradients(path: Path) -> None:
    arrays = load_arrays(path)
    cases = sorted({name.split(".")[0] for name in arrays if name.startswith("case")})
    assert cases
    for case in cases:
        tau, sharpening, smoothing, balance = arrays[f"{case}.settings"].tolist()
        anchors = torch.from_numpy(arrays["anchors"]).requires_grad_()
        prototypes = torch.from_numpy(arrays["prototypes"]).requires_grad_()
        log_probs = prototype_log_probs(anchors, prototypes, tau, smoothing)
        assert log_probs.dtype == torch.float64
        with torch.no_grad():
            targets = sharpen(
                prototype_log_probs(torch.from_numpy(arrays["targets_in"]), prototypes, tau, smoothing), sharpening
            )
            if balance:
                targets = sinkhorn(targets)
        assert len(log_probs) == int(arrays["num_views"]) * len(targets)
        assert_close(targets, arrays[f"{case}.target_probs"], f"{case} targets")
        assert_close(log_probs.exp(), arrays[f"{case}.anchor_probs"], f"{case} anchors")
        terms = {
            "ploss": view_cross_entropy(log_probs, targets),
            "me_max": mean_entropy_gap(log_probs.exp()),
            "ent": mean_entropy(log_probs),
        }
        values = [*terms.values(), targets.argmax(1).unique().numel(), targets.amax(1).mean(), targets.amin(1).mean()]
        np.testing.assert_allclose(
            [float(torch.as_tensor(v).detach()) for v in values], arrays[f"{case}.values"], rtol=0, atol=TOLERANCE
        )
        for name, term in terms.items():
            for leaf, gradient in zip(
                ("anchors", "prototypes"),
                torch.autograd.grad(term, (anchors, prototypes), retain_graph=True),
                strict=True,
            ):
                assert_close(gradient, arrays[f"{case}.grad.{name}.{leaf}"], f"{case} {name} {leaf}")


@pytest.mark.parametrize("path", parity_files("msn", "loss"))
def test_sinkhorn(path: Path) -> None:
    arrays = load_arrays(path)
    numbers = [int(name.removeprefix("sinkhorn.out")) for name in arrays if name.startswith("sinkhorn.out")]
    assert numbers
    for iterations in numbers:
        found = sinkhorn(torch.from_numpy(arrays["sinkhorn.in"]), iterations)
        assert_close(found, arrays[f"sinkhorn.out{iterations}"], f"{iterations} iterations")


class _Mean(torch.autograd.Function):
    """Gives a number that was averaged elsewhere; passes the gradient on as it is."""

    @staticmethod
    def forward(ctx: object, local: Tensor, average: Tensor) -> Tensor:
        return average.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


@pytest.mark.parametrize("path", parity_files("msn", "loss_"))
def test_several_processes(path: Path) -> None:
    arrays = load_arrays(path)
    processes = len(arrays["anchors"])
    tau, sharpening, smoothing, balance = arrays["settings"].tolist()
    shared = torch.from_numpy(arrays["prototypes"])
    targets_in = torch.from_numpy(arrays["targets_in"])
    local = [sharpen(prototype_log_probs(part, shared, tau, smoothing), sharpening) for part in targets_in]
    anchors = torch.from_numpy(arrays["anchors"])
    average = torch.stack([prototype_log_probs(part, shared, tau, smoothing).exp().mean(0) for part in anchors]).mean(0)
    balanced = sinkhorn(torch.cat(local)).chunk(processes) if balance else local

    summed = torch.zeros_like(shared)
    for rank in range(processes):
        prototypes = shared.clone().requires_grad_()
        own = anchors[rank].clone().requires_grad_()
        log_probs = prototype_log_probs(own, prototypes, tau, smoothing)
        ploss = view_cross_entropy(log_probs, balanced[rank])
        me_max = mean_entropy_gap(log_probs.exp(), mean=lambda vector: _Mean.apply(vector, average))
        values = [ploss, me_max, mean_entropy(log_probs)]
        np.testing.assert_allclose(
            [float(torch.as_tensor(v).detach()) for v in values], arrays["values"][rank], rtol=0, atol=TOLERANCE
        )
        assert_close(balanced[rank], arrays["target_probs"][rank], "targets")
        (ploss + me_max).backward()
        assert_close(own.grad, arrays["grad.anchors"][rank], "anchors")
        assert_close(prototypes.grad, arrays["grad.prototypes_local"][rank], "prototypes")
        summed += prototypes.grad
    assert_close(summed, arrays["grad.prototypes_summed"], "sum of the prototypes' gradients")
