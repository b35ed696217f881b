"""Run records -> tidy tables: scores (run x task x metric), runs, curves, and the values of each cell.

A cell is (strategy, variant, model, budget). Only finished runs have scores; a diverged or failed run is a
row of `runs` with its reason. What a run does not have is absent (None), never 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench.errors import ConfigError, DataError
from bench.records import (
    STUDY_NAME,
    RunRecord,
    Score,
    TaskResult,
    finished,
    read_evaluations,
    read_records,
    results_of,
)

Results = Mapping[str, Mapping[str, TaskResult]]  # by run id and task
Scored = Sequence[tuple[RunRecord, Score]]

BASELINE = "scratch"  # the strategy without pretraining, see DESIGN's vocabulary
EXTERNAL = ("reference", "endpoint")  # strategies that measure a model which was trained elsewhere

_INTEGERS = ["seed", "n_items", "n_labels", "parameters", "steps", "step"]
_INTEGERS += ["forward_tokens", "supervised_tokens"]
_INTEGERS += ["unique_bytes", "unique_tokens", "unique_pairs", "peak_memory_bytes"]
_REALS = ["value", "chance", "flops", "epochs", "pretrain_s", "evaluate_s", "train_loss_nats"]
_REALS += ["validation_loss_nats"]
_REALS += ["evaluate_flops", "pretrain_joules_measured", "pretrain_joules_estimated"]
_REALS += ["evaluate_joules_measured", "evaluate_joules_estimated"]
_ABSENT_WHEN_ZERO = {"unique_bytes", "unique_tokens", "unique_pairs", "peak_memory_bytes"}


class Arm(NamedTuple):
    """What is compared: a strategy, and the other swept setting if there is one."""

    strategy: str
    variant: str

    @property
    def label(self) -> str:
        """The name in tables and figures."""
        label = f"{self.strategy} [{self.variant}]" if self.variant else self.strategy
        return f"{label} (external)" if self.is_external else label

    @property
    def is_external(self) -> bool:
        """Is it a model that was trained elsewhere? It is shown beside all others and never compared."""
        return self.strategy.split("[")[0] in EXTERNAL


class Cell(NamedTuple):
    """One point of the grid; `budget` is None for what is not pretrained."""

    arm: Arm
    model: str
    budget: str | None


class Measure(NamedTuple):
    """A task's metric, at a number of labelled items where it is measured at several."""

    task: str
    metric: str
    n_labels: int | None = None

    @staticmethod
    def of(score: Score) -> "Measure":
        """What a score is of."""
        return Measure(score.task, score.metric, score.n_labels)


@dataclass(frozen=True)
class MeasureInfo:
    """What holds for a measure in every run.

    `chance` has several values only if records disagree, none where the metric has no such level.
    """

    chance: tuple[float, ...]
    higher_is_better: bool
    is_headline: bool  # the task's first score
    n_items: tuple[int, ...]


@dataclass(frozen=True)
class Tables:
    """All that figures and views are drawn from."""

    study: str
    records: tuple[RunRecord, ...]
    results: Results
    runs: pd.DataFrame
    scores: pd.DataFrame
    curves: pd.DataFrame
    arms: tuple[Arm, ...]  # the baseline first, then by name; external ones last
    models: tuple[str, ...]  # by number of parameters; without those of external arms alone
    budgets: tuple[str, ...]  # by unique data
    cells: tuple[Cell, ...]  # every cell that was tried, finished or not
    measures: Mapping[Measure, MeasureInfo]
    values: Mapping[Measure, Mapping[Cell, Mapping[int, float]]]  # by seed

    @property
    def headlines(self) -> list[Measure]:
        """One measure per task: its first score."""
        return [measure for measure, info in self.measures.items() if info.is_headline]


def load(study: str, experiments_dir: Path) -> tuple[Tables, list[DataError]]:
    """Read a study's records; unreadable ones come back as errors, to be shown.

    Raises:
        ConfigError: no such study, or a study without a single readable record.
    """
    if not STUDY_NAME.fullmatch(study):
        raise ConfigError(f"study={study!r} is not a study's name; use letters, digits, '-', '_' and '.'")
    folder = experiments_dir / study / "records"
    records, damaged = read_records(folder)
    evaluations, unreadable = read_evaluations(experiments_dir / study / "evaluations")
    if not records:
        known = sorted(path.parent.name for path in experiments_dir.glob("*/records"))
        why = str(damaged[0]) if damaged else f"studies with records: {', '.join(known) or 'none'}"
        raise ConfigError(f"study={study}: no run record under {folder} ({why}); run it with `bench train`")
    results = {run_id: results_of(found) for run_id, found in evaluations.items()}
    return tabulate(study, records, results), [*damaged, *unreadable]


def tabulate(study: str, records: Sequence[RunRecord], results: Results) -> Tables:
    """Arrange runs and what tasks found of them as tables, each in a fixed order."""
    budgets, models = _budgets(records), _models(records)
    cells = _cells(records, models, budgets)
    own = {cell.model for cell in cells if not cell.arm.is_external}
    ordered = sorted(records, key=lambda r: (cells.index(cell_of(r)), r.seed, r.run_id))
    scored = [(record, score) for record in finished(ordered) for score in scores_of(record, results)]
    runs = _frame([run_row(record, results) for record in ordered])
    scores = _frame([axes(r) | asdict(score) | spent_columns(r, results) for r, score in scored])
    curves = _frame([row for record in finished(ordered) for row in curve_rows(record)])
    arms = sorted({cell.arm for cell in cells}, key=_arm_order)
    return Tables(
        study=study,
        records=tuple(ordered),
        results=results,
        runs=runs,
        scores=scores,
        curves=curves,
        arms=tuple(arms),
        models=tuple(model for model in models if model in own or not own),
        budgets=budgets,
        cells=cells,
        measures=_measures(scored),
        values=_values(scored),
    )


def axes(record: RunRecord) -> dict[str, Any]:
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


def spent_columns(record: RunRecord, results: Results) -> dict[str, Any]:
    """What the run used; a zero that means "has none" or "never started" is absent.

    Energy is in a column of its own for each way to know it: measured and estimated are never added up.
    """
    spent = {name: value for name, value in asdict(record.spent).items() if name != "energy"}
    tasks = list(results.get(record.run_id, {}).values())
    evaluated = {
        "evaluate_s": _total(task.cost.seconds for task in tasks),
        "evaluate_flops": _total(task.cost.flops for task in tasks),
    }
    energies = {"pretrain": [record.spent.energy], "evaluate": [task.cost.energy for task in tasks]}
    drawn = {
        f"{stage}_joules_{source}": _total(e.joules for e in found if e is not None and e.source == source)
        for stage, found in energies.items()
        for source in ("measured", "estimated")
    }
    started = record.status == "finished" or spent["steps"] > 0
    absent = _ABSENT_WHEN_ZERO if started else spent.keys()
    columns = {name: None if not value and name in absent else value for name, value in spent.items()}
    return {"parameters": record.parameters or None} | columns | evaluated | drawn


def _total(parts: Iterable[float | None]) -> float | None:
    """The sum of what was measured; None where nothing was."""
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def run_row(record: RunRecord, results: Results) -> dict[str, Any]:
    """One run, whatever became of it."""
    extra = {"reason": record.reason, "started_at": record.started_at or None}
    return axes(record) | extra | spent_columns(record, results)


def curve_rows(record: RunRecord) -> list[dict[str, Any]]:
    """One row per point of the pretraining curve."""
    return [axes(record) | asdict(point) for point in record.curve]


def lost(tables: Tables, record: RunRecord, task: str) -> str | None:
    """Why a run has no score of a task: its status, or `failed` if the task has failed; None otherwise."""
    result = tables.results.get(record.run_id, {}).get(task)
    if record.status != "finished":
        return record.status
    return "failed" if result is not None and result.status == "failed" else None


def cell_of(record: RunRecord) -> Cell:
    """The cell that a run belongs to; every external model is an arm of its own."""
    arm = Arm(record.strategy, record.variant)
    if arm.is_external:
        arm = arm._replace(variant=f"{record.model} {record.variant}".strip())
    return Cell(arm, record.model, record.budget)


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, dtype=object)
    integers = {name: "Int64" for name in _INTEGERS if name in frame}
    return frame.astype(integers | {name: "float64" for name in _REALS if name in frame})


def _arm_order(arm: Arm) -> tuple[bool, bool, str, str]:
    return (arm.is_external, arm.strategy != BASELINE, arm.strategy, arm.variant)


def _budgets(records: Sequence[RunRecord]) -> tuple[str, ...]:
    sizes: dict[str, tuple[float, ...]] = {}
    for record in records:
        if record.budget is None:
            continue
        asked, spent = record.config.get("budget"), record.spent
        wanted = asked if isinstance(asked, dict) else {}
        size = tuple(
            float(used or wanted.get(key) or 0)
            for used, key in (
                (spent.unique_bytes, "unique_bytes"),
                (spent.unique_pairs, "unique_pairs"),
                (spent.forward_tokens, "tokens"),
                (spent.flops, "flops"),
            )
        )
        known = sizes.get(record.budget, size)
        sizes[record.budget] = tuple(max(pair) for pair in zip(known, size, strict=True))
    return tuple(sorted(sizes, key=lambda name: (sizes[name], name)))


def _models(records: Sequence[RunRecord]) -> tuple[str, ...]:
    sizes: dict[str, int] = {}
    for record in records:
        sizes[record.model] = max(sizes.get(record.model, 0), record.parameters)
    return tuple(sorted(sizes, key=lambda name: (sizes[name], name)))


def _cells(records: Sequence[RunRecord], models: Sequence[str], budgets: Sequence[str]) -> tuple[Cell, ...]:
    def order(cell: Cell) -> tuple[Any, ...]:
        budget = -1 if cell.budget is None else budgets.index(cell.budget)
        return (_arm_order(cell.arm), models.index(cell.model), budget)

    return tuple(sorted({cell_of(record) for record in records}, key=order))


def _measures(scored: Scored) -> dict[Measure, MeasureInfo]:
    """A task's headline is its first score by the first arm that has one, an external arm last."""
    ordered = sorted(scored, key=lambda pair: cell_of(pair[0]).arm.is_external)
    headlines: dict[str, Measure] = {}
    for _, score in ordered:
        headlines.setdefault(score.task, Measure.of(score))
    found: dict[Measure, MeasureInfo] = {}
    for record, score in ordered:
        measure = Measure.of(score)
        old = found.get(measure)
        chance = set(old.chance) if old else set()
        if score.chance is not None and (old is None or not cell_of(record).arm.is_external):
            chance.add(score.chance)  # an external model may have another vocabulary, so another chance
        found[measure] = MeasureInfo(
            chance=tuple(sorted(chance)),
            higher_is_better=old.higher_is_better if old else score.higher_is_better,
            is_headline=headlines[score.task] == measure,
            n_items=tuple(sorted({score.n_items, *(old.n_items if old else ())})),
        )
    return {measure: found[measure] for measure in sorted(found, key=lambda m: _measure_order(m, found[m]))}


def _measure_order(measure: Measure, info: MeasureInfo) -> tuple[Any, ...]:
    return (measure.task, not info.is_headline, measure.metric, -(measure.n_labels or 0))


def _values(scored: Scored) -> dict[Measure, dict[Cell, dict[int, float]]]:
    repeats: dict[tuple[Measure, Cell, int], list[float]] = {}
    for record, score in scored:
        repeats.setdefault((Measure.of(score), cell_of(record), record.seed), []).append(score.value)
    values: dict[Measure, dict[Cell, dict[int, float]]] = {}
    for (measure, cell, seed), same in repeats.items():
        values.setdefault(measure, {}).setdefault(cell, {})[seed] = sum(same) / len(same)
    return values
