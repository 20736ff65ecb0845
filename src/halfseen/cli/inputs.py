"""What the commands that look at an encoder read from their words, and how they show progress and results."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from halfseen.errors import ConfigError
from halfseen.opening import (
    Run,
    Split,
    find_run,
    forward_settings,
    need_run,
    open_images,
    open_test,
    same_network,
    whole_or_split,
)

if TYPE_CHECKING:
    from rich.console import Console

    from halfseen.evaluation.results import Result

__all__ = [
    "OnProgress",
    "Run",
    "Split",
    "console",
    "find_run",
    "forward_settings",
    "need_run",
    "need_suffix",
    "open_images",
    "open_test",
    "progress_line",
    "same_network",
    "show_result",
    "whole_or_split",
]

EVALUATIONS = "evaluations"
PIPE_WIDTH = 160
"""Columns of a table that goes into a file or a pipe."""

OnProgress = Callable[[str, int, int], None]


def need_suffix(option: str, path: Path, known: tuple[str, ...]) -> None:
    """Check the ending of a file that is to be written.

    Raises:
        ConfigError: another ending.
    """
    if path.suffix not in known:
        raise ConfigError(f"{option}: got '{path}', expected a file name that ends in {' or '.join(known)}.")


def console() -> "Console":
    """Where results are printed; brackets in names are no mark-up, and a pipe gets whole lines."""
    from rich.console import Console

    out = Console(markup=False, highlight=False)
    if not out.is_terminal:
        out.width = PIPE_WIDTH
    return out


def show_result(result: "Result", run: Run | None, out: Path | None) -> Path:
    """Write a result into `out`, the run's folder or ./evaluations, and print it; the file that was written."""
    from halfseen.reports.runfiles import Evaluation
    from halfseen.reports.tables import result_table

    folder = out if out is not None else Path(EVALUATIONS) if run is None else run.folder / EVALUATIONS
    path = result.write(folder)
    screen = console()
    screen.print(result_table(Evaluation.model_validate(result.model_dump())))
    for note in result.notes:
        screen.print(f"- {note}", soft_wrap=True)
    screen.print(f"Written: {path}", soft_wrap=True)
    if run is not None and folder == run.folder / EVALUATIONS:
        screen.print(f"`halfseen report {run.folder}` brings it into the run's report.", soft_wrap=True)
    return path


@contextmanager
def progress_line() -> Iterator[OnProgress]:
    """A progress bar on stderr for as long as the block runs; nothing where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {}

        def update(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.update(tasks[what], completed=done, total=of)

        yield update
