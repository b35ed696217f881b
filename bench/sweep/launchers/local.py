"""Execute runs in parallel on this machine, in worker processes; this process never imports torch.

If a worker dies, only its run is lost.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Annotated, Any

import psutil
from annotated_types import Interval
from omegaconf import MISSING
from pebble import ProcessExpired, ProcessPool
from typing_extensions import override

from bench.config.bounds import choice
from bench.config.run_spec import RunSpec
from bench.config.schema import MOST_PROCESSES, Model, Processes
from bench.config.supervision import SAVING_S, end_with
from bench.errors import in_one_line
from bench.models.flops import text_parameters
from bench.sweep.launchers.base import GRACE_S, POLL_S, QUEUED, RUNNING, Launcher, LauncherOptions, watch
from bench.sweep.progress import Display
from bench.sweep.throughput import fastest
from bench.sweep.worker import ask_to_stop, record_failure, run_one
from bench.training.memory import STATE_BYTES, activation_bytes, check_machine

WORKER_BYTES = 2e9  # of a process with libraries, data and tasks; committed records show 0.6 to 1.8 GB
MOST_TOWERS = 3  # an encoder and a decoder with cross-attention are 2.5 text backbones
FLOAT32 = 2  # relative to the bfloat16 of `activation_bytes`


class Local(Launcher):
    """Launcher with a pool of worker processes."""

    @dataclass(frozen=True)
    class Options(LauncherOptions):
        """How the runs share the machine."""

        # null: one per core, fewer if memory or a GPU is short
        workers: Annotated[int, Interval(ge=0, le=MOST_PROCESSES)] | None = MISSING
        threads_per_worker: Processes | None = MISSING  # null: the cores divided by the workers
        # How workers=null is chosen: by cores, or by measured throughput.
        workers_by: Annotated[str, choice("cores", "throughput")] = "cores"

    options: Options

    @override
    def check(self, specs: Sequence[RunSpec]) -> None:
        for spec in specs:
            check_machine(spec.typed())

    @override
    def launch(self, specs: Sequence[RunSpec], todo: Sequence[RunSpec], display: Display) -> dict[str, str]:
        if self.options.workers == 0 or not todo:
            return _run_here(todo, self.options.threads_per_worker, display)
        # Count all runs, not only those left: with another number of threads, a run's rounding differs.
        workers = min(self.options.workers or self._default_workers(specs, display), len(specs))
        threads = self.options.threads_per_worker or max(1, _cores() // workers)
        return _run_in_pool(todo, min(workers, len(todo)), threads, display)

    def _default_workers(self, specs: Sequence[RunSpec], display: Display) -> int:
        """Return `_most_workers`, or with workers_by=throughput the fastest number for the largest run."""
        most = _most_workers(specs)
        trained = [s for s in specs if s.config["strategy"]["modality"] != "none"]
        own = [spec for spec in trained if spec.config["model"]["name"] is None]
        if self.options.workers_by == "cores" or not own:
            return most
        display.say("measuring how many parallel runs train fastest")
        return fastest(max(own, key=lambda spec: run_bytes(spec.config)), _cores(), most)


def _most_workers(specs: Sequence[RunSpec]) -> int:
    """Return one worker per core, limited by memory; one if a run needs a GPU or several ranks.

    The limit uses the machine's total memory, not the free memory: the number of workers sets the number of
    threads, and hence rounding.
    """
    trainers = [spec.config["trainer"] for spec in specs]
    if any(t["accelerator"] == "gpu" or t["devices"] > 1 for t in trainers):
        return 1
    n_held = int(psutil.virtual_memory().total / max(run_bytes(spec.config) for spec in specs))
    return max(1, min(_cores(), n_held))


def run_bytes(config: Mapping[str, Any]) -> float:
    """Return an upper estimate of a run's memory on CPU, so that no sweep runs out of memory."""
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
    watch_us = partial(end_with, [os.getpid()], grace_s=SAVING_S)
    pool = ProcessPool(max_workers=workers, context=get_context("spawn"), initializer=watch_us)
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
    """Ask the running workers to save their state and stop, and wait for them."""
    display.say("stopping: runs save their state; the same command resumes them")
    for future in futures.values():
        if not future.running():
            future.cancel()
    asked: set[str] = set()
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and any(f.running() for f in futures.values()):
        for spec in specs:  # a worker that is still importing can only be asked later
            if spec.run_id not in asked and futures[spec.run_id].running() and ask_to_stop(spec):
                asked.add(spec.run_id)
        time.sleep(POLL_S)


def _kill_descendants() -> None:
    """Kill all processes of the sweep, except Python's resource tracker, which ends by itself."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in child.cmdline()):
                child.kill()


def _status(spec: RunSpec, future: "Future[str]") -> str:
    """Return a run's status, and record the failure of a run whose worker died."""
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
            "killed by signal 9, usually because memory ran out: "
            "lower optim.tokens_per_step, model or launcher.workers"
        )
    return str(error)


def _status_when_stopped(future: "Future[str]") -> str:
    """Return the status that the run reported, or `interrupted` if it was cut off by the stop."""
    done = future.done() and not future.cancelled() and future.exception() is None
    return future.result() if done else "interrupted"
