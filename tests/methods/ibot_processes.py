"""A program for the tests of several processes: `python -m methods.ibot_processes FOLDER`, one process per rank."""

import sys
from pathlib import Path

import torch

from halfseen.engine.distributed import processes
from methods.ibot_cases import build
from methods.steps import make_batch, progress, rows_of

PARTS = (slice(0, 1), slice(1, 4))
"""Uneven, as the last batch of an epoch may be."""


def centers(part: slice) -> dict[str, torch.Tensor]:
    """Both centres after a step on some rows of the batch."""
    method = build()
    method(rows_of(make_batch(method), part), progress(row_start=part.start))
    method.after_step(progress())
    return {"center": method.center, "center2": method.center2}


def main() -> None:
    torch.set_num_threads(1)
    with processes("cpu") as here:
        torch.save(centers(PARTS[here.rank]), Path(sys.argv[1]) / f"{here.rank}.pt")


if __name__ == "__main__":
    main()
