"""Time contenders in interleaved rounds: tasks -> seconds per step.

Each contender is a process that waits on a pipe for its turn, so exactly one works at a time, and whatever
slows the machine for a while slows all of them alike.
"""

import io
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from tqdm import tqdm

from bench.config.schema import Trainer
from bench.errors import in_one_line
from bench.models.from_huggingface import quiet_transformers
from bench.speed import ours, peers
from bench.speed.settings import (
    ABLATIONS,
    BARE,
    COMPILED,
    DATA,
    LIMIT,
    NANOGPT,
    OURS,
    SMALL,
    Facts,
    Failure,
    Pace,
    Task,
)
from bench.training.process import peak_memory_bytes, set_up_process

PRELOADED = ("bench.speed.interleave",)  # by the server that contenders are forked from
JOIN_S = 5.0
BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # states of processors that count as busy

Contender = Callable[[Task, Path, Pace], object]
CONTENDERS: Mapping[str, Contender] = {
    OURS: ours.fit,
    COMPILED: ours.fit,  # by its spec
    SMALL: ours.fit,  # by its spec
    BARE: ours.bare_loop,
    DATA: ours.data_alone,
    LIMIT: ours.products_alone,
    **{name: partial(ours.fit_without, name) for name in ABLATIONS},
    NANOGPT: peers.train_nanogpt,
    **{name: partial(peers.train_stock, stock) for name, stock in peers.STOCK.items()},
}


def busy_s() -> float:
    """Return the busy seconds of all processors since the machine started."""
    times = psutil.cpu_times()
    return sum(getattr(times, kind, 0.0) for kind in BUSY)


# The process that times


@dataclass
class Timed:
    """The measurements of one contender."""

    facts: Facts | None = None
    seconds: list[float] = field(default_factory=list)  # of a step, in each round
    failure: str | None = None


class Contest:
    """The contenders of one cell; use it as a context manager, which ends their processes.

    Args:
        tasks: one for each contender.
        seed: of the order in each round.

    Attributes:
        timed: the measurements by contender.
        others_share: the share of all processors that other processes used; None before the first round.
    """

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        self.tasks, self.random = tasks, random.Random(seed)  # noqa: S311 -- no secret
        self.timed = {task.contender: Timed() for task in tasks}
        self.others_share: float | None = None
        self._processes: dict[str, BaseProcess] = {}
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> "Contest":
        self._folder = TemporaryDirectory(prefix="bench-speed-")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()  # there is no state to save
        for process in self._processes.values():
            process.join(JOIN_S)
        for connection in self._connections.values():
            connection.close()
        self._folder.cleanup()

    def run(self, rounds: int, on_block: Callable[[str], None]) -> None:
        """Warm up all contenders, then time them in rounds; a contender that fails drops out.

        Args:
            rounds: in each of which every contender does one block of steps.
            on_block: is called with the contender's name after each block.
        """
        for task in self.tasks:  # all at the same time, since some compile for a minute
            self._start(task)
        for task in self.tasks:
            answer = self._answer(task.contender)
            if isinstance(answer, Facts):
                self.timed[task.contender].facts = answer
            on_block(task.contender)
        began_at, busy_before_s = time.monotonic(), self._others_s()
        for _ in range(rounds):
            able = [name for name, timed in self.timed.items() if timed.failure is None]
            for name in self.random.sample(able, len(able)):
                self._connections[name].send(None)
                answer = self._answer(name)
                if isinstance(answer, float):
                    self.timed[name].seconds.append(answer)
                on_block(name)
            available_s = (time.monotonic() - began_at) * (psutil.cpu_count() or 1)
            self.others_share = max(0.0, (self._others_s() - busy_before_s) / available_s)

    def _others_s(self) -> float:
        """Return the busy seconds of all processes other than the contenders."""
        own = [psutil.Process(p.pid).cpu_times() for p in self._processes.values() if p.is_alive()]
        return busy_s() - sum(t.user + t.system for t in own)

    def _start(self, task: Task) -> None:
        context = get_context("forkserver")  # imports torch once for all
        context.set_forkserver_preload(list(PRELOADED))
        here, there = context.Pipe()
        folder = str(Path(self._folder.name) / task.contender)
        process = context.Process(target=work, args=(task, folder, there))  # not a daemon: it starts loaders
        process.start()
        there.close()  # so that each process notices the end of the other
        self._processes[task.contender], self._connections[task.contender] = process, here

    def _answer(self, name: str) -> Facts | float | None:
        """Return a contender's next message; None if it has failed or died, which is recorded."""
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


# A contender's process


class Baton:
    """Hands control to the process that times, and waits until it is handed back.

    Args:
        connection: to the process that times; this process ends with it.
        warmup_steps: steps that are not timed.
        steps_per_round: steps of one block.
        trainer: the device of the steps.
    """

    def __init__(
        self, connection: Connection, warmup_steps: int, steps_per_round: int, trainer: Trainer
    ) -> None:
        self.connection, self.warmup_steps, self.steps_per_round = connection, warmup_steps, steps_per_round
        self.trainer, self.wait = trainer, ours.waiting(trainer)
        self._done = 0

    def start(self, facts: Facts) -> None:
        """Keep the facts, to be sent when the first steps, which are slower, are over."""
        self._facts = facts

    def step(self) -> None:
        """Count a step; hand control over after the warm-up and after every block."""
        self._done += 1
        if self._done == self.warmup_steps:
            self.wait()
            self._hand_over(replace(self._facts, peak_memory_bytes=peak_memory_bytes(self.trainer)))
        elif self._done > self.warmup_steps and not (self._done - self.warmup_steps) % self.steps_per_round:
            self.wait()
            self._hand_over((time.perf_counter() - self._began_at) / self.steps_per_round)

    def tell(self, seconds: float) -> None:
        """Send the seconds of a step; the first call is the warm-up."""
        self._hand_over(seconds if self._done else self._facts)
        self._done += 1

    def _hand_over(self, message: Facts | float) -> None:
        try:
            self.connection.send(message)
            self.connection.recv()
        except (EOFError, OSError):  # the process that times has ended; there is no state to save
            os._exit(0)
        self._began_at = time.perf_counter()


def work(task: Task, folder: str, connection: Connection) -> None:
    """Act as a contender until the other end of the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that times handles Ctrl-C
    _silence()
    trainer = task.spec.typed().trainer
    if trainer.accelerator == "cpu":
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no helper processes while others are timed
    set_up_process(task.threads)  # as in bench.sweep.execute, for peers too
    torch.manual_seed(task.spec.seed)
    try:
        CONTENDERS[task.contender](
            task, Path(folder), Baton(connection, task.warmup_steps, task.steps_per_round, trainer)
        )
    except Exception as error:
        connection.send(Failure(in_one_line(error)))


def _silence() -> None:
    """Suppress all output and warnings of libraries."""
    tqdm.set_lock(threading.RLock())  # the default lock is shared by processes, and a killed one keeps it
    sys.stdout = sys.stderr = io.StringIO()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    quiet_transformers()
