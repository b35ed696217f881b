"""A sweep's runs side by side on this machine: skip what is done, survive what fails, say what happened.

Runs are done by worker processes that import torch once; this process never does. A worker that dies
takes its run with it and nothing else.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from multiprocessing import get_context

import psutil
from filelock import FileLock, Timeout
from pebble import ProcessExpired, ProcessPool

from bench import budget, schema
from bench.analysis.claims import read_claims
from bench.display import Display, read_status
from bench.errors import ConfigError
from bench.prepare import prepare
from bench.pretrained import CheckpointError
from bench.records import RunRecord, write_atomically, write_evaluation, write_record
from bench.spec import RunSpec
from bench.stopping import supervisors

POLL_S = 0.25
GRACE_S = 60.0  # for workers to save and stop


def launch(specs: Sequence[RunSpec]) -> dict[str, str]:
    """Do the runs that are not done yet.

    Returns:
        The status of every run by id: finished, diverged, failed, interrupted or busy (another
        launcher is doing it).

    Raises:
        BenchError: a config or corpus that cannot work, before any run is started.
    """
    settings = specs[0].typed().launcher
    statuses = _prepare(specs)
    statuses |= {spec.run_id: record.status for spec in specs if (record := done(spec))}
    todo = [spec for spec in specs if spec.run_id not in statuses]
    todo.sort(key=_size, reverse=True)  # longest first: no straggler at the end
    n_done = sum(status in ("finished", "diverged") for status in statuses.values())
    with Display(len(specs), n_done) as display:
        if settings.workers == 0 or not todo:
            return statuses | _run_here(todo, settings.threads_per_worker, display)
        # By all runs, not by those left: with another number of threads, a run rounds otherwise.
        workers = min(settings.workers or _default_workers(specs), len(specs))
        threads = settings.threads_per_worker or max(1, _cores() // workers)
        return statuses | _run_in_pool(todo, min(workers, len(todo)), threads, display)


def planned(specs: Sequence[RunSpec]) -> list[str]:
    """What the runs' study claims, and whether they can tell; nothing where it claims nothing.

    Raises:
        ConfigError: a malformed claim.
    """
    asked = read_claims(specs[0].records.parent)
    if asked is None:
        return []
    from bench.analysis.planning import Sweep, plan  # scipy, for studies with claims only

    sweep = Sweep(
        strategies={spec.strategy for spec in specs},
        budgets={spec.budget for spec in specs},
        tasks={task for spec in specs for task in spec.config["task"]},
        seeds={spec.seed for spec in specs},
    )
    return plan(asked, sweep)


def _prepare(specs: Sequence[RunSpec]) -> dict[str, str]:
    """Prepare all runs' data; a run whose checkpoint cannot be used fails by itself.

    Returns:
        The status of those by id.
    """
    for spec in specs:
        schema.validate(spec.typed())
        refuse_nodes(spec)
    statuses = {}
    for spec in specs:
        try:
            prepare(spec)
        except CheckpointError as error:
            statuses[spec.run_id] = _record_failure(spec, str(error))
    return statuses


def refuse_nodes(spec: RunSpec) -> None:
    """A run over several nodes is not started from one of them: leave its config for torchrun.

    Raises:
        ConfigError: says how to start it.
    """
    settings = spec.typed().trainer
    if settings.nodes > 1 and not spec.is_done():
        spec.folder.mkdir(parents=True, exist_ok=True)
        config = spec.folder / "config.json"
        write_atomically(config, spec.to_json())
        raise ConfigError(
            f"trainer.nodes={settings.nodes}: on each node run torchrun --nnodes {settings.nodes} "
            f"--nproc-per-node {settings.devices} --rdzv-backend c10d --rdzv-endpoint HOST:PORT "
            f"-m bench.worker {config}"
        )


def _default_workers(specs: Sequence[RunSpec]) -> int:
    """One run per core; one at a time where a run wants a GPU or several ranks for itself."""
    trainers = [spec.typed().trainer for spec in specs]
    return 1 if any(t.accelerator == "gpu" or t.devices > 1 for t in trainers) else _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_one(text: str, threads: int | None) -> str:
    """Do one run in this process, or under torchrun if it wants several; the entry of a worker.

    Returns:
        Its status, or `busy` if another process holds it.
    """
    spec = RunSpec(**json.loads(text))
    spec.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(spec.folder / "lock", timeout=0):
            if record := done(spec):
                return record.status
            settings = spec.typed().trainer
            if settings.devices > 1:
                return _run_distributed(spec)
            from bench.train import execute  # torch, in the worker only

            return execute(spec, threads)
    except Timeout:
        return "busy"


def done(spec: RunSpec) -> RunRecord | None:
    """The run's record if nothing is left to do."""
    return spec.recorded() if spec.is_done() else None


def _run_here(specs: Sequence[RunSpec], threads: int | None, display: Display) -> dict[str, str]:
    statuses = {}
    for spec in specs:
        statuses[spec.run_id] = run_one(spec.to_json(), threads)
        display.finish(spec, statuses[spec.run_id])
        if statuses[spec.run_id] == "interrupted":
            break
    return statuses


def _run_in_pool(specs: Sequence[RunSpec], workers: int, threads: int, display: Display) -> dict[str, str]:
    pool = ProcessPool(max_workers=workers, context=get_context("spawn"))
    futures = {spec.run_id: pool.schedule(run_one, args=(spec.to_json(), threads)) for spec in specs}
    try:
        _watch(specs, futures, display)
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
    return {spec.run_id: _status(spec, futures[spec.run_id]) for spec in specs}


def _watch(specs: Sequence[RunSpec], futures: dict[str, "Future[str]"], display: Display) -> None:
    """Show the runs until all are done."""
    waiting = list(specs)
    while waiting:
        time.sleep(POLL_S)
        for spec in list(waiting):
            future = futures[spec.run_id]
            if future.done():
                waiting.remove(spec)
                display.finish(spec, _status(spec, future))
            elif future.running():
                display.update(spec)


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
            if spec.run_id not in asked and futures[spec.run_id].running() and _ask_to_stop(spec):
                asked.add(spec.run_id)
        time.sleep(POLL_S)


def _ask_to_stop(spec: RunSpec) -> bool:
    """Signal the process that does the run, if it is one of ours: a status file may be left from another."""
    state = read_status(spec.folder)
    if not state or state["status"] != "running":
        return False
    ours = {child.pid: child for child in psutil.Process().children(recursive=True)}
    if state["pid"] not in ours:
        return False
    with suppress(psutil.NoSuchProcess):
        ours[state["pid"]].terminate()
    return True


def _kill_descendants() -> None:
    """No process of a sweep outlives it; Python's own tracker ends by itself."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in child.cmdline()):
                child.kill()


def _status(spec: RunSpec, future: "Future[str]") -> str:
    """A finished future's status; a worker that died could not record its run, so that is done here."""
    try:
        return future.result()
    except CancelledError:
        return "interrupted"
    except Exception as error:
        what = "the worker process died" if isinstance(error, ProcessExpired) else type(error).__name__
        return _record_failure(spec, f"{what}: {error}")


def _status_when_stopped(future: "Future[str]") -> str:
    """The run's own word if it had one; a run cut off by the stop did not fail."""
    done = future.done() and not future.cancelled() and future.exception() is None
    return future.result() if done else "interrupted"


def _record_failure(spec: RunSpec, reason: str) -> str:
    """Of the run, or of its tasks if it was trained before its process broke; what is done stays so."""
    if record := done(spec):
        return record.status
    reason, trained = " ".join(reason.split()), spec.recorded()
    if trained is not None and trained.status == "finished":
        write_evaluation(spec.failed_evaluation(reason), spec.evaluations)
    else:
        write_record(spec.record("failed", reason), spec.records)
    return "failed"


def _run_distributed(spec: RunSpec) -> str:
    """One run over several processes of this node, each started by torchrun."""
    settings = spec.typed().trainer
    config = spec.folder / "config.json"
    write_atomically(config, spec.to_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(settings.devices), "-m", "bench.worker", str(config)]
    command += map(str, supervisors())
    started_at = time.time()
    with (spec.folder / "torchrun.log").open("w") as log:
        finished = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    state = read_status(spec.folder) or {}
    if state.get("status") == "interrupted" and state["updated_at"] >= started_at:
        return "interrupted"
    reason = f"torchrun exited with {finished.returncode}; see {spec.folder / 'torchrun.log'}"
    record = spec.recorded()
    if record is None:
        return _record_failure(spec, reason)
    if record.status != "finished" or spec.is_done():
        return record.status
    asked = any(result.status == "failed" for result in spec.results().values())
    return "failed" if asked else _record_failure(spec, reason)


def _size(spec: RunSpec) -> float:
    """Roughly proportional to a run's time."""
    config = spec.typed()
    if config.model.name is not None:
        return math.inf  # a checkpoint's size is not known yet, and seldom small
    parameters = budget.text_parameters(config.model, config.tokenizer.vocab_size)
    if config.strategy["modality"] == "none":
        return 0.0
    return config.budget.flops or float(parameters * (config.budget.tokens or 0))
