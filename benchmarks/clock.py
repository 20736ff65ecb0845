"""Measuring: interleaved repetitions, the machine's own peak, memory of a fresh process."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def interleaved(steps: Sequence[Callable[[], object]], repetitions: int) -> list[list[float]]:
    """Seconds of each call, measured in turns (a b a b ...), so a slow moment of the machine hits all alike.

    Each one runs once before, unmeasured, and the order turns round each time.
    """
    for step in steps:
        step()
    seconds: list[list[float]] = [[] for _ in steps]
    for repetition in range(repetitions):
        order = range(len(steps)) if repetition % 2 == 0 else reversed(range(len(steps)))
        for which in order:
            start = time.perf_counter()
            steps[which]()
            seconds[which].append(time.perf_counter() - start)
    return seconds


def spread(seconds: Sequence[float]) -> float:
    """Half of the distance between the quartiles over the median: how steady a measurement was."""
    low, middle, high = statistics.quantiles(seconds, n=4)
    return (high - low) / 2 / middle


GEMM_SIDE = 2048
GEMM_FLOPS = 2 * GEMM_SIDE**3


def gemm(precision: str) -> Callable[[], Tensor]:
    """A large square matrix product, `GEMM_FLOPS` operations: what the machine can do at best."""
    left, right = (torch.randn(GEMM_SIDE, GEMM_SIDE).to(PRECISIONS[precision]) for _ in range(2))
    return lambda: torch.mm(left, right)


def resident_peak() -> int:
    """Largest resident memory of this process so far, in bytes.

    Not `ru_maxrss` where Linux tells better: there a child starts with the peak of the process that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_now() -> int:
    """Resident memory of this process, in bytes; 0 where the system doesn't say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def in_fresh_process(*arguments: str) -> dict[str, float]:
    """What `python -m benchmarks.memory ARGUMENTS` prints as its last line of JSON."""
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1])
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result
