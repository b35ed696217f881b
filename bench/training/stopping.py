"""Signals become an orderly stop: the run saves at its next step and can be resumed."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from types import FrameType

import psutil

from bench.data.signals import SIGNALS
from bench.errors import InterruptedRunError


def supervisors() -> list[int]:
    """Processes without which this one should not go on: itself, and its launcher if it has one."""
    parent = multiprocessing.parent_process()
    return [os.getpid(), *([parent.pid] if parent and parent.pid else [])]


class Stop:
    """Set by a signal, or when a process that watches over this one is gone.

    Args:
        watched: process ids; whoever started `bench` itself, such as a shell, may go.
    """

    def __init__(self, watched: Sequence[int]) -> None:
        self.requested = False
        self._watched = watched

    def listen(self) -> None:
        """Take over `SIGNALS`; a second SIGINT stops at once."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def check(self) -> None:
        """Raise InterruptedRunError if a stop is wanted."""
        if self.wanted():
            raise InterruptedRunError()

    def wanted(self) -> bool:
        """Is a stop wanted?"""
        return self.requested or not all(_is_alive(pid) for pid in self._watched)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
