"""A program for the tests of several processes: `python -m backbones.processes FOLDER`, one process per rank."""

import sys
from pathlib import Path

import torch

from halfseen.backbones.batch_norm import CrossProcessBatchNorm
from halfseen.engine.distributed import processes

SHAPES = {"rows": (7, 3), "pictures": (6, 4, 3, 5)}
STEPS = 3


def batch(name: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input far from zero mean, and the gradient that comes from above."""
    generator = torch.Generator().manual_seed(10 * step + len(name))
    shape = SHAPES[name]
    return torch.randn(shape, generator=generator) * 2 + 30, torch.randn(shape, generator=generator)


def layer(name: str) -> CrossProcessBatchNorm:
    """A layer with weights of its own."""
    made = CrossProcessBatchNorm(SHAPES[name][1])
    with torch.no_grad():
        made.weight.copy_(torch.linspace(0.5, 2, len(made.weight)))
        made.bias.copy_(torch.linspace(-1, 1, len(made.bias)))
    return made


def record(name: str, part: slice) -> dict[str, torch.Tensor]:
    """Outputs, gradients and state after some steps on a part of each batch."""
    found: dict[str, torch.Tensor] = {}
    norm = layer(name)
    for step in range(STEPS):
        x, above = (tensor[part] for tensor in batch(name, step))
        x.requires_grad_()
        out = norm(x)
        out.backward(above)
        found |= {f"{step}.out": out.detach(), f"{step}.grad": x.grad}
    found |= {"weight": norm.weight.grad, "bias": norm.bias.grad}
    found |= {f"state.{key}": value for key, value in norm.state_dict().items()}
    with torch.no_grad():
        found["half"] = norm(x.bfloat16()).float()
        found["eval"] = norm.eval()(x)
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    with processes("cpu") as here:
        for name, shape in SHAPES.items():
            first = shape[0] // 3  # uneven parts
            part = slice(0, first) if here.rank == 0 else slice(first, None)
            torch.save(record(name, part), folder / f"{name}{here.rank}.pt")


if __name__ == "__main__":
    main()
