"""Measure how many parallel runs train fastest on this machine; the result is kept with the prepared data."""

import json
import platform
import time
from collections.abc import Sequence
from hashlib import sha256
from importlib import metadata
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bench.config.run_spec import RunSpec
from bench.data.prepare import prepare
from bench.errors import BenchError, in_one_line
from bench.records import write_atomically
from bench.speed.settings import OURS, Task
from bench.sweep.worker import threads_of_torch

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

MEASURED_S = 3.0
WARMUP_STEPS = 2
MOST_STEPS = 1000  # for which data are generated
START_S = 120.0  # for a process to import torch and do its first steps
TIE = 0.03  # rates within this share count as equal; the largest number of workers is then chosen


def fastest(spec: RunSpec, cores: int, most: int) -> int:
    """Return the number of workers that together train the most steps per second.

    Args:
        spec: the run that represents all runs of the sweep.
        cores: divided among the workers.
        most: the largest number of workers that memory allows.

    Raises:
        BenchError: a process could not train.
    """
    counts = sorted({most, *(2**i for i in range(most.bit_length()) if 2**i <= most)})
    if len(counts) == 1:
        return most
    path = Path(spec.config["paths"]["data"]) / "throughput" / f"{_digest(spec, cores, counts)}.json"
    if not path.exists():
        rates = {n: steps_per_s(spec, n, max(1, cores // n)) for n in counts}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"steps_per_s_of_workers": rates}) + "\n")
    found = json.loads(path.read_text(encoding="utf-8"))["steps_per_s_of_workers"]
    return max(int(n) for n, rate in found.items() if rate >= (1 - TIE) * max(found.values()))


def _digest(spec: RunSpec, cores: int, counts: Sequence[int]) -> str:
    """Hash all that a step's speed depends on; several machines may share a data folder."""
    parts = {key: spec.science[key] for key in ("strategy", "model", "sequence_length", "precision")}
    parts |= {"tokens_per_step": spec.config["optim"]["tokens_per_step"]}
    parts |= {"torch": metadata.version("torch"), "host": platform.node()}
    text = json.dumps([parts, cores, list(counts)], sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]


def steps_per_s(spec: RunSpec, workers: int, threads: int) -> float:
    """Return the total rate of parallel processes; raise BenchError if one of them could not train."""
    task = Task(OURS, spec, MOST_STEPS, WARMUP_STEPS, 1, prepare(spec).pairs.image_size, threads, None)
    context = get_context("spawn")
    together = context.Barrier(workers, timeout=START_S)
    with TemporaryDirectory(prefix="bench-throughput-") as folder:
        processes, connections = [], []
        for i in range(workers):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (task, str(Path(folder) / str(i)), together, theirs)
            processes.append(context.Process(target=_train, args=arguments, daemon=True))
            processes[-1].start()
            theirs.close()
            connections.append(ours)
        try:
            return sum(map(_answer, connections))
        finally:
            for process in processes:
                process.kill()
                process.join()


def _answer(connection: Connection) -> float:
    try:
        answer = connection.recv()
    except EOFError:
        answer = "a process died"
    if isinstance(answer, str):
        raise BenchError(f"launcher.workers_by=throughput: {answer}; set launcher.workers instead")
    return float(answer)


def _train(task: Task, folder: str, together: "Barrier", connection: Connection) -> None:
    """Send the steps per second, measured after all processes have done their first steps."""
    with threads_of_torch(task.threads):
        from bench.speed.ours import plain_steps, set_up
        from bench.training.process import set_up_process  # imports torch, in this process only

    set_up_process(task.threads)
    try:
        steps = plain_steps(set_up(task, Path(folder)))
        for _ in range(task.warmup_steps):
            next(steps)
        together.wait()
        began, n_steps = time.perf_counter(), 0
        while time.perf_counter() < began + MEASURED_S and n_steps < task.n_steps - task.warmup_steps:
            next(steps)
            n_steps += 1
        connection.send(n_steps / (time.perf_counter() - began))
    except Exception as error:
        together.abort()
        connection.send(in_one_line(error))
