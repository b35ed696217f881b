"""A sweep's runs side by side on this machine: skip what is done, survive what fails, say what happened.

Runs are done by worker processes that import torch once; this process never does. A worker that dies
takes its run with it and nothing else.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import psutil
from filelock import Timeout
from pebble import ProcessExpired, ProcessPool

from bench import branching, budget, schema, sharing
from bench.analysis.claims import read_claims
from bench.display import Display, read_status
from bench.errors import in_one_line
from bench.prepare import check_machine, prepare
from bench.pretrained import CheckpointError
from bench.records import RunRecord, write_atomically, write_evaluation, write_record
from bench.spec import RunSpec
from bench.stopping import supervisors

POLL_S = 0.25
GRACE_S = 60.0  # for workers to save and stop


def launch(specs: Sequence[RunSpec]) -> dict[str, str]:
    """Do the runs that are not done yet.

    Returns:
        The status of every run by id: finished, diverged, failed or interrupted; busy (another launcher is
        doing it) only where this one was interrupted.

    Raises:
        BenchError: a config or corpus that cannot work, before any run is started.
    """
    statuses = _prepare(specs)
    statuses |= {spec.run_id: record.status for spec in specs if (record := done(spec))}
    todo = [spec for spec in specs if spec.run_id not in statuses]
    branching.announce(todo)
    todo = _in_order(todo)
    n_done = sum(status in ("finished", "diverged") for status in statuses.values())
    with Display(len(specs), n_done) as display:
        for line in sharing.damage(todo):
            display.say(line)
        return statuses | sharing.share(todo, lambda runs: _run(specs, runs, display), display)


def _run(specs: Sequence[RunSpec], todo: Sequence[RunSpec], display: Display) -> dict[str, str]:
    """Do some runs of a sweep, here or in a pool."""
    settings = specs[0].typed().launcher
    if settings.workers == 0 or not todo:
        return _run_here(todo, settings.threads_per_worker, display)
    # By all runs, not by those left: with another number of threads, a run rounds otherwise.
    workers = min(settings.workers or _default_workers(specs), len(specs))
    threads = settings.threads_per_worker or max(1, _cores() // workers)
    return _run_in_pool(todo, min(workers, len(todo)), threads, display)


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
        check_machine(spec.typed())
    statuses = {}
    for spec in specs:
        try:
            prepare(spec)
        except CheckpointError as error:
            statuses[spec.run_id] = _record_failure(spec, str(error))
    return statuses


def _default_workers(specs: Sequence[RunSpec]) -> int:
    """One run per core; one at a time where a run wants a GPU or several ranks for itself."""
    trainers = [spec.typed().trainer for spec in specs]
    return 1 if any(t.accelerator == "gpu" or t.devices > 1 for t in trainers) else _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_one(text: str, threads: int | None, before: str | None = None) -> str:
    """Do one run in this process, or under torchrun if it wants several; the entry of a worker.

    Args:
        text: the run, as `RunSpec.to_json` writes it.
        threads: for matrix products; None: torch's choice.
        before: the run's `RunSpec.version` when the launcher began; see `sharing.ended`.

    Returns:
        Its status, or `busy` if another process holds it.
    """
    spec = RunSpec(**json.loads(text))
    spec.folder.mkdir(parents=True, exist_ok=True)
    try:
        with sharing.lock(spec.folder):
            if status := sharing.ended(spec, before):
                return status
            sharing.tidy(spec)
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
    except ProcessExpired as error:
        return _record_failure(spec, f"the worker process died: {_how_it_died(error)}")
    except Exception as error:
        return _record_failure(spec, in_one_line(error))


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
    before = read_status(spec.folder)
    with (spec.folder / "torchrun.log").open("w") as log:
        finished = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    state = read_status(spec.folder) or {}
    if state.get("status") == "interrupted" and state != before:
        return "interrupted"
    reason = f"torchrun exited with {finished.returncode}; see {spec.folder / 'torchrun.log'}"
    record = spec.recorded()
    if record is None:
        return _record_failure(spec, reason)
    if record.status != "finished" or spec.is_done():
        return record.status
    asked = any(result.status == "failed" for result in spec.results().values())
    return "failed" if asked else _record_failure(spec, reason)


def _in_order(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Longest first, so that there is no straggler at the end; but before the shorter runs that branch from
    a trunk, the longest of every trunk, which trains it.
    """
    n_before: Counter[Path] = Counter()
    ranked: list[tuple[int, RunSpec]] = []
    for spec in sorted(specs, key=_size, reverse=True):
        folder = branching.stable_trunk(spec)
        ranked.append((n_before[folder] if folder else 0, spec))
        n_before.update([folder] if folder else [])
    return [spec for _, spec in sorted(ranked, key=lambda pair: pair[0])]


def _size(spec: RunSpec) -> float:
    """Roughly proportional to a run's time."""
    config = spec.typed()
    if config.model.name is not None:
        return math.inf  # a checkpoint's size is not known yet, and seldom small
    parameters = budget.text_parameters(config.model, config.tokenizer.vocab_size)
    if config.strategy["modality"] == "none":
        return 0.0
    return config.budget.flops or float(parameters * (config.budget.tokens or 0))
