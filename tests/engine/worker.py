"""A program for the tests of several processes: `python -m engine.worker ACTION FOLDER`."""

import json
import os
import sys
import time
from pathlib import Path

import torch

from engine.tiny import TinyMethod, run, settings
from halfseen.engine.checkpoint import latest_checkpoint
from halfseen.engine.distributed import Distributed, processes, report_failure, report_start
from halfseen.engine.health import Health, RunShape
from halfseen.errors import DataError, HalfseenError
from halfseen.ops.collectives import gather_rows, max_over_processes, mean_over_processes, sum_over_processes


def train(here: Distributed, folder: Path) -> None:
    """Ten steps; each process also writes down which images it saw."""
    config = settings(max_steps=10, micro_batch_size=2, clip_norm=1.0)
    method, _ = run(folder, config, method=TinyMethod(dropout=0.0), distributed=here)
    (folder / f"seen{here.rank}.json").write_text(json.dumps(method.seen))
    torch.save(method.state_dict(), folder / f"weights{here.rank}.pt")


def uneven(here: Distributed, folder: Path) -> None:
    """An epoch whose last batch has 5 images for two processes."""
    config = settings(drop_last=False, epochs=2, micro_batch_size=2)
    method, _ = run(folder, config, method=TinyMethod(dropout=0.0), distributed=here, num_images=29)
    torch.save(method.state_dict(), folder / f"weights{here.rank}.pt")


def resume(here: Distributed, folder: Path) -> None:
    """Goes on where it was stopped, with dropout; process 0 alone looks at features, between the logging steps."""
    path = latest_checkpoint(folder)
    step = int(path.name[-8:]) if path else 0
    config = settings(checkpoint_every_steps=3, log_every_steps=5, health_every_steps=4)
    probe = (lambda: {"": torch.eye(4)}) if here.is_main else None
    health = Health(RunShape(steps_per_epoch=4, last_step=24))
    run(folder, config, distributed=here, resume_from=path, resume_step=step, probe=probe, health=health)


def slow(here: Distributed, folder: Path) -> None:
    """Runs until a signal comes."""

    class Slow(TinyMethod):
        def after_step(self, progress: object) -> None:
            time.sleep(0.05)

    (folder / f"pid{here.rank}").write_text(str(os.getpid()))
    _, result = run(folder, settings(epochs=10_000), method=Slow(), distributed=here)
    if here.is_main:
        (folder / "result.json").write_text(json.dumps([result.step, result.finished]))


def fail(here: Distributed, folder: Path) -> None:
    """Process 1 has bad luck while process 0 trains on."""
    if here.rank == 1:
        raise DataError("data.source: process 1 can't read its images. Mend them.")
    run(folder, distributed=here)


def crash(here: Distributed, folder: Path) -> None:
    """Process 1 has a bug."""
    if here.rank == 1:
        raise ZeroDivisionError("a bug")
    run(folder, distributed=here)


def full(here: Distributed, folder: Path) -> None:
    """Process 0 can't write."""
    if here.is_main:
        (folder / "checkpoints").write_text("a file is in the way")
    run(folder, settings(max_steps=2), distributed=here)


def reduce(here: Distributed, folder: Path) -> None:
    """The collectives."""
    own = torch.tensor([1.0, 10.0]) * (here.rank + 1)
    found = {
        "sum": sum_over_processes(own).tolist(),
        "mean": mean_over_processes(own).tolist(),
        "max": max_over_processes(own).tolist(),
        "rows": gather_rows(torch.full((here.rank + 1, 2), here.rank)).tolist(),
        "own": own.tolist(),
        "said": here.broadcast_object(f"from {here.rank}"),
        "total": here.total([0.5, here.rank]),
        "largest": here.largest([here.rank, 5 - here.rank]).wait(),
    }
    (folder / f"reduced{here.rank}.json").write_text(json.dumps(found))


def main() -> None:
    action, folder = sys.argv[1], Path(sys.argv[2])
    report_start()
    torch.set_num_threads(1)
    try:
        with processes("cpu") as here:
            globals()[action](here, folder)
    except HalfseenError as error:
        if not report_failure(error):
            print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
