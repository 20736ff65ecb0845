"""The whole story on the bundled images: pre-train, measure against the baselines, write the page."""

from collections.abc import Sequence
from pathlib import Path

from halfseen.pretraining.config import load_run_config
from halfseen.pretraining.run import RunResult, run

RECIPE = "mae_small"
WHOLE = ("evaluate.analyze=full", "evaluate.analyze_images=256")
QUICK = ("train.epochs=1", "train.max_steps=30", "evaluate.max_train=1000", "evaluate.max_test=300")


def demo(quick: bool = False, run_dir: Path | None = None, command: Sequence[str] | None = None) -> RunResult:
    """Pre-train on `bundled:fashion` by the recipe `mae_small`, evaluate and report.

    Args:
        quick: a few steps and images only, to see that everything works; its numbers mean nothing.
        run_dir: the run's folder; None makes a new one below runs/.
    """
    overrides = list(QUICK if quick else WHOLE)
    if run_dir is not None:
        overrides.append(f"run_dir={run_dir}")
    return run(load_run_config(RECIPE, None, overrides), command=command)
