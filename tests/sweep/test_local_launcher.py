"""How many runs go side by side: one per core, as many as the machine's memory holds."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.config.build import build
from bench.config.compose import compose_runs
from bench.config.run_spec import RunSpec
from bench.records import read_record
from bench.sweep.launchers import local
from bench.sweep.launchers.base import Launcher
from bench.sweep.progress import Display

RECORDS = sorted((Path(__file__).resolve().parents[2] / "experiments").glob("*/records/*.json"))
PLAIN = {"accumulate_grad_batches": 1, "recompute": False}


def shared(monkeypatch: pytest.MonkeyPatch, memory: float, cores: int, *words: str) -> tuple[int, int]:
    """Workers and threads of each, for a sweep of twelve runs on such a machine."""
    found: list[tuple[int, int]] = []

    def run(todo: Any, workers: int, threads: int, display: Display) -> dict[str, str]:
        found.append((workers, threads))
        return {}

    monkeypatch.setattr(local, "_run_in_pool", run)
    monkeypatch.setattr(local, "_cores", lambda: cores)
    monkeypatch.setattr(local.psutil, "virtual_memory", lambda: SimpleNamespace(total=memory))
    first = ("strategy=clm", "model=0.2m")
    specs = compose_runs([*first, "seed=range(12)", *words], multirun=True)
    launcher = build(specs[0].config["launcher"], Launcher, "launcher")
    with Display(len(specs), 0) as display:
        launcher.launch(specs, specs, display)
    return found[0]


def test_a_machine_with_memory_enough_does_a_run_on_each_core(monkeypatch: pytest.MonkeyPatch):
    assert shared(monkeypatch, 64e9, 8) == (8, 1)


@pytest.mark.slow
def test_where_memory_is_short_fewer_runs_have_more_threads_each(monkeypatch: pytest.MonkeyPatch):
    assert shared(monkeypatch, 5e9, 8) == (2, 4)
    assert shared(monkeypatch, 5e9, 8, "model=150m") == (1, 8)  # too large even alone: still tried
    assert shared(monkeypatch, 5e9, 8, "launcher.workers=6") == (6, 1)  # as it was asked for


@pytest.mark.slow
def test_by_throughput_the_largest_run_that_is_trained_stands_for_all(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, int, int]] = []

    def fastest(spec: RunSpec, cores: int, most: int) -> int:
        asked.append((spec.model, cores, most))
        return 2

    monkeypatch.setattr(local, "fastest", fastest)
    words = ("launcher.workers_by=throughput", "model=0.2m,1m,0.5m")
    assert shared(monkeypatch, 64e9, 8, *words) == (2, 4)
    assert shared(monkeypatch, 64e9, 8, *words, "strategy=scratch") == (8, 1)
    assert shared(monkeypatch, 64e9, 8, *words, "launcher.workers=3") == (3, 2)
    assert asked == [("1m", 8, 8)]


@pytest.mark.slow
def test_a_step_in_parts_or_recomputed_needs_less_memory(monkeypatch: pytest.MonkeyPatch):
    larger = ("model=150m", "optim.tokens_per_step=1_000_000")
    assert shared(monkeypatch, 600e9, 8, *larger) == (1, 8)
    in_parts, _ = shared(monkeypatch, 600e9, 8, *larger, "trainer.accumulate_grad_batches=32")
    recomputed, _ = shared(monkeypatch, 600e9, 8, *larger, "trainer.recompute=true")
    assert in_parts > recomputed > 1


WORKER = """
import os
from bench.sweep.worker import threads_of_torch
with threads_of_torch(1):
    from bench.training.process import set_up_process
import torch
torch.set_num_threads = None  # a call, which makes attention slower, fails
set_up_process(1)
print(torch.get_num_threads(), os.environ["OMP_NUM_THREADS"])
"""


@pytest.mark.slow
def test_a_worker_imports_torch_with_its_threads_and_leaves_the_environment_as_it_was():
    environment = os.environ | {"OMP_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-c", WORKER], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["1", "3"], done.stderr


def test_no_committed_run_took_more_than_is_reckoned():
    peaks = []
    for record in map(read_record, RECORDS):
        if record.spent.peak_memory_bytes and record.config["model"].get("name") is None:
            config = (
                {"optim": {"tokens_per_step": 1}} | record.config | {"trainer": PLAIN}
            )  # scratch: no step
            peaks.append(record.spent.peak_memory_bytes / local.run_bytes(config))
    assert len(peaks) > 100
    assert 0.5 < max(peaks) <= 1
