"""Tables -> comparisons: cell summaries, differences to scratch, verdicts, and which strategy to choose.

Every mean and difference has the error of `bench.analysis.error_model`. The headline compares strategies at
one place, the largest model and data budget that most strategies were run at: means over models and budgets
would hide that their order differs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd

from bench.analysis.error_model import Difference, best_is_clear, mean_of, sample
from bench.analysis.error_model import difference as difference_of
from bench.analysis.frames import BASELINE, TRIVIAL, Cell, Condition, Measure, Tables
from bench.analysis.stats import LEVEL, Interval, holm, pool
from bench.analysis.untrained import baseline_name
from bench.records import PRETRAINING_ONLY

AHEAD, BEHIND, INCONCLUSIVE = "ahead", "behind", "inconclusive"  # of the baseline without pretraining
LEANS_AHEAD, LEANS_BEHIND = f"{INCONCLUSIVE}, leaning ahead", f"{INCONCLUSIVE}, leaning behind"

Place = tuple[str, str | None]  # model and data budget


@dataclass(frozen=True)
class Summary:
    """One cell on one measure. `interval` is None if no run finished with this score."""

    measure: Measure
    cell: Cell
    interval: Interval | None
    to_scratch: Difference | None  # None for scratch itself, external models and where one has no score


@dataclass(frozen=True)
class HeadlineRow:
    """A condition on one measure, at the headline's model and data budget."""

    measure: Measure
    condition: Condition
    cell: Cell
    interval: Interval | None
    to_scratch: Difference | None
    n_lost: int  # runs of the cell that did not finish
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
    to_scratch: Difference | None
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


@lru_cache(maxsize=2**6)
def headline_place(tables: Tables) -> Place:
    """Return the model and data budget of the headline: the largest ones that most conditions were run at."""
    tried = places(tables)
    counts = {
        place: len({c.condition for c in tables.cells if (c.model, c.budget) == place}) for place in tried
    }
    most = max(counts.values(), default=0)
    largest = [place for place in tried if counts[place] == most]
    return largest[-1] if largest else (tables.models[-1], None)


@lru_cache(maxsize=2**10)  # cached, since tables and figures need it repeatedly
def grid(tables: Tables, condition: Condition) -> tuple[Cell, ...]:
    """Return the cell of a condition at the headline's place; an external condition has its own cells."""
    if condition.is_external:
        return tuple(cell for cell in tables.cells if cell.condition == condition)
    return (_at(tables, condition, *headline_place(tables)),)


def place_name(tables: Tables) -> str:
    """Return the headline's place for a note: `model 1m, data budget 4mb`, as far as the study varies it."""
    model, budget = headline_place(tables)
    parts = [f"model {model}"] if len(tables.models) > 1 else []
    parts += [f"data budget {budget}"] if len(tables.budgets) > 1 else []
    return ", ".join(parts)


def level(tables: Tables, measure: Measure, cells: Iterable[Cell]) -> pd.Series:
    """Return values by seed, averaged over cells; only seeds that every cell has."""
    return pd.Series(pool(tables.values(measure, cells)), index=tables.seeds).dropna()


def difference(tables: Tables, measure: Measure, left: Cell, right: Cell) -> Difference | None:
    """Return left - right, in the metric's own unit; None if one of them has no score."""
    return difference_of(sample(tables, measure, [left]), sample(tables, measure, [right]))


def is_compared(condition: Condition) -> bool:
    """Return whether a condition is compared with scratch."""
    return condition.strategy != BASELINE and not condition.is_external


@lru_cache(maxsize=2**8)
def summaries(tables: Tables, measure: Measure) -> tuple[Summary, ...]:
    """Return a summary of every cell that was tried, on one measure."""
    return tuple(
        Summary(
            measure,
            cell,
            mean_of(tables, measure, [cell]),
            difference(tables, measure, cell, baseline_cell(cell)) if is_compared(cell.condition) else None,
        )
        for cell in tables.cells
    )


def headline_rows(tables: Tables, measures: Iterable[Measure]) -> list[HeadlineRow]:
    """Return mean, difference to scratch and verdict of every condition on these measures, at one place.

    The verdicts' p values are Holm-corrected over all differences among them.
    """
    found = [_row(tables, measure, condition) for measure in measures for condition in tables.conditions]
    p_values = {i: row.to_scratch.p for i, row in enumerate(found) if row.to_scratch is not None}
    p_holm = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [replace(row, verdict=_verdict(tables, row, p_holm.get(i, 1.0))) for i, row in enumerate(found)]


@lru_cache(maxsize=2**12)
def _row(tables: Tables, measure: Measure, condition: Condition) -> HeadlineRow:
    cells = grid(tables, condition)
    cell, spread = cells[-1], mean_of(tables, measure, cells)
    judged = is_compared(condition) and tables.measures[measure].sign != 0
    gap = difference(tables, measure, cell, baseline_cell(cell)) if judged else None
    reason = tables.inapplicable.get((condition, measure.task)) if spread is None else None
    n_lost = sum(why is not None for why in tables.why_lost(measure.task)[tables.rows_of(cell)])
    return HeadlineRow(measure, condition, cell, spread, gap, n_lost, reason, verdict="")


def _verdict(tables: Tables, row: HeadlineRow, p_holm: float) -> str:
    if row.condition.strategy == BASELINE:
        return "baseline"
    if row.inapplicable is not None:
        return "not applicable"
    if row.condition.is_external:
        return row.condition.label if row.condition.strategy == TRIVIAL else "external reference"
    if not tables.measures[row.measure].sign:
        return "descriptive"
    if row.to_scratch is None and row.interval is not None:
        baselines = [condition for condition in tables.conditions if condition.strategy == BASELINE]
        name = baseline_name(tables, [row.measure.task])
        if any((condition, row.measure.task) in tables.inapplicable for condition in baselines):
            return f"no verdict ({name} cannot do the task)"
        return f"no verdict (no {name} with the same settings)"
    lacking = "no score" if row.interval is None else f"{row.n_lost} runs lost" if row.n_lost else ""
    better = tables.measures[row.measure].sign > 0
    return verdict(row.to_scratch, higher_is_better=better, p_holm=p_holm, lacking=lacking)


def verdict(gap: Difference | None, *, higher_is_better: bool, p_holm: float, lacking: str) -> str:
    """Return the verdict on a difference to the untrained baseline: ahead, behind, or why it is inconclusive.

    Args:
        gap: the difference.
        higher_is_better: of the metric.
        p_holm: the corrected p value; ahead or behind needs at most 1 - LEVEL.
        lacking: what is missing for a verdict, "" if nothing is.
    """
    if lacking or gap is None:
        return f"{INCONCLUSIVE} ({lacking or 'no score'})"
    if not gap.is_tested:
        return f"{INCONCLUSIVE} (fewer than three seeds)"
    is_better = (gap.interval.mean > 0) == higher_is_better
    if p_holm <= 1 - LEVEL:
        return AHEAD if is_better else BEHIND
    if gap.p > 1 - LEVEL:
        return INCONCLUSIVE
    return LEANS_AHEAD if is_better else LEANS_BEHIND


def places(tables: Tables) -> list[Place]:
    """Return every pair of model and data budget that was tried, in order of size."""
    pretrained: set[Place] = {(cell.model, cell.budget) for cell in tables.cells if cell.budget is not None}
    found = pretrained or {(c.model, c.budget) for c in tables.cells if not c.condition.is_external}
    return sorted(found, key=lambda place: (tables.models.index(place[0]), _rank(tables, place[1])))


def between(
    tables: Tables, measure: Measure, left: Condition, right: Condition, model: str, budget: str | None
) -> Difference | None:
    """Return left - right at one model and data budget; None if one of them has no score."""
    return difference(tables, measure, *(_at(tables, side, model, budget) for side in (left, right)))


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
    spreads = {condition: mean_of(tables, measure, [cell]) for condition, cell in cells.items()}
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
    gap = difference(tables, measure, cells[best], baseline_cell(cells[best]))
    to_scratch = None if best.strategy == BASELINE else gap
    return Choice(
        measure, model, budget, best, present[best], to_scratch, tuple(tied), tuple(beaten), tuple(missing)
    )


def is_clear(gap: Difference | None, sign: int) -> bool:
    """Return whether a difference is on the better side, by an uncorrected t test."""
    return gap is not None and gap.p <= 1 - LEVEL and sign * gap.interval.mean > 0


def clear_best(tables: Tables, measure: Measure, cells: Sequence[Cell]) -> Cell | None:
    """Return the cell that is better than each of the others, if one is; see `best_is_clear`."""
    known = [cell for cell in cells if len(sample(tables, measure, [cell]).seeds)]
    samples = [sample(tables, measure, [cell]) for cell in known]
    best = best_is_clear(samples, tables.measures[measure].sign)
    return None if best is None else known[best]


def reversals(tables: Tables, measure: Measure) -> dict[Condition, list[Place]]:
    """Return who is clearly better than the headline's best one at other places, and where."""
    sign, top = tables.measures[measure].sign, headline_place(tables)
    found: dict[Condition, list[Place]] = {}
    best = best_mean(tables, measure, top)
    if best is None or not sign:
        return found
    for place in places(tables):
        other = best_mean(tables, measure, place)
        if (
            place != top
            and other is not None
            and is_clear(between(tables, measure, other, best, *place), sign)
        ):
            found.setdefault(other, []).append(place)
    return found


def best_mean(tables: Tables, measure: Measure, place: Place) -> Condition | None:
    """Return the condition with the best mean at a place, but external ones; None if none has a score."""
    sign = tables.measures[measure].sign
    cells = [_at(tables, c, *place) for c in tables.conditions if not c.is_external]
    means = {c: sign * own.mean for c in cells if len((own := sample(tables, measure, [c])).seeds)}
    return max(means, key=means.__getitem__).condition if means else None


def _at(tables: Tables, condition: Condition, model: str, budget: str | None) -> Cell:
    unbudgeted = Cell(condition, model, None)
    is_unbudgeted = condition.strategy == BASELINE or unbudgeted in tables.position
    return unbudgeted if is_unbudgeted else Cell(condition, model, budget)


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
