"""Run records -> rows of tables. What a run does not have is absent (None), never 0."""

from collections.abc import Iterable, Mapping
from typing import Any

from bench.records import RunRecord, Score, TaskResult

Row = dict[str, Any]  # by column
Results = Mapping[str, Mapping[str, TaskResult]]  # by run id and task

_ABSENT_WHEN_ZERO = {"unique_bytes", "unique_tokens", "unique_pairs", "peak_memory_bytes"}


def axes(record: RunRecord) -> Row:
    """The science axes of a run, as columns."""
    return {
        "run_id": record.run_id,
        "status": record.status,
        "strategy": record.strategy,
        "model": record.model,
        "budget": record.budget,
        "variant": record.variant,
        "seed": record.seed,
    }


def scores_of(record: RunRecord, results: Results) -> list[Score]:
    """All scores of a run, task by task in alphabetical order."""
    own = results.get(record.run_id, {})
    return [score for name in sorted(own) for score in own[name].scores]


def score_rows(record: RunRecord, results: Results, spent: Row) -> list[Row]:
    """One row per score of a run, with what the run used: `spent_columns`."""
    shared = axes(record)
    return [shared | vars(score) | spent for score in scores_of(record, results)]


def spent_columns(record: RunRecord, results: Results) -> Row:
    """What the run used; a zero that means "has none" or "never started" is absent.

    Energy is in a column of its own for each way to know it: measured and estimated are never added up.
    """
    spent = {name: value for name, value in vars(record.spent).items() if name != "energy"}
    costs = [task.cost for task in results.get(record.run_id, {}).values()]
    evaluated = {
        "evaluate_s": total([cost.seconds for cost in costs]),
        "evaluate_flops": total([cost.flops for cost in costs]),
    }
    energies = {"pretrain": [record.spent.energy], "evaluate": [cost.energy for cost in costs]}
    drawn = {
        f"{stage}_joules_{source}": total(e.joules for e in found if e is not None and e.source == source)
        for stage, found in energies.items()
        for source in ("measured", "estimated")
    }
    started = record.status == "finished" or spent["steps"] > 0
    absent = _ABSENT_WHEN_ZERO if started else spent.keys()
    columns = {name: None if not value and name in absent else value for name, value in spent.items()}
    return {"parameters": record.parameters or None} | columns | evaluated | drawn


def total(parts: Iterable[float | None]) -> float | None:
    """The sum of what was measured; None where nothing was."""
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def run_row(record: RunRecord, spent: Row) -> Row:
    """One run, whatever became of it, with what it used: `spent_columns`."""
    extra = {"reason": record.reason, "started_at": record.started_at or None}
    return axes(record) | extra | spent


def curve_rows(record: RunRecord) -> list[Row]:
    """One row per point of the pretraining curve."""
    shared = axes(record)
    return [shared | vars(point) for point in record.curve]
