"""The machine a run happened on: versions, processor, memory."""

import logging
import os
import platform
import subprocess
import warnings
from importlib import metadata
from pathlib import Path

import psutil
import torch
from threadpoolctl import threadpool_limits
from torch.utils import deterministic

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


def environment(trainer: Trainer) -> dict[str, str]:
    """Versions, commit, processor, ranks and threads, as recorded beside every result."""
    versions = {name: metadata.version(name) for name in VERSIONS_OF}
    on_gpu = trainer.accelerator == "gpu" and torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        **versions,
        "commit": _commit(),
        "system": platform.system(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "ranks": str(trainer.n_ranks),
        "threads": str(torch.get_num_threads()),
    }


def limit_blas() -> None:
    """numpy's and scipy's products on one thread: a probe's are small, and slow by far with more.

    Its results do not depend on the number of cores then. torch has threads of its own.
    """
    threadpool_limits(limits=1, user_api="blas")


def set_up_process(threads: int | None) -> None:
    """Before a process trains or measures; threads: for matrix products, None: torch's choice."""
    quiet_libraries()
    limit_blas()
    # A pass over every new tensor where algorithms are deterministic, to find bugs of torch.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_flush_denormal(True)  # vanishing weights otherwise cost up to three times the CPU time
    if threads and threads != torch.get_num_threads():  # a needless call slows it: see launchers/run.py
        torch.set_num_threads(threads)


def quiet_libraries() -> None:
    """Drop Lightning's banners and the warnings that no user can act on."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    unwanted = (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*non-writable tensors.*",
        ".*`srun` command.*",
    )
    for message in unwanted:
        warnings.filterwarnings("ignore", message=message)


def _commit() -> str:
    """The project's git commit, with `-dirty` where tracked files differ from it."""
    project = Path(__file__).resolve().parents[2]
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def reset_peak_memory() -> None:
    """Forget earlier runs of this process, where the system can (Linux, CUDA)."""
    refs = Path("/proc/self/clear_refs")
    if os.access(refs, os.W_OK):
        refs.write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes(trainer: Trainer) -> int:
    """Highest memory since the reset: allocated on the GPU if the run was there, else resident here."""
    if trainer.accelerator == "gpu":
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
