"""Signals become an orderly stop: the run saves at its next step and can be resumed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

import psutil

from bench.errors import InterruptedRunError

# Ctrl-C; a supervisor's stop, or Slurm's for a job of higher priority; Slurm's before the time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


def supervisors() -> list[int]:
    """Processes without which this one should not go on: itself, and its launcher if it has one."""
    parent = multiprocessing.parent_process()
    return [os.getpid(), *([parent.pid] if parent and parent.pid else [])]


def at_once() -> AbstractContextManager[None]:
    """Inside, `SIGNALS` raise KeyboardInterrupt: for long work that has no state to save."""
    return _answered_by(signal.default_int_handler)


def unheard() -> AbstractContextManager[None]:
    """Inside, `SIGNALS` do nothing: for the moment that it takes to save."""
    return _answered_by(signal.SIG_IGN)


@contextmanager
def _answered_by(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, handler) for n in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


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
