"""What a person sees while a run trains: a live line on a terminal, plain lines elsewhere. Process 0 alone speaks."""

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from halfseen.engine.journal import Record

PLAIN_SECONDS = 10.0
"""Least time between two plain lines, so that a log file stays readable."""


class Terminal(Protocol):
    """Where the loop speaks."""

    def begin(self, last_step: int, step: int) -> None:
        """The run starts (or goes on) at `step` and will end at `last_step`."""

    def update(self, record: Record) -> None:
        """A line of metrics.jsonl."""

    def say(self, sentence: str) -> None:
        """A finding or a message."""

    def close(self) -> None:
        """The run has ended."""


class SilentTerminal:
    """For processes other than 0, and for tests."""

    def begin(self, last_step: int, step: int) -> None:
        """Says nothing."""

    def update(self, record: Record) -> None:
        """Says nothing."""

    def say(self, sentence: str) -> None:
        """Says nothing."""

    def close(self) -> None:
        """Nothing to end."""


class LiveTerminal:
    """A progress bar that is redrawn, with sentences above it."""

    def __init__(self, console: Console) -> None:
        """`console` must be a terminal."""
        self._progress = Progress(
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[line]}"),
            console=console,
            refresh_per_second=4,
        )
        self._task: TaskID | None = None
        self._last_step = 0

    def begin(self, last_step: int, step: int) -> None:
        """Draws the bar."""
        self._last_step = last_step
        self._progress.start()
        self._task = self._progress.add_task("", total=last_step, completed=step, line="starting")

    def update(self, record: Record) -> None:
        """Redraws it."""
        if self._task is not None:
            self._progress.update(self._task, completed=int(record["step"]), line=describe(record, self._last_step))

    def say(self, sentence: str) -> None:
        """Prints above the bar."""
        self._progress.console.print(sentence, markup=False, highlight=False)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._progress.stop()


class PlainTerminal:
    """One line now and then, without control characters."""

    def __init__(self, console: Console) -> None:
        """`console` may write to a file or a pipe."""
        self._console = console
        self._last_step = 0
        self._spoken = 0.0

    def begin(self, last_step: int, step: int) -> None:
        """Says where the run starts."""
        self._last_step = last_step
        self.say(f"Training from step {step} to {last_step}.")

    def update(self, record: Record) -> None:
        """Prints a line, at most every `PLAIN_SECONDS`, and for the last step."""
        now = time.monotonic()
        if now - self._spoken >= PLAIN_SECONDS or record["step"] == self._last_step:
            self._spoken = now
            self.say(f"step {record['step']}/{self._last_step}  {describe(record, self._last_step)}")

    def say(self, sentence: str) -> None:
        """Prints a line."""
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing to end."""


def open_terminal(speaks: bool, console: Console | None = None) -> Terminal:
    """The terminal of this process: live, plain, or silent if it doesn't speak. Writes to stderr by default."""
    if not speaks:
        return SilentTerminal()
    target = Console(stderr=True) if console is None else console
    return LiveTerminal(target) if target.is_terminal else PlainTerminal(target)


def describe(record: Record, last_step: int) -> str:
    """A record in words: epoch, loss, speed, time left, waiting for data, memory."""
    speed = float(record.get("steps_per_second", 0.0))
    parts = [
        f"epoch {float(record['epoch']):.2f}",
        f"loss {float(record['loss']):.4f}",
        f"{float(record.get('images_per_second', 0.0)):.0f} images/s",
        f"{duration((last_step - int(record['step'])) / speed)} left" if speed > 0 else "",
        f"data wait {100 * float(record.get('data_wait_share', 0.0)):.0f} %",
        f"{float(record.get('memory_mb', 0.0)):.0f} MB",
    ]
    return "  ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """A time span in its two largest units: `3 h 05 min`, `2 min 10 s`, `9 s`."""
    whole = round(seconds)
    if whole >= 86_400:
        return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"
