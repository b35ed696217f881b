"""Run records -> tidy DataFrames. Every statistic, table and figure is a function of these frames.

`load` reads a study. A cell is (strategy, variant, model, data budget). Only finished runs have scores; a
diverged or failed run is a row of `runs` with its status and reason. What a run does not have is absent
(NaN, NA or None), never 0.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.errors import ConfigError, DataError
from bench.records import (
    STUDY_NAME,
    CurvePoint,
    Energy,
    Items,
    RunRecord,
    Score,
    Spent,
    TaskResult,
    finished,
    paths_of,
    read_audit,
    read_evaluations,
    read_items,
    read_records,
    results_of,
)

Results = Mapping[str, Mapping[str, TaskResult]]  # by run id and task

BASELINE = "scratch"  # the strategy without pretraining
EXTERNAL = ("reference", "endpoint")  # strategies that measure a model which was trained elsewhere
FINE_TUNING = "finetune"  # the protocol of a task that trains the network itself
TRIVIAL = "trivial"  # the strategy without a model: the trivial baseline of each task
AXES = ["run_id", "status", "strategy", "model", "budget", "variant", "seed"]
DOCUMENTS = ("corpus", "config", "data", "environment", "command", "retried")  # of a run, not written as CSV
_ABSENT_WHEN_ZERO = {"unique_bytes", "unique_tokens", "unique_pairs", "peak_memory_bytes"}


class Condition(NamedTuple):
    """One side of a comparison: a strategy, and the value of another swept setting, if any."""

    strategy: str
    variant: str

    @property
    def label(self) -> str:
        """Return the name for tables and figures."""
        if self.strategy == TRIVIAL:
            return "trivial baseline"
        label = f"{self.strategy} [{self.variant}]" if self.variant else self.strategy
        return f"{label} (external)" if self.is_external else label

    @property
    def is_external(self) -> bool:
        """Return whether it is a reference: shown beside all others, never compared.

        Such are models that were trained elsewhere, and trivial baselines.
        """
        return self.strategy.split("[")[0] in (*EXTERNAL, TRIVIAL)


class Cell(NamedTuple):
    """One point of the grid; `budget` is None for a strategy without pretraining."""

    condition: Condition
    model: str
    budget: str | None


class Measure(NamedTuple):
    """A task's metric, at a number of labelled items where it is measured at several."""

    task: str
    metric: str
    n_labels: int | None = None

    @staticmethod
    def of(score: Score) -> "Measure":
        """Return the measure of a score."""
        return Measure(score.task, score.metric, score.n_labels)


@dataclass(frozen=True)
class MeasureInfo:
    """Properties of a measure that all runs share.

    `chance` has several values where labels are drawn by seed, or where records disagree; it is empty where
    the metric has no chance level.
    """

    chance: tuple[float, ...]
    higher_is_better: bool | None  # None: the metric only describes and is never judged
    is_headline: bool  # the task's first metric that can be better or worse, with the most labels
    n_items: tuple[int, ...]

    @property
    def sign(self) -> int:
        """Return 1 where higher is better, -1 where lower is, 0 for a metric that only describes."""
        return 0 if self.higher_is_better is None else 1 if self.higher_is_better else -1


@dataclass(frozen=True, eq=False)  # hashed by identity, so that results can be cached by study
class Tables:
    """A study's frames and its vocabulary. `run_frame` and its siblings document the columns."""

    study: str
    runs: pd.DataFrame
    results: pd.DataFrame
    scores: pd.DataFrame
    curves: pd.DataFrame
    energies: pd.DataFrame
    conditions: tuple[Condition, ...]  # the baseline first, then by name; external models last
    models: tuple[str, ...]  # by number of parameters, without those of external models alone
    budgets: tuple[str, ...]  # by unique data
    cells: tuple[Cell, ...]  # every cell that was tried, finished or not; column `cell` is the place here
    measures: Mapping[Measure, MeasureInfo]  # column `measure` is the place here
    array_files: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)  # by run id and task
    failed_audits: Mapping[str, str] = field(default_factory=dict)  # the first failed check, by task

    @property
    def headlines(self) -> list[Measure]:
        """Return one measure per task: its first metric that can be judged, with the most labels."""
        return [measure for measure, info in self.measures.items() if info.is_headline]

    @cached_property
    def position(self) -> Mapping[Cell, int]:
        """Return the number of each cell."""
        return {cell: i for i, cell in enumerate(self.cells)}

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Return all seeds of the study, ascending."""
        return tuple(sorted(set(self.runs["seed"].tolist())))

    @cached_property
    def _seed_index(self) -> pd.Index:
        return pd.Index(self.seeds)

    @cached_property
    def fine_tuned(self) -> frozenset[str]:
        """Return the tasks that train the network itself; on all others it stays frozen."""
        protocols = zip(self.results["task"], self.results["config"], strict=True)
        return frozenset(task for task, config in protocols if config.get("protocol") == FINE_TUNING)

    def is_external(self, cells: pd.Series) -> NDArray[np.bool_]:
        """Return for a column `cell` whether each row belongs to a reference, see `Condition.is_external`."""
        return np.array([cell.condition.is_external for cell in self.cells], dtype=np.bool_)[cells]

    @cached_property
    def inapplicable(self) -> Mapping[tuple[Condition, str], str]:
        """Return why a condition cannot do a task, from its first run that says so."""
        refused = self.results[self.results["status"] == "inapplicable"]
        found: dict[tuple[Condition, str], str] = {}
        for row in refused.itertuples():
            found.setdefault(
                (self.cells[row.cell].condition, row.task), text(row.reason) or "no reason recorded"
            )
        return found

    @cached_property
    def _matrices(self) -> dict[Measure, NDArray[np.float64]]:
        """Return the values (C + 1, S) of each measure; the last row is for a cell that does not exist."""
        shape = (len(self.cells) + 1, len(self.seeds))
        matrices = np.full((len(self.measures), *shape), np.nan)
        # runs that repeat a cell and seed count once, by their mean
        means = self.scores.groupby(["measure", "cell", "seed"])["value"].mean()
        places = [means.index.get_level_values(name).to_numpy() for name in ("measure", "cell", "seed")]
        matrices[places[0], places[1], np.searchsorted(self.seeds, places[2])] = means
        return dict(zip(self.measures, matrices, strict=True))

    def by_seed(self, measure: Measure) -> pd.DataFrame:
        """Return the values of a measure: a row per cell in order, a column per seed, NaN if absent."""
        return pd.DataFrame(self.values(measure, self.cells), columns=self.seeds)

    def values(self, measure: Measure, cells: Iterable[Cell]) -> NDArray[np.float64]:
        """Return the values (C, S) of some cells, which need not exist, for all seeds of the study."""
        rows = [self.position.get(cell, -1) for cell in cells]
        matrix = self._matrices.get(measure)
        return np.full((len(rows), len(self.seeds)), np.nan) if matrix is None else matrix[rows]

    def seed_values(self, measure: Measure, cell: Cell) -> pd.Series:
        """Return the values of one cell by seed, without the seeds that it lacks."""
        values = self.values(measure, [cell])[0]
        known = ~np.isnan(values)
        return pd.Series(values[known], index=self._seed_index[known])

    def cells_with(self, measure: Measure) -> list[Cell]:
        """Return the cells that have a value of a measure for any seed."""
        known = (~np.isnan(self.values(measure, self.cells))).any(axis=1)
        return [self.cells[i] for i in np.flatnonzero(known)]

    @cached_property
    def _bounds(self) -> list[int]:
        """Return where the runs of each cell begin, and the number of runs; runs are sorted by cell."""
        return np.searchsorted(self.runs["cell"], range(len(self.cells) + 1)).tolist()

    def rows_of(self, cell: Cell) -> slice:
        """Return the rows of `runs` that belong to a cell; none if the cell does not exist."""
        i = self.position.get(cell)
        return slice(0) if i is None else slice(self._bounds[i], self._bounds[i + 1])

    def runs_of(self, cell: Cell) -> pd.DataFrame:
        """Return the runs of a cell by seed."""
        return self.runs.iloc[self.rows_of(cell)]

    def ids_of(self, cell: Cell) -> list[tuple[str, int]]:
        """Return the id and the seed of each of a cell's runs, by seed."""
        return self._ids[self.rows_of(cell)]

    @cached_property
    def _ids(self) -> list[tuple[str, int]]:
        """Return the id and the seed of each run; a list is sliced much faster than a frame."""
        return list(zip(self.runs["run_id"].tolist(), self.runs["seed"].tolist(), strict=True))

    def why_lost(self, task: str) -> list[str | None]:
        """Return for each run why it has no score of a task: its status, `failed` for the task, or None."""
        return self._why_lost.get(task) or self._why_lost[""]

    @cached_property
    def _why_lost(self) -> dict[str, list[str | None]]:
        """Return `why_lost` of each task that failed, and of all others under the name ""."""
        runs = list(zip(self.runs["run_id"], self.runs["status"], strict=True))
        found = {"": [None if status == "finished" else status for _, status in runs]}
        failures = self.results[self.results["status"] == "failed"]
        for task, run_ids in failures.groupby("task")["run_id"]:
            failed = set(run_ids)
            marks = zip(runs, found[""], strict=True)
            found[task] = [why or ("failed" if run_id in failed else None) for (run_id, _), why in marks]
        return found

    def arrays(self, run_id: str, task: str) -> Items:
        """Return the arrays behind a run's scores of a task by name, read on request; empty without a file.

        Raises:
            DataError: the file is damaged; one line that names it.
        """
        path = self.array_files.get(run_id, {}).get(task)
        return {} if path is None else read_items(path, task)

    def items(self, task: str) -> pd.DataFrame:
        """Return the outcomes of a task by item, read from the files beside the evaluation records.

        Columns: `run_id`, `cell`, `seed` of the run; `name` of the array, the metric and `@labels` where the
        task is measured at several label counts; `fit`, the number of the fine-tuning or probe; `item`, the
        number of the test item, the same in all runs; `value`, in the metric's unit.

        Raises:
            DataError: a file is damaged; one line that names it.
        """
        parts = [
            pd.DataFrame(
                {
                    **{"run_id": run.run_id, "cell": run.cell, "seed": run.seed, "name": name},
                    "fit": np.repeat(np.arange(values.size // n), n),
                    "item": np.tile(np.arange(n), values.size // n),
                    "value": values.ravel().astype(np.float64),
                }
            )
            for run in self.runs.itertuples()
            for name, values in self.arrays(run.run_id, task).items()
            if (n := values.shape[-1] if values.ndim else 1)
        ]
        columns = ["run_id", "cell", "seed", "name", "fit", "item", "value"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def load(study: str, experiments_dir: Path) -> tuple[Tables, list[DataError]]:
    """Read a study's records; unreadable ones come back as errors, to be shown.

    Raises:
        ConfigError: no such study, or a study without a single readable record.
    """
    if not STUDY_NAME.fullmatch(study):
        raise ConfigError(f"study={study!r} is not a study's name; use letters, digits, '-', '_' and '.'")
    folder, beside = (experiments_dir / study / name for name in ("records", "evaluations"))
    records, damaged = read_records(folder)
    evaluations, unreadable = read_evaluations(beside)
    if not records:
        known = sorted(path.parent.name for path in experiments_dir.glob("*/records"))
        why = str(damaged[0]) if damaged else f"studies with records: {', '.join(known) or 'none'}"
        raise ConfigError(f"study={study}: no run record under {folder} ({why}); run it with `bench train`")
    results = {run_id: results_of(found) for run_id, found in evaluations.items()}
    arrays = {run_id: paths_of(beside, found, results[run_id]) for run_id, found in evaluations.items()}
    failed, unaudited = _failed_audits(experiments_dir / study)
    tables = replace(tabulate(study, records, results), array_files=arrays, failed_audits=failed)
    return tables, [*damaged, *unreadable, *unaudited]


def _failed_audits(folder: Path) -> tuple[dict[str, str], list[DataError]]:
    """Return the first failed check of each task, and an error if the audit is unreadable."""
    try:
        audit = read_audit(folder)
    except DataError as error:
        return {}, [error]
    failed = [check for check in audit.checks if check.verdict == "failed"] if audit else []
    return {check.task: f"{check.check}: {check.detail}" for check in reversed(failed)}, []


def tabulate(study: str, records: Sequence[RunRecord], results: Results) -> Tables:
    """Arrange runs and their task results as frames, each in a fixed order."""
    budgets, models = _budgets(records), _models(records)
    cells = _cells(records, models, budgets)
    own = {cell.model for cell in cells if not cell.condition.is_external}
    number = {cell: i for i, cell in enumerate(cells)}
    ordered = sorted(records, key=lambda r: (number[cell_of(r)], r.seed, r.run_id))
    scored = [
        (number[cell_of(record)], record, score)
        for record in finished(ordered)
        for score in scores_of(record, results)
    ]
    measures = _measures(scored, cells)
    return Tables(
        study=study,
        runs=run_frame(ordered, results, number),
        results=result_frame(ordered, results, number),
        scores=score_frame(scored, results, {measure: i for i, measure in enumerate(measures)}),
        curves=curve_frame(finished(ordered), number),
        energies=energy_frame(ordered, results, number),
        conditions=tuple(sorted({cell.condition for cell in cells}, key=_condition_order)),
        models=tuple(model for model in models if model in own or not own),
        budgets=budgets,
        cells=cells,
        measures=measures,
    )


def run_frame(records: Sequence[RunRecord], results: Results, number: Mapping[Cell, int]) -> pd.DataFrame:
    """Return one row per run, sorted by cell and seed, whatever became of the run.

    `run_id`; `status`: finished, diverged or failed, with its `reason`; the axes `strategy`, `model`,
    `budget` (absent without pretraining), `variant` (other swept settings, "" if none), `seed`;
    `started_at`, ISO 8601; `parameters` of the model.

    Used in pretraining: optimizer `steps`; `forward_tokens` processed, padding included;
    `predicted_tokens`, which the loss is summed over; `flops` of forward and backward matrix products;
    `epochs` over the unique data; `unique_bytes`, `unique_tokens` and `unique_pairs` of data;
    `pretrain_s`, seconds;
    `peak_memory_bytes`. A zero that means "has none" or "never started" is absent.

    Used by all tasks together: `evaluate_s`, seconds; `evaluate_flops`. Energy in joules, in a column per
    source, since measured and estimated energies are never added up: `pretrain_joules_measured`,
    `pretrain_joules_estimated`, `evaluate_joules_measured`, `evaluate_joules_estimated`.

    `exploratory`: whether a search chose the run by the results of others; such runs decide no claim. `cell`:
    place in `Tables.cells`. Documents: `corpus`, `config`, `data` (hashes, sources, licences) and
    `environment` (versions), nested mappings; `command`; `retried`, how the run diverged before.
    """
    rows = [
        {**_axes(record), "reason": record.reason, "started_at": record.started_at or None}
        | _spent(record, results)
        | {"exploratory": record.exploratory, "cell": number[cell_of(record)]}
        | {name: getattr(record, name) for name in DOCUMENTS}
        for record in records
    ]
    whole = ("parameters", *(name for name, kind in get_type_hints(Spent).items() if kind is int))
    kinds = dict.fromkeys(rows[0] if rows else (), "float64") | _AXIS_KINDS | dict.fromkeys(whole, "Int64")
    kinds |= dict.fromkeys(DOCUMENTS, "object") | dict.fromkeys(("reason", "started_at"), "str")
    return _frame(rows, kinds | {"exploratory": "bool", "cell": "int64"})


def result_frame(records: Iterable[RunRecord], results: Results, number: Mapping[Cell, int]) -> pd.DataFrame:
    """Return one row per run and task.

    `run_id`, `run_status`, `cell`, `seed` of the run; `task`; `status`: finished, inapplicable or failed,
    with its `reason`; `seconds` and `flops` that the task used; `config`, the task's resolved settings;
    `counts` of items that did not count, by reason; `samples`, texts to show; `fits`, the fine-tunings
    (`bench.records.Fit`).
    """
    rows = [
        {
            **{"run_id": record.run_id, "run_status": record.status},
            **{"cell": number[cell_of(record)], "seed": record.seed},
            **{"task": task, "status": result.status, "reason": result.reason},
            **{"seconds": result.cost.seconds, "flops": result.cost.flops},
            **{"config": result.config, "counts": result.counts, "samples": result.samples},
            "fits": result.fits,
        }
        for record in records
        for task, result in results.get(record.run_id, {}).items()
    ]
    kinds = {"run_id": "str", "task": "str", "status": "str", "reason": "str", "cell": "int64"}
    kinds |= {"run_status": "str", "seed": "int64", "seconds": "float64", "flops": "float64"}
    return _frame(rows, kinds | dict.fromkeys(("config", "counts", "samples", "fits"), "object"))


def score_frame(
    scored: Sequence[tuple[int, RunRecord, Score]], results: Results, number: Mapping[Measure, int]
) -> pd.DataFrame:
    """Return one row per finished run, task, metric and label count.

    The axes of the run; `task`, `metric`; `value`, in the metric's unit; `chance`, the score of a model that
    knows nothing, absent where undefined; `n_items` that were scored; `higher_is_better`, None for a metric
    that only describes; `n_labels`, the labelled items fitted to, absent if not varied; `task_s` and
    `task_flops`, the cost of the task's evaluation; `cell` and `measure`, places in `Tables`.
    """
    rows = [
        {
            **_axes(record),
            **vars(score),
            **{"task_s": (cost := results[record.run_id][score.task].cost).seconds, "task_flops": cost.flops},
            **{"cell": cell, "measure": number[Measure.of(score)]},
        }
        for cell, record, score in scored
    ]
    columns = [*AXES, *(part.name for part in fields(Score)), "task_s", "task_flops", "cell", "measure"]
    kinds = {"value": "float64", "chance": "float64", "n_items": "Int64", "n_labels": "Int64"}
    return _frame(
        rows,
        dict.fromkeys(columns, "str")
        | _AXIS_KINDS
        | kinds
        | {
            **{"higher_is_better": "object", "task_s": "float64", "task_flops": "float64"},
            **{"cell": "int64", "measure": "int64"},
        },
    )


def curve_frame(records: Iterable[RunRecord], number: Mapping[Cell, int]) -> pd.DataFrame:
    """Return one row per point of the pretraining curve of finished runs.

    The axes of the run; `step`; `forward_tokens` and `flops` so far; `train_loss_nats` and
    `validation_loss_nats` per predicted token, absent where not measured; `cell`, place in `Tables.cells`.
    """
    rows = [
        {**_axes(record), **vars(point), "cell": number[cell_of(record)]}
        for record in records
        for point in record.curve
    ]
    kinds = {part.name: "float64" for part in fields(CurvePoint)}
    return _frame(rows, _AXIS_KINDS | kinds | {"step": "Int64", "forward_tokens": "Int64", "cell": "int64"})


def energy_frame(records: Iterable[RunRecord], results: Results, number: Mapping[Cell, int]) -> pd.DataFrame:
    """Return one row per metered stage of a run.

    `run_id`, `run_status`, `cell` of the run; `stage`: pretraining or evaluation, with its `task`; `source`:
    measured or estimated, with the `method`; `joules`; `kwh`; `co2_kg`, by the mean intensity of the grid in
    `country` (ISO 3166-1 alpha-3).
    """
    rows = [
        {
            **{"run_id": record.run_id, "run_status": record.status, "cell": number[cell_of(record)]},
            **{"stage": "evaluation" if task else "pretraining", "task": task},
            **vars(energy),
            "kwh": energy.kwh,
        }
        for record in records
        for task, energy in _energies(record, results)
        if energy is not None
    ]
    names = ("run_id", "run_status", "stage", "task", "source", "method", "country")
    numbers = dict.fromkeys(("joules", "co2_kg", "kwh"), "float64")
    return _frame(rows, dict.fromkeys(names, "str") | numbers | {"cell": "int64"})


def text(value: Any) -> str | None:
    """Return an entry of a text column, None where it is absent."""
    return None if pd.isna(value) else str(value)


def known(value: Any) -> Any:
    """Return an entry of a frame, None where it is absent."""
    return None if pd.isna(value) else value


def total(parts: Iterable[float | None]) -> float | None:
    """Return the sum of what was measured; None where nothing was."""
    measured = [part for part in parts if part is not None]
    return sum(measured) if measured else None


def scores_of(record: RunRecord, results: Results) -> list[Score]:
    """Return all scores of a run, task by task in alphabetical order."""
    own = results.get(record.run_id, {})
    return [score for name in sorted(own) for score in own[name].scores]


def cell_of(record: RunRecord) -> Cell:
    """Return the cell that a run belongs to; every external model is a condition of its own."""
    return _cell(record.strategy, record.variant, record.model, record.budget)


class MeasureSeries(NamedTuple):
    """Measures of one task that differ only in a number (label count, layer, copies), in its order."""

    task: str
    name: str  # of the metric, without the number
    points: tuple[tuple[int, Measure], ...]

    @property
    def xs(self) -> list[int]:
        """Return the numbers, ascending."""
        return [x for x, _ in self.points]

    @property
    def measures(self) -> list[Measure]:
        """Return the measures in the order of `xs`."""
        return [measure for _, measure in self.points]


def label_series(tables: Tables) -> list[MeasureSeries]:
    """Return each task's headline metric by the number of labelled items, where there are several."""
    metrics = {measure.task: measure.metric for measure in tables.headlines}
    chosen = [measure for measure in tables.measures if metrics.get(measure.task) == measure.metric]
    found = (((m.task, m.metric), m.n_labels, m) for m in chosen if m.n_labels is not None)
    return [series for series in _series(found) if len(series.points) > 1]


def numbered_series(tables: Tables, pattern: str) -> list[MeasureSeries]:
    """Return measures whose metric is `pattern`: its first group is the name, its second the number.

    Of several label counts the largest is taken.
    """
    largest: dict[tuple[str, str], Measure] = {}
    for measure in tables.measures:
        same = largest.setdefault((measure.task, measure.metric), measure)
        if (measure.n_labels or 0) > (same.n_labels or 0):
            largest[measure.task, measure.metric] = measure
    matched = ((measure, re.fullmatch(pattern, measure.metric)) for measure in largest.values())
    return _series(((m.task, parts[1]), int(parts[2]), m) for m, parts in matched if parts is not None)


def _series(found: Iterable[tuple[tuple[str, str], int, Measure]]) -> list[MeasureSeries]:
    groups: dict[tuple[str, str], dict[int, Measure]] = {}
    for key, x, measure in found:
        groups.setdefault(key, {})[x] = measure
    return [MeasureSeries(*key, tuple(sorted(points.items()))) for key, points in groups.items()]


_AXIS_KINDS = dict.fromkeys(AXES, "str") | {"seed": "int64"}


def _frame(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> pd.DataFrame:
    """Return rows as a frame; `kinds` are the dtypes of its columns."""
    columns = list(rows[0]) if rows else list(kinds)
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in rows], dtype=kinds.get(name)) for name in columns}
    )


def _axes(record: RunRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in AXES}


def _spent(record: RunRecord, results: Results) -> dict[str, Any]:
    """Return what a run used, as columns of `run_frame`."""
    spent = {name: value for name, value in vars(record.spent).items() if name != "energy"}
    costs = [task.cost for task in results.get(record.run_id, {}).values()]
    energies = {"pretrain": [record.spent.energy], "evaluate": [cost.energy for cost in costs]}
    joules = {
        f"{stage}_joules_{source}": total(e.joules for e in found if e is not None and e.source == source)
        for stage, found in energies.items()
        for source in ("measured", "estimated")
    }
    started = record.status == "finished" or spent["steps"] > 0
    absent = _ABSENT_WHEN_ZERO if started else spent.keys()
    used = {name: None if not value and name in absent else value for name, value in spent.items()}
    evaluated = {"evaluate_s": total([cost.seconds for cost in costs])}
    evaluated |= {"evaluate_flops": total([cost.flops for cost in costs])}
    return {"parameters": record.parameters or None} | used | evaluated | joules


def _energies(record: RunRecord, results: Results) -> Iterator[tuple[str | None, Energy | None]]:
    """Yield the energies of pretraining and of each task; external models were pretrained elsewhere."""
    is_lost = record.status != "finished" and not record.spent.steps
    if not (cell_of(record).condition.is_external or is_lost):
        yield None, record.spent.energy
    for task, result in results.get(record.run_id, {}).items():
        yield task, result.cost.energy


@cache  # cached, since every score of every run needs it
def _cell(strategy: str, variant: str, model: str, budget: str | None) -> Cell:
    condition = Condition(strategy, variant)
    if condition.is_external:
        condition = condition._replace(variant=f"{model} {variant}".strip())
    return Cell(condition, model, budget)


def _condition_order(condition: Condition) -> tuple[bool, bool, str, str]:
    strategy, variant = condition
    return (condition.is_external, strategy != BASELINE, strategy, variant)


def _budgets(records: Sequence[RunRecord]) -> tuple[str, ...]:
    sizes: dict[str, tuple[float, ...]] = {}
    for record in records:
        if record.budget is None:
            continue
        wanted, spent = record.config.get("budget", {}), record.spent
        size = tuple(
            float(used or asked or 0)
            for used, asked in (
                (spent.unique_bytes, wanted.get("unique_bytes")),
                (spent.unique_pairs, wanted.get("unique_pairs")),
                (spent.forward_tokens, wanted.get("tokens")),
                (spent.flops, wanted.get("flops")),
            )
        )
        largest = sizes.get(record.budget, size)
        sizes[record.budget] = tuple(max(pair) for pair in zip(largest, size, strict=True))
    return tuple(sorted(sizes, key=lambda name: (sizes[name], name)))


def _models(records: Sequence[RunRecord]) -> tuple[str, ...]:
    sizes: dict[str, int] = {}
    for record in records:
        sizes[record.model] = max(sizes.get(record.model, 0), record.parameters)
    return tuple(sorted(sizes, key=lambda name: (sizes[name], name)))


def _cells(records: Sequence[RunRecord], models: Sequence[str], budgets: Sequence[str]) -> tuple[Cell, ...]:
    def order(cell: Cell) -> tuple[Any, ...]:
        budget = -1 if cell.budget is None else budgets.index(cell.budget)
        return (_condition_order(cell.condition), models.index(cell.model), budget)

    return tuple(sorted({cell_of(record) for record in records}, key=order))


def _measures(
    scored: Iterable[tuple[int, RunRecord, Score]], cells: Sequence[Cell]
) -> dict[Measure, MeasureInfo]:
    """Return the properties of each measure, from the conditions that are compared, which come first."""
    by_measure: dict[tuple[str, str, int | None], list[tuple[int, Score]]] = {}
    for cell, _, score in scored:
        by_measure.setdefault((score.task, score.metric, score.n_labels), []).append((cell, score))
    headlines = _headlines({Measure(*key): own[0][1] for key, own in by_measure.items()})
    found: dict[Measure, MeasureInfo] = {}
    for key, own in by_measure.items():
        # an external model may have another vocabulary, so another chance
        compared = [score for cell, score in own if not cells[cell].condition.is_external] or [own[0][1]]
        found[Measure(*key)] = MeasureInfo(
            chance=tuple(sorted({score.chance for score in compared if score.chance is not None})),
            higher_is_better=own[0][1].higher_is_better,
            is_headline=key in headlines,
            n_items=tuple(sorted({score.n_items for _, score in own})),
        )

    def order(measure: Measure) -> tuple[Any, ...]:
        return (measure.task, not found[measure].is_headline, measure.metric, -(measure.n_labels or 0))

    return {measure: found[measure] for measure in sorted(found, key=order)}


def _headlines(first_scores: Mapping[Measure, Score]) -> set[Measure]:
    """Return per task the first metric of the first condition that can be judged, with the most labels."""
    first: dict[str, Measure] = {}
    for measure, score in first_scores.items():
        if score.higher_is_better is not None:
            first.setdefault(measure.task, measure)
    found = dict(first)
    for measure in first_scores:
        best = found.get(measure.task)
        if best and measure.metric == best.metric and (measure.n_labels or 0) > (best.n_labels or 0):
            found[measure.task] = measure
    return set(found.values())
