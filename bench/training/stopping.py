"""An orderly stop: on a signal a run saves after its current step and can be resumed. No torch here."""

import signal
from collections.abc import Sequence
from types import FrameType

from bench.config.supervision import is_alive
from bench.data.signals import SIGNALS
from bench.errors import InterruptedRunError


class Stop:
    """Tells a run to stop in order: it saves after its current step and can be resumed.

    Set by a signal, or when a process that supervises this one is gone.

    Args:
        watched: ids of these processes; whatever started `bench` itself, such as a shell, may end.
    """

    def __init__(self, watched: Sequence[int]) -> None:
        self.requested = False
        self._watched = watched

    def listen(self) -> None:
        """Handle `SIGNALS`; a second SIGINT stops at once."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def check(self) -> None:
        """Raise InterruptedRunError if the run is to stop."""
        if self.wanted():
            raise InterruptedRunError()

    def wanted(self) -> bool:
        """Return whether the run is to stop."""
        return self.requested or not all(is_alive(pid) for pid in self._watched)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
