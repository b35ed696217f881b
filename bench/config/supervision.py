"""A thread of each child watches its supervisors, so that no process outlives its parent. No torch here."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence

import psutil

WATCH_S = 0.5
SAVING_S = 60.0  # for a step and a checkpoint


def supervisors() -> list[int]:
    """Return the ids of this process and, if it has one, of its launcher: the run stops if either is gone."""
    parent = multiprocessing.parent_process()
    return [os.getpid(), *([parent.pid] if parent and parent.pid else [])]


def end_with(watched: Sequence[int], *, grace_s: float = 0.0) -> None:
    """End this process, whatever it waits for, when a process that it depends on is gone.

    Args:
        watched: ids of processes, such as `supervisors()`.
        grace_s: the time that a run then has to save in order, see `bench.training.stopping`.
    """
    others = [pid for pid in watched if pid != os.getpid()]
    if others:
        threading.Thread(target=_end_after, args=(others, grace_s), daemon=True).start()


def _end_after(watched: Sequence[int], grace_s: float) -> None:
    while all(map(is_alive, watched)):
        time.sleep(WATCH_S)
    time.sleep(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)  # works while the process is blocked in a library, unlike an error


def is_alive(pid: int) -> bool:
    """Return whether a process has not ended; a zombie has."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
