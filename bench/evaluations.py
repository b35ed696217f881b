"""Evaluation records: what tasks found of a run. Tasks can be added to a run without touching its own record.

Like it, each is one JSON file, written once and atomically; arrays of outcomes by item lie beside it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.errors import DataError
from bench.reading import Written, typed
from bench.records import SCHEMA_VERSION, Energy, Score, as_json, named, readable, write_atomically

TaskStatus = Literal["finished", "inapplicable", "failed"]


@dataclass(frozen=True)
class EvaluationCost:
    """What a task took of a run, apart from pretraining; None: not measured. See `bench.tasks.meter`."""

    seconds: float | None = None
    flops: float | None = None
    energy: Energy | None = None


@dataclass(frozen=True)
class TaskResult:
    """What one task found of one run. `reason`: why it has no scores; `counts`: items that did not count."""

    task: str
    status: TaskStatus
    config: dict[str, Any]  # the task's own, as it was resolved
    reason: str | None = None
    scores: tuple[Score, ...] = ()
    cost: EvaluationCost = field(default_factory=EvaluationCost)
    counts: dict[str, int] = field(default_factory=dict)
    samples: list[dict[str, Written]] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluationRecord:
    """Tasks that were done of one run together.

    Arrays that the scores are made of (outcomes by item) lie beside it as `<task>/<name>`; see `items_path`.
    """

    evaluation_id: str  # the hash of the run's id and the tasks' configs
    run_id: str
    study: str
    results: tuple[TaskResult, ...]
    data: dict[str, Any] = field(default_factory=dict)  # of a model that lies elsewhere: what was asked
    environment: dict[str, str] = field(default_factory=dict)
    started_at: str = ""
    command: str = ""
    schema_version: int = SCHEMA_VERSION


def evaluation_id(run_id: str, tasks: Mapping[str, Any]) -> str:
    """The identity of an evaluation: of which run, which tasks, how."""
    text = json.dumps([run_id, tasks], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_evaluation(record: EvaluationRecord, folder: Path) -> Path:
    """Write `<folder>/<run_id>.<evaluation_id>.json` whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.run_id}.{record.evaluation_id}.json"
    write_atomically(path, as_json(record))
    return path


def read_evaluation(path: Path) -> EvaluationRecord:
    """Read one evaluation.

    Raises:
        DataError: truncated, foreign or of another schema version; names the file.
    """
    with readable(path, "an evaluation record") as raw:
        record = typed(EvaluationRecord, raw)
        for result in record.results:
            if stray := [score.task for score in result.scores if score.task != result.task]:
                raise ValueError(f"the result of {result.task} has a score of {stray[0]}")
        return named(path, f"{record.run_id}.{record.evaluation_id}", record)


def read_evaluations(
    folder: Path, run_id: str = "*"
) -> tuple[dict[str, list[EvaluationRecord]], list[DataError]]:
    """Evaluations by run id, a run's from oldest to newest, and an error for each that is not readable."""
    found: dict[str, list[EvaluationRecord]] = {}
    damaged: list[DataError] = []
    for path in sorted(folder.glob(f"{run_id}.*.json"), key=lambda path: path.name):
        try:
            record = read_evaluation(path)
        except DataError as error:
            damaged.append(error)
            continue
        found.setdefault(record.run_id, []).append(record)
    for records in found.values():
        records.sort(key=lambda record: (record.started_at, record.evaluation_id))
    return found, damaged


def items_path(folder: Path, record: EvaluationRecord) -> Path:
    """Where an evaluation's arrays lie, if it has any."""
    return folder / f"{record.run_id}.{record.evaluation_id}.npz"


def results_of(evaluations: Iterable[EvaluationRecord]) -> dict[str, TaskResult]:
    """The latest word on each task; one that failed never replaces one that did not."""
    found: dict[str, TaskResult] = {}
    for result in (result for evaluation in evaluations for result in evaluation.results):
        if result.status != "failed" or result.task not in found:
            found[result.task] = result
    return found
