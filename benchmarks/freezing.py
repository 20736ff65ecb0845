"""`python -m benchmarks.freezing`: what progressive freezing saves, step by step beside the same run without it.

All variants take every step in turns, on the same batch, each beginning with another one: what else the machine does
hits all alike, which runs one after the other cannot promise. The time to read the batch counts for each of them, as in
a run without workers; the saving without it, as with workers that keep up, is told beside. Then each variant's peak
memory is read from a fresh process at the steps where something freezes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.clock import resident_now, resident_peak
from benchmarks.compare import Variant, read_variant, spread
from halfseen.engine.distributed import Distributed
from halfseen.engine.loop import Trainer
from halfseen.pretraining.build import identity_of, prepare_method
from halfseen.pretraining.config import RunConfig, load_run_config
from halfseen.pretraining.run import open_loader
from halfseen.types import Batch

PLAIN = Variant("none", ())
FROZEN = (
    Variant("cubic 0.8", ("train.freeze.t0=0.8",)),
    Variant("cubic 0.8, rates not scaled", ("train.freeze.t0=0.8", "train.freeze.scale_lr=false")),
    Variant("linear 0.5", ("train.freeze.t0=0.5", "train.freeze.scale=linear")),
)
WORDS = ("--recipe", "localmim_small_scenes", "train.epochs=4", "train.lr.warmup_epochs=0.4", "data.subset_size=1920")
MEMORY_STEPS = 3


def settings(words: Sequence[str], variant: Variant) -> RunConfig:
    """A variant's run."""
    recipe = words[words.index("--recipe") + 1] if "--recipe" in words else None
    overrides = [word for word in (*words, *variant.words) if "=" in word]
    return load_run_config(recipe, None, overrides).config


def open_trainer(config: RunConfig, folder: Path) -> Trainer:
    """A run at its first step."""
    from halfseen.data.sources import open_source

    source = open_source(config.data.source, "train", config=config.data)
    method = prepare_method(config)
    alone = Distributed()
    loader = open_loader(config, method, source, alone)
    return Trainer(method, loader, config.train, config.runtime, config.seed, folder, identity_of(config), alone)


class Turns(NamedTuple):
    """What several runs in turns took.

    Attributes:
        steps: seconds of each run's steps.
        reading: seconds that reading the images took, which all share.
        events: of each run the steps at which something froze.
    """

    steps: list[float]
    reading: float
    events: list[set[int]]


def take_turns(configs: Sequence[RunConfig], folder: Path) -> Turns:
    """Train several runs at once, step by step."""
    trainers = [open_trainer(config, folder) for config in configs]
    seconds, total_reading = [0.0] * len(trainers), 0.0
    events: list[set[int]] = [set() for _ in trainers]
    with trainers[0].batches() as steps:
        for step, (batches, reading) in enumerate(timed(steps)):
            total_reading += reading
            turn = step % len(trainers)
            for which in [*range(turn, len(trainers)), *range(turn)]:
                trainer = trainers[which]
                before = 0 if trainer.freezer is None else trainer.freezer.frozen
                start = time.perf_counter()
                trainer.train_step(batches)
                seconds[which] += time.perf_counter() - start
                trainer.collect()
                if trainer.freezer is not None and trainer.freezer.frozen != before:
                    events[which].add(step)
    return Turns(seconds, total_reading, events)


def timed(steps: Iterator[list[Batch]]) -> Iterator[tuple[list[Batch], float]]:
    """The batches of each step, and the seconds that reading them took."""
    while True:
        start = time.perf_counter()
        batches = next(steps, None)
        if batches is None:
            return
        yield batches, time.perf_counter() - start


def peak_memory(config: RunConfig, step: int, folder: Path) -> tuple[int, int]:
    """Resident bytes of this process: before a model was built, and at most during a few steps from `step` on."""
    before = resident_now()
    trainer = open_trainer(config, folder)
    trainer.state.step = step
    steps = trainer.loader.batches(step, step + MEMORY_STEPS)
    for batches in steps:
        trainer.train_step(batches)
    return before, resident_peak()


def peaks_in_fresh_processes(words: Sequence[str], variant: Variant, steps: Sequence[int]) -> dict[int, float]:
    """Peak memory without imports, in MiB, by the first step."""
    found = {}
    for step in steps:
        command = [sys.executable, "-m", "benchmarks.freezing", "--memory-at", str(step)]
        command += ["--variant", f"{variant.name}: {' '.join(variant.words)}", "--", *words]
        root = Path(__file__).resolve().parents[1]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
        before, peak = json.loads(done.stdout.splitlines()[-1])
        found[step] = (peak - before) / 2**20
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.freezing", description=__doc__)
    parser.add_argument("--variant", action="append", type=read_variant, help="'NAME: word word ...'")
    parser.add_argument("--repetitions", type=int, default=3, help="seeds (default 3)")
    parser.add_argument("--memory-at", type=int, help="only the peak memory of the one variant from this step on")
    parser.add_argument("words", nargs="*", help="words of 'halfseen pretrain' that all share, after '--'")
    arguments = parser.parse_args()
    words = arguments.words or list(WORDS)
    frozen = arguments.variant or list(FROZEN)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.memory_at is not None:
            print(json.dumps(peak_memory(settings(words, frozen[0]), arguments.memory_at, Path(folder))))
            return
        saved: dict[str, list[float]] = {variant.name: [] for variant in frozen}
        saved_of_steps: dict[str, list[float]] = {variant.name: [] for variant in frozen}
        for seed in range(arguments.repetitions):
            configs = [settings([*words, f"seed={seed}"], variant) for variant in (PLAIN, *frozen)]
            steps, reading, events = take_turns(configs, Path(folder))
            for variant, own in zip(frozen, steps[1:], strict=True):
                saved[variant.name].append(100 * (1 - (own + reading) / (steps[0] + reading)))
                saved_of_steps[variant.name].append(100 * (1 - own / steps[0]))
            shown = ", ".join(f"{each:.1f} s" for each in steps)
            print(f"seed {seed}: steps {shown}; reading {reading:.1f} s", flush=True)
        for variant, moments in zip(frozen, events[1:], strict=True):
            peaks = peaks_in_fresh_processes(words, variant, [0, *sorted(moments)])
            shown = ", ".join(f"{peak:.0f} MiB from step {step}" for step, peak in peaks.items())
            without = spread(saved_of_steps[variant.name])
            print(f"{variant.name}: {spread(saved[variant.name])} % less time, {without} % of the steps'; peak {shown}")


if __name__ == "__main__":
    main()
