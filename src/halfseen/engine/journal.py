"""What a run writes down while it trains: metrics.jsonl, health.jsonl, and TensorBoard where asked for.

One json object per line, flushed line by line. A resumed run first cuts off what lies after its step, so no step
stands there twice and the files equal those of an unbroken run (but for times).
"""

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from halfseen.engine.finding import Finding
from halfseen.errors import MissingExtraError

METRICS, HEALTH = "metrics.jsonl", "health.jsonl"
Record = Mapping[str, float | int]


class MetricsSink(Protocol):
    """A further place for the metrics, e.g. TensorBoard."""

    def write(self, record: Record) -> None:
        """Take one line of metrics; `record["step"]` is its place."""

    def close(self) -> None:
        """Flush and end."""


class Journal:
    """The files of a run's metrics and findings; on processes other than 0 it writes nothing."""

    def __init__(
        self, run_dir: Path, *, resume_step: int = 0, writes: bool = True, sinks: tuple[MetricsSink, ...] = ()
    ) -> None:
        """Opens both files and cuts off what lies after `resume_step`.

        Args:
            run_dir: the run's folder.
            resume_step: updates done so far; 0 starts both files anew.
            writes: False on processes other than 0.
            sinks: further places for the metrics.
        """
        self._writes = writes
        self._sinks = sinks if writes else ()
        self._metrics_path, self._health_path = run_dir / METRICS, run_dir / HEALTH
        self.said: set[str] = set()
        if not writes:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        _cut(self._metrics_path, resume_step)
        kept = _cut(self._health_path, resume_step)
        self.said = {str(line["health"]) for line in kept if "health" in line}
        self._metrics = self._metrics_path.open("a", encoding="utf-8")
        self._health = self._health_path.open("a", encoding="utf-8")

    def past(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics that stand there so far; none on processes other than 0."""
        if self._writes:
            with self._metrics_path.open(encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)

    def write(self, record: Record) -> None:
        """Append one line of metrics."""
        if self._writes:
            self._metrics.write(json.dumps({name: _finite(value) for name, value in record.items()}) + "\n")
            self._metrics.flush()
        for sink in self._sinks:
            sink.write(record)

    def write_finding(self, finding: Finding) -> bool:
        """Append a finding unless one of its kind stands there already; says whether it was new."""
        if finding.id in self.said:
            return False
        self.said.add(finding.id)
        if self._writes:
            line = {"health": finding.id, "step": finding.step, "sentence": finding.sentence}
            self._health.write(json.dumps(line) + "\n")
            self._health.flush()
        return True

    def close(self) -> None:
        """End all files."""
        if self._writes:
            self._metrics.close()
            self._health.close()
        for sink in self._sinks:
            sink.close()


def require_tensorboard() -> None:
    """See that the extra 'tensorboard' is there.

    Raises:
        MissingExtraError: if it isn't.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtraError(
            "runtime.tensorboard: got true, but tensorboard is not installed. "
            "Run: pip install 'halfseen[tensorboard]', or write runtime.tensorboard=false."
        )


class TensorBoardSink:
    """Metrics for TensorBoard, in `<run>/tensorboard`; needs the extra 'tensorboard'."""

    def __init__(self, run_dir: Path, *, resume_step: int = 0) -> None:
        """Raises:
        MissingExtraError: if tensorboard isn't installed.
        """
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, record: Record) -> None:
        """One scalar per number."""
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, global_step=int(record["step"]))

    def close(self) -> None:
        """Flush and end."""
        self._writer.close()


def open_journal(run_dir: Path, *, resume_step: int = 0, writes: bool = True, tensorboard: bool = False) -> Journal:
    """The journal of a run, with TensorBoard if asked for.

    Raises:
        MissingExtraError: if TensorBoard is asked for and not installed.
    """
    sinks = (TensorBoardSink(run_dir, resume_step=resume_step),) if tensorboard and writes else ()
    return Journal(run_dir, resume_step=resume_step, writes=writes, sinks=sinks)


def _cut(path: Path, step: int) -> list[dict[str, Any]]:
    """Keep the lines up to `step`, leave out the others and a half-written one; gives the kept ones."""
    kept: list[dict[str, Any]] = []
    if path.is_file() and step > 0:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("step"), int) and entry["step"] <= step:
                kept.append(entry)
    beside = path.with_name(path.name + ".new")
    beside.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
    beside.replace(path)
    return kept


def _finite(value: float | int) -> float | int | None:
    """json has no NaN or infinity: they become null."""
    return value if isinstance(value, int) or math.isfinite(value) else None
