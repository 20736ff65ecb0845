"""What the tests of methods share: batches of noise, where a run stands, and what every step must keep."""

from collections import Counter

import numpy as np
import torch
from timm.layers.mlp import Mlp
from torch import nn

from halfseen.methods.base import Method
from halfseen.ops.recompute import activation_checkpointing
from halfseen.types import Batch, Progress, StepOutput

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_batch(method: Method, rows: int = 4) -> Batch:
    """Views of noise in cells of 4 pixels, and what the method's view plan computes beside them without looking."""
    random = np.random.default_rng(5)
    plan = method.view_plan()
    views = []
    for spec in plan.views:
        for _ in range(spec.count):
            side = -(-spec.size // 4)
            cells = random.integers(0, 256, (rows, 3, side, side), dtype=np.uint8)
            pixels = cells.repeat(4, axis=2).repeat(4, axis=3)[..., : spec.size, : spec.size]
            views.append(torch.from_numpy(np.ascontiguousarray(pixels)))
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


def check_step(method: Method, batch: Batch) -> StepOutput:
    """One step: finite float32 loss and metrics, and a gradient for every parameter that is trained."""
    out: StepOutput = method(batch, progress())
    assert out.loss.dtype == torch.float32 and out.loss.shape == () and torch.isfinite(out.loss)
    assert out.metrics
    for key, value in out.metrics.items():
        assert value.dtype == torch.float32 and value.shape == () and not value.requires_grad, key
        assert torch.isfinite(value), key
    out.loss.backward()
    trained = {key: parameter for key, parameter in method.named_parameters() if parameter.requires_grad}
    assert [key for key, parameter in trained.items() if parameter.grad is None] == []
    return out


def check_checkpointing(method: Method, batch: Batch) -> None:
    """A step in training mode, stochastic depth included: checkpointed blocks run twice and change no bit."""
    runs: Counter[nn.Module] = Counter()
    layers = [module.fc1 for module in method.encoders()["student"].modules() if isinstance(module, Mlp)]
    hooks = [layer.register_forward_hook(lambda layer, *_: runs.update([layer])) for layer in layers]
    found: list[list[torch.Tensor]] = []
    counts: list[list[int]] = []
    for asked in (False, True):
        method.train().zero_grad(set_to_none=True)
        before = {key: value.clone() for key, value in method.state_dict().items()}
        runs.clear()
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=torch.bfloat16), activation_checkpointing(asked):
            out = method(batch, progress())
        out.loss.backward()
        gradients = [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
        found.append([out.loss.detach(), *gradients, *out.metrics.values(), *method.state_dict().values()])
        counts.append([runs[layer] for layer in layers])
        method.load_state_dict(before)
    for hook in hooks:
        hook.remove()
    assert min(counts[0]) > 0
    assert counts[1] == [2 * times for times in counts[0]]
    assert len(found[0]) == len(found[1]) > 20
    for plain, ours in zip(*found, strict=True):
        assert torch.equal(plain, ours)


def check_repeatable(method: Method, batch: Batch) -> torch.Tensor:
    """The loss of step 3, which no global random state decides or feels."""
    loss: torch.Tensor = method(batch, progress(step=3)).loss
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(method(batch, progress(step=3)).loss, loss)
    assert torch.equal(torch.get_rng_state(), state)
    return loss
