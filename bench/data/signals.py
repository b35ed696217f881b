"""Handle the signals that ask a process to stop, while it does long work without a state to save."""

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

# Ctrl-C; a supervisor's stop, or Slurm's for a job of higher priority; Slurm's before the time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


def interrupted_by_signals() -> AbstractContextManager[None]:
    """Make `SIGNALS` raise KeyboardInterrupt, for long work that has no state to save."""
    return _handled_by(signal.default_int_handler)


def ignoring_signals() -> AbstractContextManager[None]:
    """Ignore `SIGNALS`, for the short time that saving needs."""
    return _handled_by(signal.SIG_IGN)


@contextmanager
def _handled_by(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, handler) for n in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
