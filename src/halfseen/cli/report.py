"""`halfseen report`: one HTML page for a run, or for several side by side."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run's folder; several are compared.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; RUN/report.html, or ./comparison.html for several runs.")
    ] = None,
    analysis: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="What `halfseen analyze` wrote, for instance of several runs at once; RUN/analysis if left out.",
        ),
    ] = None,
) -> None:
    """Write a self-contained HTML page: results with baselines, curves, pictures, what the encoder sees, settings.

    Example: halfseen report runs/demo
    """
    from halfseen.reports.page import write_report

    if out is None and len(runs) > 1:
        out = Path("comparison.html")
    path = write_report(runs, out, analysis)
    typer.echo(f"Written: {path}")
