"""Profile our training step with torch's profiler, in the bare loop: task -> shares of its time."""

import logging
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.speed.interleave import PRELOADED
from bench.speed.ours import plain_steps, set_up, waiting
from bench.speed.settings import Task
from bench.training.process import set_up_process

PRODUCTS, ATTENTION, OTHER, REST = "matrix products", "attention", "other operations", "Python and the rest"
N_STEPS = 5
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm_activation")
_ATTENTION = tuple(f"aten::_{kind}" for kind in ("scaled_dot", "flash_att", "efficient_att", "cudnn_att"))
_COMPILED = "triton_"


def shares(task: Task) -> dict[str, float]:
    """Return the share of a step's time for each kind of operation, measured in a separate process.

    It is empty if the process fails; the same error then fails the contender, which reports it.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with (
        TemporaryDirectory(prefix="bench-speed-") as folder,
        ProcessPoolExecutor(1, context, warnings.simplefilter, ("ignore",)) as pool,
    ):
        future = pool.submit(shares_here, task, Path(folder))
        return {} if future.exception() else future.result()


def shares_here(task: Task, folder: Path) -> dict[str, float]:
    """Return `shares`, measured in this process."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # suppress the message of its start
    from torch.profiler import ProfilerActivity, profile

    set_up_process(task.threads)
    logging.disable(logging.CRITICAL)
    steps = plain_steps(set_up(task, folder))
    list(islice(steps, task.warmup_steps))
    trainer = task.spec.typed().trainer
    wait, is_on_gpu = waiting(trainer), trainer.accelerator == "gpu"
    wait()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_on_gpu else [])]
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        list(islice(steps, N_STEPS))
        wait()
        whole_us = 1e6 * (time.perf_counter() - began)
    found = dict.fromkeys((PRODUCTS, ATTENTION, OTHER), 0.0)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            spent_us = event.self_device_time_total if is_on_gpu else event.self_cpu_time_total
            found[_part(event.key)] += spent_us / whole_us
        elif is_on_gpu and event.key.startswith(_COMPILED):  # kernels without a torch operation
            found[OTHER] += event.self_device_time_total / whole_us
    return found | {REST: 1 - sum(found.values())}


def _part(operation: str) -> str:
    if operation in _PRODUCTS:
        return PRODUCTS
    return ATTENTION if operation.startswith(_ATTENTION) else OTHER
