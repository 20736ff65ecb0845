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
        window_steps: updates since the last line of metrics.jsonl.
        window_samples: images since then.
        window_sums: sums since then of the loss, the gradient norm and the method's metrics, by name.
        scaler: the loss scaler's numbers under fp16, else empty.
    """

    step: int = 0
    samples_seen: int = 0
    seconds: float = 0.0
    window_steps: int = 0
    window_samples: int = 0
    window_sums: dict[str, float] = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The state as plain numbers; floats survive json bit by bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        """The inverse of `to_json`."""
        return cls(**values)
