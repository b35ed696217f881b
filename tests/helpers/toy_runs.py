"""Runs with what tasks found of them, made up so that statistics can be checked by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bench.analysis.frames import Cell, Condition, Measure, Tables, tabulate
from bench.records import (
    CurvePoint,
    EvaluationRecord,
    RunRecord,
    Score,
    Spent,
    TaskResult,
    write_evaluation,
    write_record,
)

SCRATCH = (0.50, 0.52, 0.54)
CLM = (0.60, 0.63, 0.66)  # minus scratch: 0.10, 0.11, 0.12
PROBE = Measure("probe", "accuracy")


def cell(strategy: str, budget: str | None = "1kb") -> Cell:
    return Cell(Condition(strategy, ""), "tiny", budget)


@dataclass(frozen=True)
class ToyRun(RunRecord):
    """A record and, beside it, its results."""

    results: tuple[TaskResult, ...] = ()

    def record(self) -> RunRecord:
        return RunRecord(**{field.name: getattr(self, field.name) for field in fields(RunRecord)})


def make_run(strategy: str, seed: int, value: float | None, **changes: Any) -> ToyRun:
    """One run with one score, or with `scores`; no score means that the run failed."""
    budget = changes.pop("budget", None if strategy == "scratch" else "1kb")
    usual = (Score("probe", "accuracy", value, 0.25, 100),) if value is not None else ()
    spent = Spent(steps=10, forward_tokens=1000, flops=1e9, unique_bytes=1000) if budget else Spent()
    run = ToyRun(
        run_id=f"{strategy}-{budget}-{seed}",
        study="toy",
        status="finished" if value is not None else "failed",
        strategy=strategy,
        model="tiny",
        budget=budget,
        variant="",
        seed=seed,
        corpus={"text": "toy"},
        config={"optim": {"lr_peak": 0.001}},
        reason=None if value is not None else "out of memory",
        parameters=100,
        spent=spent if value is not None else Spent(),
        curve=(CurvePoint(10, 1000, 1e9, 2.0, 2.5),) if budget and value is not None else (),
        data={"text": {"content_hash": "abc"}},
        environment={"torch": "2.7"},
        started_at="2026-01-02T03:04:05+00:00",
        results=results_from(changes.pop("scores", usual)),
    )
    return replace(run, **changes)


def results_from(scores: Sequence[Score], protocol: str = "finetune") -> tuple[TaskResult, ...]:
    """One finished result per task, which trains the network unless told otherwise."""
    names = dict.fromkeys(score.task for score in scores)
    return tuple(
        TaskResult(
            name,
            "finished",
            {"protocol": protocol, "steps": 1},
            scores=tuple(s for s in scores if s.task == name),
        )
        for name in names
    )


def toy_runs() -> list[ToyRun]:
    """Three seeds of scratch and of clm at one budget."""
    runs = [make_run("scratch", seed, value) for seed, value in enumerate(SCRATCH)]
    return runs + [make_run("clm", seed, value) for seed, value in enumerate(CLM)]


def tables_of(runs: Sequence[ToyRun]) -> Tables:
    results = {run.run_id: {result.task: result for result in run.results} for run in runs}
    return tabulate("toy", [run.record() for run in runs], results)


def toy_tables(*more: ToyRun) -> Tables:
    return tables_of([*toy_runs(), *more])


def write_study(folder: Path, runs: Sequence[ToyRun]) -> Path:
    """Write both kinds of records below `folder`/experiments/toy."""
    study = folder / "experiments" / "toy"
    for run in runs:
        write_record(run.record(), study / "records")
        if run.results:
            evaluation = EvaluationRecord("e0", run.run_id, "toy", run.results)
            write_evaluation(evaluation, study / "evaluations")
    return folder
