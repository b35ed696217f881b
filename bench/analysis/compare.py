"""Tables -> comparisons: cell summaries, differences to scratch, verdicts, and which strategy to choose.

Comparisons are paired by seed and made within a cell's model. Over several cells they are averaged within
each seed first, since the seed is the unit; a comparison that lacks a cell is not made.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd

from bench.analysis.frames import BASELINE, TRIVIAL, Cell, Condition, Measure, Tables
from bench.analysis.stats import (
    LEVEL,
    Floats,
    Interval,
    Paired,
    holm,
    interval,
    intervals,
    paired,
    paired_rows,
    pool,
    t_test_p,
    verdict,
)
from bench.records import PRETRAINING_ONLY


@dataclass(frozen=True)
class Summary:
    """One cell on one measure. `interval` is None if no run finished with this score."""

    measure: Measure
    cell: Cell
    interval: Interval | None
    to_scratch: Paired | None  # None for scratch itself, external models and where no seed is shared


@dataclass(frozen=True)
class Pooled:
    """A condition on one measure, over all cells of the study's grid."""

    measure: Measure
    condition: Condition
    interval: Interval | None  # None where a cell is missing
    to_scratch: Paired | None
    n_missing: int
    n_cells: int
    n_lost: int  # runs of its cells that did not finish
    inapplicable: str | None  # why the strategy cannot do the task at all
    verdict: str


@dataclass(frozen=True)
class Choice:
    """The best condition for a task, model and data budget, and those not distinguishable from it."""

    measure: Measure
    model: str
    budget: str | None
    best: Condition
    interval: Interval
    to_scratch: Paired | None
    tied: tuple[Condition, ...]
    beaten: tuple[Condition, ...]
    missing: tuple[Condition, ...]


@lru_cache(maxsize=2**14)
def baseline_cell(cell: Cell) -> Cell:
    """Return the scratch cell that a cell is compared with: the same model and other swept settings.

    Settings of pretraining alone are dropped. The cell need not exist: scratch with other settings is not a
    baseline.
    """
    shared = [x for x in cell.condition.variant.split() if not x.startswith(PRETRAINING_ONLY)]
    return Cell(Condition(BASELINE, " ".join(shared)), cell.model, None)


@lru_cache(maxsize=2**10)  # cached, since tables and figures need it repeatedly
def grid(tables: Tables, condition: Condition) -> tuple[Cell, ...]:
    """Return the cells that a condition needs for a comparison over the whole study.

    An external condition needs only its own cells.
    """
    if condition.is_external:
        return tuple(cell for cell in tables.cells if cell.condition == condition)
    if condition.strategy == BASELINE or all(
        c.budget is None for c in tables.cells if c.condition == condition
    ):
        return tuple(Cell(condition, model, None) for model in tables.models)
    tried = {(cell.model, cell.budget) for cell in tables.cells if cell.budget is not None}
    return tuple(
        Cell(condition, model, budget)
        for model in tables.models
        for budget in tables.budgets
        if (model, budget) in tried
    )


def level(tables: Tables, measure: Measure, cells: Iterable[Cell]) -> pd.Series:
    """Return values by seed, averaged over cells; only seeds that every cell has."""
    return pd.Series(pool(tables.values(measure, cells)), index=tables.seeds).dropna()


def gain(tables: Tables, measure: Measure, cells: Sequence[Cell]) -> pd.Series:
    """Return differences to scratch by seed, in the metric's own unit, averaged over cells."""
    return pd.Series(pool(_gaps(tables, measure, cells)), index=tables.seeds).dropna()


def _gaps(tables: Tables, measure: Measure, cells: Sequence[Cell]) -> Floats:
    """Return differences to scratch (C, S), NaN where either lacks a seed."""
    scratch = [baseline_cell(cell) for cell in cells]
    return tables.values(measure, cells) - tables.values(measure, scratch)


def _by_seed(tables: Tables, values: Floats) -> dict[int, float]:
    """Return values (S,) by seed, without the absent ones: faster than a Series for one cell of many."""
    return {seed: value for seed, value in zip(tables.seeds, values.tolist(), strict=True) if value == value}


def difference(tables: Tables, measure: Measure, left: Cell, right: Cell) -> pd.Series:
    """Return left - right by seed, in the metric's own unit, for the seeds that both have."""
    values = tables.values(measure, [left, right])
    return pd.Series(values[0] - values[1], index=tables.seeds).dropna()


def is_compared(condition: Condition) -> bool:
    """Return whether a condition is compared with scratch."""
    return condition.strategy != BASELINE and not condition.is_external


@lru_cache(maxsize=2**8)
def summaries(tables: Tables, measure: Measure) -> tuple[Summary, ...]:
    """Return a summary of every cell that was tried, on one measure."""
    gaps = _gaps(tables, measure, tables.cells)  # (C, S)
    gaps[[not is_compared(cell.condition) for cell in tables.cells]] = np.nan
    spreads = intervals(tables.values(measure, tables.cells))
    rows = zip(tables.cells, spreads, paired_rows(gaps, tables.seeds), strict=True)
    return tuple(Summary(measure, *row) for row in rows)


def pooled(tables: Tables, measures: Iterable[Measure]) -> list[Pooled]:
    """Return mean, difference to scratch and verdict of every condition on these measures, over the grid.

    The verdicts' p values are Holm-corrected over all differences among them.
    """
    found = [_pooled(tables, measure, condition) for measure in measures for condition in tables.conditions]
    tested = [i for i, row in enumerate(found) if row.to_scratch is not None]
    p_values = [gap.p_t for i in tested if (gap := found[i].to_scratch) is not None]
    p_holm = dict(zip(tested, holm(p_values), strict=True))
    return [replace(row, verdict=_verdict(tables, row, p_holm.get(i, 1.0))) for i, row in enumerate(found)]


@lru_cache(maxsize=2**12)
def _pooled(tables: Tables, measure: Measure, condition: Condition) -> Pooled:
    cells = grid(tables, condition)
    n_missing = int(np.isnan(tables.values(measure, cells)).all(axis=1).sum())
    spread = interval(_by_seed(tables, pool(tables.values(measure, cells))).values())
    judged = is_compared(condition) and tables.measures[measure].sign != 0
    gap = paired(_by_seed(tables, pool(_gaps(tables, measure, cells)))) if judged else None
    reason = tables.inapplicable.get((condition, measure.task)) if n_missing == len(cells) else None
    lost = tables.why_lost(measure.task)
    n_lost = sum(why is not None for cell in cells for why in lost[tables.rows_of(cell)])
    return Pooled(measure, condition, spread, gap, n_missing, len(cells), n_lost, reason, verdict="")


def _verdict(tables: Tables, row: Pooled, p_holm: float) -> str:
    if row.condition.strategy == BASELINE:
        return "baseline"
    if row.inapplicable is not None:
        return "not applicable"
    if row.condition.is_external:
        return row.condition.label if row.condition.strategy == TRIVIAL else "external reference"
    if not tables.measures[row.measure].sign:
        return "descriptive"
    if row.to_scratch is None and row.n_missing == 0:
        baselines = [condition for condition in tables.conditions if condition.strategy == BASELINE]
        if any((condition, row.measure.task) in tables.inapplicable for condition in baselines):
            return "no verdict (scratch cannot do the task)"
        return "no verdict (no scratch with the same settings and seeds)"
    lacking = "missing cells" if row.n_missing else f"{row.n_lost} runs lost" if row.n_lost else ""
    better = tables.measures[row.measure].sign > 0
    return verdict(row.to_scratch, higher_is_better=better, p_holm=p_holm, lacking=lacking)


def places(tables: Tables) -> list[tuple[str, str | None]]:
    """Return every pair of model and data budget that was tried, in order of size."""
    pretrained: set[tuple[str, str | None]]
    pretrained = {(cell.model, cell.budget) for cell in tables.cells if cell.budget is not None}
    found = pretrained or {(c.model, c.budget) for c in tables.cells if not c.condition.is_external}
    return sorted(found, key=lambda place: (tables.models.index(place[0]), _rank(tables, place[1])))


def between(
    tables: Tables, measure: Measure, left: Condition, right: Condition, model: str, budget: str | None
) -> Paired | None:
    """Return left - right at one model and data budget, paired by seed; None if no seed is shared."""
    cells = _at(tables, left, model, budget), _at(tables, right, model, budget)
    first, second = tables.values(measure, cells)
    return paired(_by_seed(tables, first - second))


def choose(tables: Tables, measure: Measure, model: str, budget: str | None) -> Choice | None:
    """Return the condition with the best mean at one model and budget, and those not distinguishable from it.

    It is None if there is no result, and for a measure that only describes.
    """
    sign = tables.measures[measure].sign
    cells = {
        condition: _at(tables, condition, model, budget)
        for condition in tables.conditions
        if not condition.is_external
    }
    spreads = {condition: interval(tables.seed_values(measure, cell)) for condition, cell in cells.items()}
    present = {condition: spread for condition, spread in spreads.items() if spread is not None}
    if not present or not sign:
        return None
    best = max(present, key=lambda condition: sign * present[condition].mean)
    tied: list[Condition] = []
    beaten: list[Condition] = []
    for condition in present:
        if condition != best:
            clear = is_clear(difference(tables, measure, cells[best], cells[condition]), sign)
            (beaten if clear else tied).append(condition)
    missing = [
        condition
        for condition in cells
        if condition not in present and (condition, measure.task) not in tables.inapplicable
    ]
    gap = paired(difference(tables, measure, cells[best], baseline_cell(cells[best])))
    to_scratch = None if best.strategy == BASELINE else gap
    return Choice(
        measure, model, budget, best, present[best], to_scratch, tuple(tied), tuple(beaten), tuple(missing)
    )


def is_clear(differences: pd.Series, sign: int) -> bool:
    """Return whether differences by seed are on the better side, by an uncorrected t test."""
    values = differences.tolist()
    return t_test_p(values) <= 1 - LEVEL and sign * sum(values) > 0


def _at(tables: Tables, condition: Condition, model: str, budget: str | None) -> Cell:
    unbudgeted = Cell(condition, model, None)
    return unbudgeted if unbudgeted in tables.position else Cell(condition, model, budget)


def _rank(tables: Tables, budget: str | None) -> int:
    return -1 if budget is None else tables.budgets.index(budget)


def most_spread(tables: Tables, measures: Sequence[Measure], most: int) -> list[Measure]:
    """Return at most so many measures, in their order, whose cells differ most.

    By the F ratio of a one-way layout: variance of cell means over the mean variance within cells.
    """
    if len(measures) <= most:
        return list(measures)
    ranked = sorted(measures, key=lambda measure: -_f_ratio(tables, measure))[:most]
    return [measure for measure in measures if measure in ranked]


def _f_ratio(tables: Tables, measure: Measure) -> float:
    cells = [cell for cell in tables.cells if not cell.condition.is_external]
    rows = tables.values(measure, cells)
    values = [row[~np.isnan(row)] for row in rows if not np.isnan(row).all()]
    within = np.mean([own.var(ddof=1) for own in values if len(own) > 1] or [0.0])
    between = np.var([own.mean() for own in values], ddof=1) if len(values) > 1 else 0.0
    return float(between / within) if within else 0.0
