"""`python -m benchmarks.memory CASE ours|checkpointed|peer PRECISION BATCH_SIZE PHOTOGRAPHS`: peak memory of one alone.

`checkpointed` is ours with activation checkpointing. Another process cuts the batch, so that a step gets its pixels
as a peer does and neither reads images. Prints one line of JSON: `peak`, and `before` a model was built (imports), both
resident bytes.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.cases import Contestant, chosen
from benchmarks.clock import resident_now, resident_peak
from halfseen.types import Batch

STEPS = 3


def read_batch(file: Path) -> Batch:
    """What `batches.write_batch` wrote."""
    with np.load(file, allow_pickle=False) as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    views = sum(key.startswith("view") for key in tensors)
    return Batch(
        views=tuple(tensors[f"view{number}"] for number in range(views)),
        index=tensors["index"],
        labels=tensors["labels"],
        extras={key.removeprefix("extra "): value for key, value in tensors.items() if key.startswith("extra ")},
    )


def main() -> None:
    """Three steps, then the process's peak."""
    name, who, precision, batch_size, folder = sys.argv[1:]
    case = chosen(name, int(batch_size))
    contestant: Contestant
    if who == "peer":
        from benchmarks.peers import build_peer, import_peer

        import_peer(case)
        before = resident_now()
        contestant = build_peer(case, precision)
    else:
        from benchmarks.ours import build_ours

        before = resident_now()
        with tempfile.TemporaryDirectory() as place:
            file = str(Path(place) / "batch.npz")
            subprocess.run([sys.executable, "-m", "benchmarks.batches", name, batch_size, folder, file], check=True)
            batch = read_batch(Path(file))
        contestant = build_ours(case, precision, batch, checkpoints=who == "checkpointed")
    for _ in range(STEPS):
        contestant.step()
    print(json.dumps({"peak": resident_peak(), "before": before}))


if __name__ == "__main__":
    main()
