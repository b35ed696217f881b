"""Run records -> tidy tables: scores (run x task x metric), runs, curves, and the values of each cell.

A cell is (strategy, variant, model, budget). Only finished runs have scores; a diverged or failed run is a
row of `runs` with its reason. What a run does not have is absent (None), never 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bench.analysis.rows import Results, scores_of
from bench.errors import ConfigError, DataError
from bench.records import (
    STUDY_NAME,
    Items,
    RunRecord,
    Score,
    finished,
    paths_of,
    read_evaluations,
    read_items,
    read_records,
    results_of,
)

Scored = Mapping["Measure", Sequence[tuple[RunRecord, Score]]]  # in the order of the runs

BASELINE = "scratch"  # the strategy without pretraining, see DESIGN's vocabulary
EXTERNAL = ("reference", "endpoint")  # strategies that measure a model which was trained elsewhere


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

    `chance` has several values where it follows from labels that each seed draws, or where records disagree;
    none where the metric has no such level.
    """

    chance: tuple[float, ...]
    higher_is_better: bool | None  # None: it describes, and is never judged
    is_headline: bool  # the task's first metric that has a better, with the most labels
    n_items: tuple[int, ...]

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is, 0 where nothing is."""
        return 0 if self.higher_is_better is None else 1 if self.higher_is_better else -1


@dataclass(frozen=True, eq=False)  # each is its own, so that what is found of it can be kept
class Tables:
    """All that figures and views are drawn from."""

    study: str
    records: tuple[RunRecord, ...]
    results: Results
    arms: tuple[Arm, ...]  # the baseline first, then by name; external ones last
    models: tuple[str, ...]  # by number of parameters; without those of external arms alone
    budgets: tuple[str, ...]  # by unique data
    cells: tuple[Cell, ...]  # every cell that was tried, finished or not
    runs_of: Mapping[Cell, tuple[RunRecord, ...]]  # by seed
    inapplicable: Mapping[tuple[Arm, str], str]  # why an arm cannot do a task
    measures: Mapping[Measure, MeasureInfo]
    values: Mapping[Measure, Mapping[Cell, Mapping[int, float]]]  # by seed
    arrays: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)  # files by run id and task

    @property
    def headlines(self) -> list[Measure]:
        """One measure per task: its first metric that has a better, with the most labels."""
        return [measure for measure, info in self.measures.items() if info.is_headline]

    def items(self, run_id: str, task: str) -> Items:
        """The arrays that a run's scores of a task are made of, read when asked for; empty if there are none.

        Raises:
            DataError: their file is damaged; one line that names it.
        """
        path = self.arrays.get(run_id, {}).get(task)
        return {} if path is None else read_items(path, task)


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
    return replace(tabulate(study, records, results), arrays=arrays), [*damaged, *unreadable]


def tabulate(study: str, records: Sequence[RunRecord], results: Results) -> Tables:
    """Arrange runs and what tasks found of them as tables, each in a fixed order."""
    budgets, models = _budgets(records), _models(records)
    cells = _cells(records, models, budgets)
    own = {cell.model for cell in cells if not cell.arm.is_external}
    rank = {cell: i for i, cell in enumerate(cells)}
    ordered = sorted(records, key=lambda r: (rank[cell_of(r)], r.seed, r.run_id))
    scored = _scored(ordered, results)
    arms = sorted({cell.arm for cell in cells}, key=_arm_order)
    return Tables(
        study=study,
        records=tuple(ordered),
        results=results,
        arms=tuple(arms),
        models=tuple(model for model in models if model in own or not own),
        budgets=budgets,
        cells=cells,
        runs_of=_by_cell(ordered),
        inapplicable=_inapplicable(ordered, results),
        measures=_measures(scored),
        values=_values(scored),
    )


def lost(tables: Tables, record: RunRecord, task: str) -> str | None:
    """Why a run has no score of a task: its status, or `failed` if the task has failed; None otherwise."""
    result = tables.results.get(record.run_id, {}).get(task)
    if record.status != "finished":
        return record.status
    return "failed" if result is not None and result.status == "failed" else None


def cell_of(record: RunRecord) -> Cell:
    """The cell that a run belongs to; every external model is an arm of its own."""
    return _cell(record.strategy, record.variant, record.model, record.budget)


@cache  # asked for at every score of every run
def _cell(strategy: str, variant: str, model: str, budget: str | None) -> Cell:
    arm = Arm(strategy, variant)
    if arm.is_external:
        arm = arm._replace(variant=f"{model} {variant}".strip())
    return Cell(arm, model, budget)


def _arm_order(arm: Arm) -> tuple[bool, bool, str, str]:
    return (arm.is_external, arm.strategy != BASELINE, arm.strategy, arm.variant)


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


def _by_cell(records: Sequence[RunRecord]) -> dict[Cell, tuple[RunRecord, ...]]:
    found: dict[Cell, list[RunRecord]] = {}
    for record in records:
        found.setdefault(cell_of(record), []).append(record)
    return {cell: tuple(own) for cell, own in found.items()}


def _inapplicable(records: Sequence[RunRecord], results: Results) -> dict[tuple[Arm, str], str]:
    found: dict[tuple[Arm, str], str] = {}
    for record in records:
        for task, result in results.get(record.run_id, {}).items():
            if result.status == "inapplicable":
                found.setdefault((cell_of(record).arm, task), result.reason or "no reason recorded")
    return found


def _headlines(scored: Scored) -> set[Measure]:
    """Of each task: the first metric that has a better, of the first arm with one; with the most labels."""
    first: dict[str, Measure] = {}
    for measure, own in scored.items():
        if own[0][1].higher_is_better is not None:
            first.setdefault(measure.task, measure)
    found = dict(first)
    for measure in scored:
        best = found.get(measure.task)
        if best and measure.metric == best.metric and (measure.n_labels or 0) > (best.n_labels or 0):
            found[measure.task] = measure
    return set(found.values())


def _measures(scored: Scored) -> dict[Measure, MeasureInfo]:
    """What holds for a measure is what holds for the arms that are compared, which come first."""
    headlines = _headlines(scored)
    found: dict[Measure, MeasureInfo] = {}
    for measure, own in scored.items():
        # an external model may have another vocabulary, so another chance
        compared = [score for record, score in own if not cell_of(record).arm.is_external] or [own[0][1]]
        found[measure] = MeasureInfo(
            chance=tuple(sorted({score.chance for score in compared if score.chance is not None})),
            higher_is_better=own[0][1].higher_is_better,
            is_headline=measure in headlines,
            n_items=tuple(sorted({score.n_items for _, score in own})),
        )
    return {measure: found[measure] for measure in sorted(found, key=lambda m: _measure_order(m, found[m]))}


def _measure_order(measure: Measure, info: MeasureInfo) -> tuple[Any, ...]:
    return (measure.task, not info.is_headline, measure.metric, -(measure.n_labels or 0))


def _values(scored: Scored) -> dict[Measure, dict[Cell, dict[int, float]]]:
    """By seed; the mean of runs that repeat a cell and seed."""
    values: dict[Measure, dict[Cell, dict[int, float]]] = {}
    for measure, own in scored.items():
        repeats: dict[Cell, dict[int, list[float]]] = {}
        for record, score in own:
            repeats.setdefault(cell_of(record), {}).setdefault(record.seed, []).append(score.value)
        values[measure] = {
            cell: {seed: sum(same) / len(same) for seed, same in by_seed.items()}
            for cell, by_seed in repeats.items()
        }
    return values


def _scored(records: Sequence[RunRecord], results: Results) -> dict[Measure, list[tuple[RunRecord, Score]]]:
    """All scores by measure, in the order of the runs."""
    found: dict[tuple[str, str, int | None], list[tuple[RunRecord, Score]]] = {}
    for record in finished(records):
        for score in scores_of(record, results):
            place = score.task, score.metric, score.n_labels
            found.setdefault(place, []).append((record, score))
    return {Measure(*place): own for place, own in found.items()}
