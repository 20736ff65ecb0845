"""The batch that a case is measured on; `python -m benchmarks.batches CASE BATCH_SIZE PHOTOGRAPHS FILE` writes it."""

import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.cases import Case, chosen
from benchmarks.ours import build
from halfseen.data.loader import Job, TrainingWorker
from halfseen.data.sources import Source, open_source
from halfseen.types import Batch


def photographs(folder: Path) -> Source:
    """The generated photographs in a folder as a source."""
    return open_source(str(folder))


def load_batch(worker: TrainingWorker, count: int) -> Batch:
    """The first `count` images as the loader would hand them over."""
    stack = worker(Job(0, np.arange(count) % len(worker.source)))
    return Batch(
        views=tuple(torch.from_numpy(view) for view in stack.views),
        index=torch.from_numpy(stack.indices),
        labels=torch.from_numpy(stack.labels),
        extras={name: torch.from_numpy(value) for name, value in stack.extras.items()},
    )


def case_batch(case: Case, source: Source) -> Batch:
    """Photographs cut as the case's method wants them."""
    return load_batch(TrainingWorker(source, build(case).view_plan(), seed=case.seed), case.batch_size)


def write_batch(batch: Batch, file: Path) -> None:
    """All of a batch in one file, for a process that reads no images."""
    arrays = {f"view{number}": view for number, view in enumerate(batch.views)}
    arrays |= {f"extra {key}": value for key, value in batch.extras.items()}
    arrays |= {"index": batch.index, "labels": batch.labels}
    np.savez(file, allow_pickle=False, **{key: value.numpy() for key, value in arrays.items()})


def main() -> None:
    """Cut the views and write them."""
    name, batch_size, folder, file = sys.argv[1:]
    write_batch(case_batch(chosen(name, int(batch_size)), photographs(Path(folder))), Path(file))


if __name__ == "__main__":
    main()
