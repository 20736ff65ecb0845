"""A program for the tests of several processes: `python -m methods.msn_processes FOLDER`, one process per rank."""

import sys
from pathlib import Path

import torch

from halfseen.engine.distributed import Distributed, processes, wrap
from methods.msn_cases import build
from methods.steps import make_batch, progress, rows_of

SCOPES = ("shared", "per_sample")


def one_step(here: Distributed, scope: str) -> dict[str, torch.Tensor]:
    """Loss, metrics, gradients before the update and buffers of a step on this process's share of four images."""
    method = build(patch_drop_scope=scope, ent_weight=0.5)
    share = 4 // here.world_size
    part = slice(here.rank * share, (here.rank + 1) * share)
    wrapped = wrap(method, here, torch.device("cpu"))
    out = wrapped(rows_of(make_batch(method), part), progress(row_start=part.start))
    out.loss.backward()
    method.before_update(progress())
    gradients = {f"grad.{name}": p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {"loss": out.loss.detach(), **out.metrics, **gradients, **dict(method.named_buffers())}


def main() -> None:
    torch.set_num_threads(1)
    with processes("cpu") as here:
        for scope in SCOPES:
            torch.save(one_step(here, scope), Path(sys.argv[1]) / f"{scope}-{here.rank}.pt")


if __name__ == "__main__":
    main()
