"""`halfseen demo`: the whole story on bundled data."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps only, to see that everything works; its numbers mean nothing.")
    ] = False,
    run_dir: Annotated[
        Path | None, typer.Option(help="Keep the run in this folder; a new one in runs/ if left out.")
    ] = None,
) -> None:
    """Pre-train on bundled pictures, measure against baselines, write a report: three minutes on two cores.

    Example: halfseen demo
    """
    from halfseen.cli.exits import INTERRUPTED
    from halfseen.cli.pretrain import print_result
    from halfseen.pretraining.demo import demo

    result = demo(quick=quick, run_dir=run_dir)
    print_result(result)
    if not result.finished:
        raise typer.Exit(INTERRUPTED)
