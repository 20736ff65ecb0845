"""`python -m benchmarks.compare`: variants of a run beside one another, over several seeds, in one go.

Each seed trains all variants in turns, beginning with another one, so that time is paired with time: a variant's ratio
is taken to the first variant of the same seed. Prints training time and k-NN accuracy as mean and standard deviation
over the seeds, and for progressive freezing the share of the time that the runs say they saved.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Variant(NamedTuple):
    """A name and what sets it apart: words of `halfseen pretrain`."""

    name: str
    words: tuple[str, ...]


class Outcome(NamedTuple):
    """What a run has left.

    Attributes:
        seconds: training time, without evaluation.
        scores: accuracy in percent by protocol and features; "random ..." for the network at random initialisation.
        loss: at the end.
        saved: share of the steps' time that freezing saved by the run's own measure; None without.
    """

    seconds: float
    scores: dict[str, float]
    loss: float
    saved: float | None


def read_variant(text: str) -> Variant:
    """From `NAME: word word ...`."""
    name, _, words = text.partition(":")
    return Variant(name.strip(), tuple(words.split()))


def train(variant: Variant, common: Sequence[str], seed: int, folder: Path) -> Outcome:
    """One run through the command line."""
    run_dir = folder / f"{variant.name.replace(' ', '_')}-seed{seed}"
    words = ["pretrain", *common, *variant.words, f"seed={seed}", "--run-dir", str(run_dir)]
    done = subprocess.run([sys.executable, "-m", "halfseen", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{variant.name}: {done.stderr}")
    return outcome_of(run_dir)


def outcome_of(run_dir: Path) -> Outcome:
    """The numbers that a finished run wrote down."""
    last = json.loads((run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    scores = {}
    for path in sorted((run_dir / "evaluations").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        scores[path.stem] = result["metrics"]["top1"]
        for name, metrics in result["baselines"].items():
            scores[f"{path.stem} {name}"] = metrics["top1"]
    return Outcome(last["seconds"], scores, last["loss"], last.get("time_saved_share"))


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.2f} +- {statistics.stdev(values) if len(values) > 1 else 0.0:.2f}"


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """One line per variant."""
    first = next(iter(outcomes.values()))
    names = sorted({name for runs in outcomes.values() for run in runs for name in run.scores})
    lines = []
    for variant, runs in outcomes.items():
        ratios = [run.seconds / other.seconds for run, other in zip(runs, first, strict=False)]
        times = f"{spread([run.seconds for run in runs])} s, {spread([100 * (1 - ratio) for ratio in ratios])} % less"
        scores = "; ".join(
            f"{name} {spread([run.scores[name] for run in runs])}"
            for name in names
            if all(name in run.scores for run in runs)
        )
        saved = [100 * run.saved for run in runs if run.saved is not None]
        if saved:
            times += f", {spread(saved)} % by their own measure"
        lines.append(f"{variant}: {times}; loss {spread([run.loss for run in runs])}; {scores}")
    return "\n".join(lines)


def main() -> None:
    """Trains all and prints after each seed what is known so far."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--variant", action="append", required=True, type=read_variant, help="'NAME: word word ...'")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default 3)")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs go")
    parser.add_argument("common", nargs="*", help="words that all runs share, e.g. --recipe after '--'")
    arguments = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = {variant.name: [] for variant in arguments.variant}
    for seed in range(arguments.seeds):
        turn = seed % len(arguments.variant)
        for variant in [*arguments.variant[turn:], *arguments.variant[:turn]]:
            outcomes[variant.name].append(train(variant, arguments.common, seed, arguments.folder))
        print(f"After {seed + 1} seeds\n{table(outcomes)}\n", flush=True)


if __name__ == "__main__":
    main()
