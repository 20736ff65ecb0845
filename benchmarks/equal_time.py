"""`python -m benchmarks.equal_time`: all methods on the bundled images for the same time, measured by all evaluations.

A short run of each method tells how long a step of it takes; from that follow the epochs that fill the given time, and
with them its whole schedule. Each seed trains all methods in turns, beginning with another one. Then every encoder is
measured by each evaluation of `EVALUATIONS` through the command line, and one table is printed: mean and standard
deviation over the seeds, the untrained network and raw pixels beside it. What is there already is not done again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.compare import spread

DATA = "bundled:fashion"
TRIAL_STEPS = 60

METHODS: dict[str, tuple[str, ...]] = {
    "SimMIM": ("--recipe", "simmim_small"),
    "KAMIM": ("--recipe", "kamim_small"),
    "MAE": ("--recipe", "mae_small"),
    "LocalMIM": ("--recipe", "localmim_small"),
    "iBOT": ("--recipe", "ibot_small", "method.warmup_teacher_temp_epochs=1"),
    "MSN": ("--recipe", "msn_small"),
}
"""What is compared: words of `halfseen pretrain`."""

EVALUATIONS: dict[str, tuple[str, ...]] = {
    "knn": ("knn",),
    "linear": ("linear",),
    "logistic": ("logistic", "--per-class", "5"),
    "finetune": ("finetune", "data.subset_size=1000", "train.epochs=8"),
}
"""What is measured: words of `halfseen`, after the encoder and before its data."""


def halfseen(*words: str) -> str:
    """What a command prints.

    Raises:
        SystemExit: it failed; with what it said.
    """
    done = subprocess.run([sys.executable, "-m", "halfseen", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"halfseen {' '.join(words)}\n{done.stderr}")
    return done.stdout


def metrics_of(run_dir: Path) -> list[dict[str, float]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def epochs_that_take(seconds: float, words: Sequence[str], run_dir: Path) -> float:
    """Epochs of a method that fill a time, by a trial of a few steps.

    The first third of the trial is left out: there the machine warms up.
    """
    steps = f"train.max_steps={TRIAL_STEPS}"
    log = (f"train.log_every_steps={TRIAL_STEPS // 3}", "train.health_every_steps=null", "evaluate.knn=false")
    if not (run_dir / "report.html").exists():
        halfseen("pretrain", DATA, *words, steps, *log, "--run-dir", str(run_dir))
    lines = metrics_of(run_dir)
    first, last = lines[1], lines[-1]
    per_step = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    per_epoch = last["step"] / last["epoch"] * per_step
    return round(seconds / per_epoch, 2)


def commands(
    names: Iterable[str], epochs: Mapping[str, float], seeds: int, folder: Path, shared: Sequence[str] = ()
) -> list[tuple[Path, list[str]]]:
    """Every run's folder and its words, in the order in which they are trained."""
    found = []
    names = list(names)
    for seed in range(seeds):
        turn = seed % len(names)
        for name in [*names[turn:], *names[:turn]]:
            run_dir = folder / f"{name}-seed{seed}"
            own = (
                f"train.epochs={epochs[name]}",
                "train.health_every_steps=null",
                "evaluate.knn=false",
                f"seed={seed}",
            )
            found.append((run_dir, ["pretrain", DATA, *METHODS[name], *shared, *own, "--run-dir", str(run_dir)]))
    return found


def result_in(out: Path) -> Path | None:
    """The file of an evaluation; fine-tuning leaves a whole run."""
    return next(iter([*out.glob("evaluations/*.json"), *out.glob("*.json")]), None)


def score(result: Mapping[str, object]) -> dict[str, float]:
    """Percent by what was measured: "encoder", other encoders by role, "random_init", "raw_pixels"."""
    own, others = result["metrics"], result["baselines"]
    assert isinstance(own, dict) and isinstance(others, dict)
    return {"encoder": own["top1"], **{name: each["top1"] for name, each in others.items() if "top1" in each}}


def table(folder: Path, names: Sequence[str], evaluations: Sequence[str], seeds: int) -> str:
    """The table in Markdown: an encoder's cell has its accuracy, and in brackets that of its untrained network."""
    lines = ["| | training | " + " | ".join(evaluations) + " |", "|---" * (2 + len(evaluations)) + "|"]
    pixels: dict[str, list[float]] = {evaluation: [] for evaluation in evaluations}
    for name in names:
        runs = [folder / f"{name}-seed{seed}" for seed in range(seeds)]
        cells = [f"{spread([metrics_of(run)[-1]['seconds'] for run in runs])} s"]
        for evaluation in evaluations:
            paths = [result_in(folder / evaluation / run.name) for run in runs]
            found = [score(json.loads(path.read_text(encoding="utf-8"))) for path in paths if path is not None]
            pixels[evaluation] += [each["raw_pixels"] for each in found if "raw_pixels" in each]
            before = [each["random_init"] for each in found if "random_init" in each]
            own = spread([each["encoder"] for each in found]) if found else "-"
            cells.append(own + (f" ({spread(before)})" if before else ""))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    raw = [spread(values) if values else "-" for values in pixels.values()]
    return "\n".join([*lines, f"| raw pixels | | {' | '.join(raw)} |"])


def main() -> None:
    """Trains, measures, prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal_time", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where runs and results go")
    parser.add_argument("--seconds", type=float, default=120, help="training time of each run (default 120)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method (default 3)")
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated; all if left out")
    parser.add_argument("--evaluation", action="append", choices=EVALUATIONS, help="may be repeated; all if left out")
    parser.add_argument("words", nargs="*", help="words of 'halfseen pretrain' that all share, after '--'")
    arguments = parser.parse_args()
    shared: list[str] = arguments.words
    folder: Path = arguments.folder
    names, evaluations = arguments.method or list(METHODS), arguments.evaluation or list(EVALUATIONS)
    epochs = {
        name: epochs_that_take(arguments.seconds, [*METHODS[name], *shared], folder / "trials" / name) for name in names
    }
    trained = commands(names, epochs, arguments.seeds, folder, shared)
    for run_dir, words in trained:
        print("halfseen", *words, flush=True)
        if not (run_dir / "report.html").exists():
            halfseen(*words)
    for evaluation in evaluations:
        for run_dir, _ in trained:
            out = folder / evaluation / run_dir.name
            command, *options = EVALUATIONS[evaluation]
            seed = ("--seed", run_dir.name.rpartition("seed")[2])
            where = ("--run-dir" if command == "finetune" else "--out", str(out))
            words = [command, str(run_dir), *options, "--train", DATA, "--test", DATA, *seed, *where]
            print("halfseen", *words, flush=True)
            if result_in(out) is None:
                halfseen(*words)
        print(table(folder, names, evaluations[: evaluations.index(evaluation) + 1], arguments.seeds), flush=True)


if __name__ == "__main__":
    main()
