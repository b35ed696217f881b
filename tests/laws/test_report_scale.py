"""A report of ten thousand runs: in seconds, in little memory, and the same again."""

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from toy_runs import make_run

from bench.records import CurvePoint, EvaluationRecord, RunRecord, Score, Spent, TaskResult

STRATEGIES = ("clm", "gpt_bert", "mlm", "mntp", "span_corruption")
MODELS = ("1m", "4m", "17m", "32m", "150m")
BUDGETS = ("64kb", "256kb", "1mb", "4mb", "16mb", "64mb", "256mb", "1gb")
RATES = ("0.0003", "0.001", "0.002", "0.003", "0.01")
N_SEEDS = 10
TASKS = ("library_probe", "ner_ieer", "squad_probe", "polarity_probe", "qc_probe", "minimal_pairs_exact")
SECONDS, BYTES = 10, 1e9  # of one build on two cores
PATIENCE = 6  # times slower on a busy machine


def write_many(folder: Path) -> int:
    """A study of every strategy, model, budget, rate and seed, and scratch, with a score on each task.

    Returns:
        The number of runs.
    """
    records, evaluations = (folder / "experiments" / "toy" / name for name in ("records", "evaluations"))
    records.mkdir(parents=True)
    evaluations.mkdir()
    rng = np.random.default_rng(0)
    axes = range(len(MODELS)), range(N_SEEDS)
    grid = [("scratch", model, None, "", seed) for model, seed in itertools.product(*axes)]
    grid += itertools.product(STRATEGIES, axes[0], range(len(BUDGETS)), RATES, axes[1])
    for i, place in enumerate(grid):
        record, results = _run(f"{i:012x}", *place, rng.standard_normal(len(TASKS)))
        (records / f"{record.run_id}.json").write_text(json.dumps(asdict(record)))
        found = EvaluationRecord("e0", record.run_id, "toy", results)
        (evaluations / f"{record.run_id}.e0.json").write_text(json.dumps(asdict(found)))
    return len(grid)


def _run(
    run_id: str, strategy: str, size: int, data: int | None, rate: str, seed: int, noise: NDArray[np.float64]
) -> tuple[RunRecord, tuple[TaskResult, ...]]:
    level = 0.4 + 0.02 * size + 0.02 * (data or 0) + 0.01 * len(strategy)
    scores = [Score(t, "accuracy", level + 0.03 * x, 0.25, 500) for t, x in zip(TASKS, noise, strict=True)]
    budget, tokens = (None, 0) if data is None else (BUDGETS[data], 10**6 * 4**data)
    run = make_run(strategy, seed, 0.5, run_id=run_id, model=MODELS[size], scores=scores, budget=budget)
    flops = 6e6 * 4.0**size * tokens
    spent = Spent(steps=1000, forward_tokens=tokens, flops=flops, unique_bytes=64_000 * 4 ** (data or 0))
    curve = tuple(CurvePoint(s, s * tokens // 1000, s * 1e9, 9 / s, 10 / s) for s in range(100, 1100, 100))
    return replace(
        run.record(),
        variant=rate and f"optim.lr_peak={rate}",
        parameters=10**6 * 4**size,
        spent=spent if data is not None else Spent(),
        curve=curve if data is not None else (),
        config={f"group{i}": {f"key{j}": j for j in range(6)} for i in range(6)},
    ), run.results
