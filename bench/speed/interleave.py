"""Contenders in processes of their own, of which exactly one works at a time: tasks -> seconds.

Each waits on a pipe until it is its turn, so that whatever slows the machine for a while slows all alike.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from bench.speed.contract import Facts, Failure, Task

PRELOADED = ("bench.speed.contender",)  # by the server that processes are forked from
JOIN_S = 5.0
WORK = ("user", "nice", "system", "irq", "softirq", "steal")  # of what the system counts of its processors


@dataclass
class Timed:
    """What is known of one contender."""

    facts: Facts | None = None
    seconds: list[float] = field(default_factory=list)  # a step's, in each round
    failure: str | None = None


@dataclass
class Disturbance:
    """What all else on the machine did meanwhile."""

    share: float | None = None  # of all processors' time; None: no round is done


class Contest:
    """The contenders of one cell; use as a context manager, which ends their processes.

    Args:
        tasks: one per contender.
        seed: of the order in a round.
    """

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        self.tasks, self.random = tasks, random.Random(seed)  # noqa: S311 -- no secret
        self.timed = {task.contender: Timed() for task in tasks}
        self.disturbance = Disturbance()
        self._processes: dict[str, BaseProcess] = {}
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> "Contest":
        self._folder = TemporaryDirectory(prefix="bench-speed-")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()  # there is nothing to save
        for process in self._processes.values():
            process.join(JOIN_S)
        for connection in self._connections.values():
            connection.close()
        self._folder.cleanup()

    def run(self, rounds: int, said: Callable[[str], None]) -> None:
        """Warm each up, then time them in rounds. Who fails is out; the others go on.

        Args:
            rounds: in each of which every contender does one block.
            said: told of each block that is done, by the contender's name.
        """
        for task in self.tasks:  # all at once: some compile for a minute
            self._start(task)
        for task in self.tasks:
            answer = self._answer(task.contender)
            if isinstance(answer, Facts):
                self.timed[task.contender].facts = answer
            said(task.contender)
        began_at, busy_s = time.monotonic(), self._others_s()
        for _ in range(rounds):
            able = [name for name, timed in self.timed.items() if timed.failure is None]
            for name in self.random.sample(able, len(able)):
                self._connections[name].send(None)
                answer = self._answer(name)
                if isinstance(answer, float):
                    self.timed[name].seconds.append(answer)
                said(name)
            there_were_s = (time.monotonic() - began_at) * (psutil.cpu_count() or 1)
            self.disturbance.share = max(0.0, (self._others_s() - busy_s) / there_were_s)

    def _others_s(self) -> float:
        """Processor seconds since the machine started that were not our contenders'."""
        times = psutil.cpu_times()
        own = [psutil.Process(p.pid).cpu_times() for p in self._processes.values() if p.is_alive()]
        return sum(getattr(times, kind, 0.0) for kind in WORK) - sum(t.user + t.system for t in own)

    def _start(self, task: Task) -> None:
        context = get_context("forkserver")  # imports torch once for all
        context.set_forkserver_preload(list(PRELOADED))
        from bench.speed.contender import work  # late: the command line answers without torch

        ours, theirs = context.Pipe()
        folder = str(Path(self._folder.name) / task.contender)
        process = context.Process(target=work, args=(task, folder, theirs))  # no daemon: it starts loaders
        process.start()
        theirs.close()  # so that the end of either process is seen by the other
        self._processes[task.contender], self._connections[task.contender] = process, ours

    def _answer(self, name: str) -> Facts | float | None:
        """What it says next; None if it has failed or died, which is noted."""
        process, connection = self._processes[name], self._connections[name]
        ready = wait([connection, process.sentinel])
        try:
            answer = connection.recv() if connection in ready else None
        except (EOFError, OSError):
            answer = None
        if isinstance(answer, Facts | float):
            return answer
        process.join(JOIN_S)
        died = f"its process died (exit code {process.exitcode})"
        self.timed[name].failure = answer.reason if isinstance(answer, Failure) else died
        return None
