"""SIGTERM and SIGINT as a polite request: finish the step, write a checkpoint, leave."""

import signal
import threading
from types import FrameType, TracebackType

POLITE = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """While entered, remembers the first SIGTERM or SIGINT instead of dying of it; a second SIGINT aborts at once.

    Signals can be caught in the main thread only; elsewhere this does nothing.

    Attributes:
        signal_name: "SIGTERM" or "SIGINT" once one came, else None.
    """

    def __init__(self) -> None:
        """Nothing is caught before the context is entered."""
        self.signal_name: str | None = None
        self._before: dict[signal.Signals, object] = {}

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop."""
        return self.signal_name is not None

    def __enter__(self) -> "Interruption":
        """Catch the signals from here on."""
        if threading.current_thread() is threading.main_thread():
            for number in POLITE:
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Handle signals as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
