"""SIGINT and SIGTERM become an orderly stop: the run saves at its next step and can be resumed."""

import os
import signal
from types import FrameType

from bench.errors import InterruptedRunError


class Stop:
    """Set by a signal, or when the process that started this one is gone."""

    def __init__(self) -> None:
        self.requested = False
        self._parent = os.getppid()

    def listen(self) -> None:
        """Take over SIGINT and SIGTERM; a second SIGINT stops at once."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def check(self) -> None:
        """Raise InterruptedRunError if a stop is wanted."""
        if self.wanted():
            raise InterruptedRunError("stopped; the same command resumes it")

    def wanted(self) -> bool:
        """Is a stop wanted?"""
        return self.requested or os.getppid() != self._parent

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
