"""Execute one run in a worker process of a launcher: take its lock, skip it if done, record a failure."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import Timeout

from bench.config.run_spec import RunSpec
from bench.config.supervision import supervisors
from bench.records import write_atomically, write_evaluation, write_record
from bench.sweep import locks
from bench.sweep.launchers.base import POLL_S
from bench.sweep.progress import read_status
from bench.training.stopping import Stop

OMP = "OMP_NUM_THREADS"


def run_one(text: str, threads: int | None, before: str | None = None) -> str:
    """Execute one run in this process, or under torchrun if it needs several; the entry point of a worker.

    Args:
        text: the run, as written by `RunSpec.to_json`.
        threads: torch threads for matrix products; None leaves the choice to torch.
        before: the run's `RunSpec.version` when the launcher started; see `locks.ended`.

    Returns:
        The run's status, or `busy` if another process holds its lock.
    """
    spec = RunSpec(**json.loads(text))
    spec.folder.mkdir(parents=True, exist_ok=True)
    try:
        with locks.lock(spec.folder):
            if status := locks.ended(spec, before):
                return status
            locks.remove_partial_files(spec)
            if spec.typed().trainer.devices > 1:
                return _run_distributed(spec)
            with threads_of_torch(threads):
                from bench.sweep.execute import execute  # imports torch, in the worker only

            return execute(spec, threads)
    except Timeout:
        return "busy"


@contextmanager
def threads_of_torch(threads: int | None) -> Iterator[None]:
    """Set the number of threads for an import of torch inside this context; None leaves the choice to torch.

    If the number is set only later, by `torch.set_num_threads`, MKL opens a team of threads for each small
    product inside the threads of attention, and attention takes up to twice as long.
    """
    before = os.environ.get(OMP)
    if threads:
        os.environ[OMP] = str(threads)
    try:
        yield
    finally:  # child processes, such as torchrun, choose for themselves
        os.environ.pop(OMP, None)
        if before is not None:
            os.environ[OMP] = before


def record_failure(spec: RunSpec, reason: str) -> str:
    """Record that the run failed, or its tasks if it is already trained; return the run's status.

    A run that is already done keeps its status.
    """
    if status := locks.ended(spec):
        return status
    reason, trained = " ".join(reason.split()), spec.recorded()
    if trained is not None and trained.status == "finished":
        write_evaluation(spec.failed_evaluation(reason), spec.evaluations)
    else:
        write_record(spec.record("failed", reason), spec.records)
    return "failed"


def ask_to_stop(spec: RunSpec) -> bool:
    """Signal the run's process if it is a descendant of this one, since its status file may be stale."""
    state = read_status(spec.folder)
    if not state or state["status"] != "running":
        return False
    ours = {child.pid: child for child in psutil.Process().children(recursive=True)}
    if state["pid"] not in ours:
        return False
    with suppress(psutil.NoSuchProcess):
        ours[state["pid"]].terminate()
    return True


def _run_distributed(spec: RunSpec) -> str:
    """Execute one run over several processes of this node by torchrun, and return its status."""
    config = spec.folder / "config.json"
    write_atomically(config, spec.to_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(spec.typed().trainer.devices)]
    command += ["-m", "bench.sweep.torchrun_worker", str(config), *map(str, supervisors())]
    log, before = spec.folder / "torchrun.log", read_status(spec.folder)
    returncode = _supervise(spec, command, log)
    state = read_status(spec.folder) or {}
    if state.get("status") == "interrupted" and state != before:
        return "interrupted"
    record = spec.recorded()
    reason = f"torchrun exited with {returncode}; see {log}"
    if record is None:
        return record_failure(spec, reason)
    if record.status != "finished" or spec.is_done():
        return record.status
    has_failed = any(result.status == "failed" for result in spec.results().values())
    return "failed" if has_failed else record_failure(spec, reason)


def _supervise(spec: RunSpec, command: list[str], log: Path) -> int:
    """Run torchrun to its end and return its exit code; pass a stop signal on to the ranks, which save."""
    stop, asked = Stop(supervisors()), False
    # Slurm signals all processes of a job, and SIGUSR2 would kill torchrun before its ranks have saved.
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        stop.listen()
        try:
            while process.poll() is None:
                asked = asked or (stop.wanted() and ask_to_stop(spec))
                time.sleep(POLL_S)
        finally:
            process.kill()  # after a second Ctrl-C; the ranks notice it
            signal.signal(signal.SIGUSR2, before)
    return process.returncode
