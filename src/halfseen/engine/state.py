"""Where a run stands, apart from weights and optimiser moments: everything here fits in a few lines of json."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """Counters of a run and what a step leaves behind beside tensors. Schedules are functions of `step`.

    Attributes:
        step: optimiser updates done.
        samples_seen: source images used so far, over all processes (not views).
        seconds: time spent training, over all sessions of the run.
        window_sums: sums of the loss and the method's metrics over the updates since the last line of metrics.jsonl.
        window_counts: updates that each of these sums is made of.
        scaler: the loss scaler's numbers under fp16, else empty.
        frozen_steps, frozen_seconds: updates that were timed and their time, by the number of frozen units (as text);
            empty without progressive freezing.
    """

    step: int = 0
    samples_seen: int = 0
    seconds: float = 0.0
    window_sums: dict[str, float] = field(default_factory=dict)
    window_counts: dict[str, int] = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)
    frozen_steps: dict[str, int] = field(default_factory=dict)
    frozen_seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Take in the value of one update."""
        self.window_sums[name] = self.window_sums.get(name, 0.0) + value
        self.window_counts[name] = self.window_counts.get(name, 0) + 1

    def add_time(self, frozen: int, seconds: float) -> None:
        """Count an update that took `seconds` while `frozen` units rested."""
        key = str(frozen)
        self.frozen_steps[key] = self.frozen_steps.get(key, 0) + 1
        self.frozen_seconds[key] = self.frozen_seconds.get(key, 0.0) + seconds

    def close_window(self) -> dict[str, float]:
        """Mean of each value over the updates since the last call, and start anew."""
        means = {name: total / self.window_counts[name] for name, total in self.window_sums.items()}
        self.window_sums, self.window_counts = {}, {}
        return means

    def to_json(self) -> dict[str, Any]:
        """The state as plain numbers; floats survive json bit by bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        """The inverse of `to_json`."""
        return cls(**values)
