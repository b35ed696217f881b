"""The process in which a run is trained: its settings, versions and device, and its peak memory."""

import logging
import os
import platform
import warnings
from importlib import metadata
from pathlib import Path

import psutil
import torch
from threadpoolctl import threadpool_limits
from torch.utils import deterministic

from bench.config.installation import commit
from bench.config.schema import Trainer

VERSIONS_OF = (
    "torch",
    "pytorch-lightning",
    "hydra-core",
    "numpy",
    "scikit-learn",
    "tokenizers",
    "pretraining-bench",
)


def set_up_process(threads: int | None) -> None:
    """Prepare a process that trains or evaluates; `threads` for matrix products, None: torch's default."""
    quiet_libraries()
    limit_blas()
    # With deterministic algorithms torch would fill every new tensor, which only serves to find its bugs.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_flush_denormal(True)  # vanishing weights otherwise take up to three times the CPU time
    if threads and threads != torch.get_num_threads():  # a needless call slows it: see launchers/run.py
        torch.set_num_threads(threads)


def limit_blas() -> None:
    """Limit the products of numpy and scipy to one thread; torch has threads of its own.

    A probe's products are small and much slower with more threads, and its results then do not depend on the
    number of cores.
    """
    threadpool_limits(limits=1, user_api="blas")


def quiet_libraries() -> None:
    """Suppress Lightning's banners and the warnings on which no user can act."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    unwanted = (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*non-writable tensors.*",
        ".*`srun` command.*",
    )
    for message in unwanted:
        warnings.filterwarnings("ignore", message=message)


def environment(trainer: Trainer) -> dict[str, str]:
    """Return versions, commit, device, ranks and threads, as recorded with every result."""
    versions = {name: metadata.version(name) for name in VERSIONS_OF}
    on_gpu = trainer.accelerator == "gpu" and torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        **versions,
        "commit": commit(),
        "system": platform.system(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "ranks": str(trainer.n_ranks),
        "threads": str(torch.get_num_threads()),
    }


def reset_peak_memory() -> None:
    """Start measuring peak memory anew, where the system supports it (Linux, CUDA)."""
    refs = Path("/proc/self/clear_refs")
    if os.access(refs, os.W_OK):
        refs.write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes(trainer: Trainer) -> int:
    """Return the peak memory since the reset: allocated on the GPU if the run used it, else resident."""
    if trainer.accelerator == "gpu":
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
