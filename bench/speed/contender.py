"""A contender's own process: it does its steps when it is told to, and says how long they took."""

import io
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from tqdm import tqdm

from bench.config.schema import Trainer
from bench.errors import in_one_line
from bench.models.from_huggingface import quiet_transformers
from bench.speed import ours, peers, stock
from bench.speed.contract import (
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
from bench.training.environment import peak_memory_bytes, set_up_process

Contender = Callable[[Task, Path, Pace], object]
CONTENDERS: Mapping[str, Contender] = {
    OURS: ours.fit,
    COMPILED: ours.fit,  # its spec says so
    SMALL: ours.fit,  # likewise
    BARE: ours.bare_loop,
    DATA: ours.data_alone,
    LIMIT: ours.products_alone,
    **{name: partial(ours.fit_without, name) for name in ABLATIONS},
    NANOGPT: peers.train_nanogpt,
}


class Baton:
    """Hands control to the process that times, and waits until it comes back.

    Args:
        connection: to that process; it ends with it.
        warmup_steps: that are not timed.
        steps_per_round: of a block.
        trainer: where the steps are done.
    """

    def __init__(
        self, connection: Connection, warmup_steps: int, steps_per_round: int, trainer: Trainer
    ) -> None:
        self.connection, self.warmup_steps, self.steps_per_round = connection, warmup_steps, steps_per_round
        self.trainer, self.wait = trainer, ours.waiting(trainer)
        self._done = 0

    def start(self, facts: Facts) -> None:
        """What a step will be; said when the first steps, which are slower, are over."""
        self._facts = facts

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._done == self.warmup_steps:
            self.wait()
            self._hand_over(replace(self._facts, peak_memory_bytes=peak_memory_bytes(self.trainer)))
        elif self._done > self.warmup_steps and not (self._done - self.warmup_steps) % self.steps_per_round:
            self.wait()
            self._hand_over((time.perf_counter() - self._began_at) / self.steps_per_round)

    def tell(self, seconds: float) -> None:
        """The first is for warming up."""
        self._hand_over(seconds if self._done else self._facts)
        self._done += 1

    def _hand_over(self, what: Facts | float) -> None:
        try:
            self.connection.send(what)
            self.connection.recv()
        except (EOFError, OSError):  # nobody times any more; nothing here needs saving
            os._exit(0)
        self._began_at = time.perf_counter()


def work(task: Task, folder: str, connection: Connection) -> None:
    """Be a contender until the other end of the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that times
    _be_quiet()
    trainer = task.spec.typed().trainer
    if trainer.accelerator == "cpu":
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no helpers at work while others are timed
    set_up_process(task.threads)  # as bench.sweep.execute does, for peers too
    torch.manual_seed(task.spec.seed)
    try:
        contender_of(task.contender)(
            task, Path(folder), Baton(connection, task.warmup_steps, task.steps_per_round, trainer)
        )
    except Exception as error:
        connection.send(Failure(in_one_line(error)))


def contender_of(name: str) -> Contender:
    """What does the steps of a contender."""
    if name in CONTENDERS:
        return CONTENDERS[name]
    return partial(peers.train_stock, stock.STOCK[name])


def _be_quiet() -> None:
    """What libraries print is not for whoever compares them."""
    tqdm.set_lock(threading.RLock())  # its own is shared by processes, and left behind by one that is killed
    sys.stdout = sys.stderr = io.StringIO()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    quiet_transformers()
