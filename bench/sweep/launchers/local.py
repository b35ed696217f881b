"""Runs side by side on this machine, in worker processes that import torch once; this process never does.

A worker that dies takes its run with it and nothing else.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import psutil
from omegaconf import MISSING
from pebble import ProcessExpired, ProcessPool

from bench.config.run_spec import RunSpec
from bench.config.schema import MOST_PROCESSES, Model
from bench.errors import ConfigError, in_one_line
from bench.models.capacity import check_machine
from bench.models.flops import text_parameters
from bench.sweep.launchers.base import GRACE_S, POLL_S, QUEUED, RUNNING, Launcher, at_least, at_most, watch
from bench.sweep.launchers.run import ask_to_stop, record_failure, run_one
from bench.sweep.launchers.throughput import fastest
from bench.sweep.progress import Display
from bench.training.memory import STATE_BYTES, activation_bytes

WORKER_BYTES = 2e9  # of a process with its libraries, data and tasks; committed records say 0.6 to 1.8
MOST_TOWERS = 3  # an encoder and a decoder with cross-attention are two and a half text backbones
FLOAT32 = 2  # `activation_bytes` is for bfloat16


class Local(Launcher):
    """A pool of processes."""

    @dataclass(frozen=True)
    class Options:
        """How runs share the machine."""

        workers: int | None = MISSING  # side by side; null: one per core, fewer if memory or a GPU is short
        threads_per_worker: int | None = MISSING  # null: the cores divided among the workers
        workers_by: str = "cores"  # what workers=null stands for: cores, or throughput, which is measured

        def __post_init__(self) -> None:
            if self.workers_by not in ("cores", "throughput"):
                raise ConfigError(f"launcher.workers_by={self.workers_by!r}: choose cores or throughput")

    options: Options

    def check(self, specs: Sequence[RunSpec]) -> None:
        """Both numbers are of a size that one machine can do, and so are the runs."""
        at_least(self.options, workers=0, threads_per_worker=1)
        at_most(self.options, workers=MOST_PROCESSES, threads_per_worker=MOST_PROCESSES)
        for spec in specs:
            check_machine(spec.typed())

    def launch(self, specs: Sequence[RunSpec], todo: Sequence[RunSpec], display: Display) -> dict[str, str]:
        """In a pool, or with no workers one after the other in this process."""
        if self.options.workers == 0 or not todo:
            return _run_here(todo, self.options.threads_per_worker, display)
        # By all runs, not by those left: with another number of threads, a run rounds otherwise.
        workers = min(self.options.workers or self._default_workers(specs, display), len(specs))
        threads = self.options.threads_per_worker or max(1, _cores() // workers)
        return _run_in_pool(todo, min(workers, len(todo)), threads, display)

    def _default_workers(self, specs: Sequence[RunSpec], display: Display) -> int:
        """As `_most_workers`; by throughput, what is fastest for the run that takes longest."""
        most = _most_workers(specs)
        trained = [s for s in specs if s.config["strategy"]["modality"] != "none"]
        own = [spec for spec in trained if spec.config["model"]["name"] is None]
        if self.options.workers_by == "cores" or not own:
            return most
        display.say("measuring how many runs side by side train fastest")
        return fastest(max(own, key=lambda spec: run_bytes(spec.config)), _cores(), most)


def _most_workers(specs: Sequence[RunSpec]) -> int:
    """One run per core, as many as memory holds; one where a run wants a GPU or several ranks for itself.

    By all of the machine's memory, not by what is free: the number decides the threads, hence rounding.
    """
    trainers = [spec.config["trainer"] for spec in specs]
    if any(t["accelerator"] == "gpu" or t["devices"] > 1 for t in trainers):
        return 1
    n_held = int(psutil.virtual_memory().total / max(run_bytes(spec.config) for spec in specs))
    return max(1, min(_cores(), n_held))


def run_bytes(config: Mapping[str, Any]) -> float:
    """What a run on CPU may take, estimated from above: no sweep should end for want of memory."""
    model = Model(**config["model"])
    if model.name is not None:  # a checkpoint, whose size is not known yet
        return WORKER_BYTES
    parameters = MOST_TOWERS * text_parameters(model, config["tokenizer"]["vocab_size"])
    trainer = config["trainer"]
    held = config["optim"]["tokens_per_step"] / trainer["accumulate_grad_batches"]
    saved = FLOAT32 * activation_bytes(model, held, recompute=trainer["recompute"])
    return WORKER_BYTES + STATE_BYTES * parameters + saved


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_here(specs: Sequence[RunSpec], threads: int | None, display: Display) -> dict[str, str]:
    statuses = {}
    for spec in specs:
        statuses[spec.run_id] = run_one(spec.to_json(), threads, spec.version())
        display.finish(spec, statuses[spec.run_id])
        if statuses[spec.run_id] == "interrupted":
            break
    return statuses


def _run_in_pool(specs: Sequence[RunSpec], workers: int, threads: int, display: Display) -> dict[str, str]:
    pool = ProcessPool(max_workers=workers, context=get_context("spawn"))
    jobs = {spec.run_id: (spec.to_json(), threads, spec.version()) for spec in specs}
    futures = {run_id: pool.schedule(run_one, args=job) for run_id, job in jobs.items()}
    try:
        statuses = watch(specs, lambda spec: _status(spec, futures[spec.run_id]), display)
        pool.close()
        pool.join()
    except KeyboardInterrupt:
        try:
            _stop(specs, futures, display)
        finally:  # after a second Ctrl-C as well
            _kill_descendants()
            pool.stop()
            pool.join()
        return {spec.run_id: _status_when_stopped(futures[spec.run_id]) for spec in specs}
    return statuses


def _stop(specs: Sequence[RunSpec], futures: dict[str, "Future[str]"], display: Display) -> None:
    """Ask the running workers to save and stop, and wait for them."""
    display.say("stopping: runs save their state; the same command resumes them")
    for future in futures.values():
        if not future.running():
            future.cancel()
    asked: set[str] = set()
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and any(f.running() for f in futures.values()):
        for spec in specs:  # a worker that is still importing can be asked later only
            if spec.run_id not in asked and futures[spec.run_id].running() and ask_to_stop(spec):
                asked.add(spec.run_id)
        time.sleep(POLL_S)


def _kill_descendants() -> None:
    """No process of a sweep outlives it; Python's own tracker ends by itself."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in child.cmdline()):
                child.kill()


def _status(spec: RunSpec, future: "Future[str]") -> str:
    """A run's status; a worker that died could not record its run, so that is done here."""
    if not future.done():
        return RUNNING if future.running() else QUEUED
    try:
        return future.result()
    except CancelledError:
        return "interrupted"
    except ProcessExpired as error:
        return record_failure(spec, f"the worker process died: {_how_it_died(error)}")
    except Exception as error:
        return record_failure(spec, in_one_line(error))


def _how_it_died(error: ProcessExpired) -> str:
    if error.exitcode == -signal.SIGKILL:
        return (
            "killed by signal 9, as the system does when memory runs out: "
            "lower optim.tokens_per_step, model or launcher.workers"
        )
    return str(error)


def _status_when_stopped(future: "Future[str]") -> str:
    """The run's own word if it had one; a run cut off by the stop did not fail."""
    done = future.done() and not future.cancelled() and future.exception() is None
    return future.result() if done else "interrupted"
