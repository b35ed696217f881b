"""Tables -> comparisons: cell summaries, differences to scratch, verdicts, and which strategy to choose.

Comparisons are paired by seed and made within a cell's model. Over several cells they are averaged within
each seed first, since the seed is the unit; a comparison that lacks a cell is not made.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.analysis.stats import Interval, Paired, interval, paired, pool, subtract, verdict
from bench.analysis.table import BASELINE, Arm, Cell, Measure, Tables

Seeds = Mapping[int, float]
_NONE: Seeds = {}


@dataclass(frozen=True)
class Summary:
    """One cell on one measure. `interval` is None where no run finished with this score."""

    measure: Measure
    cell: Cell
    interval: Interval | None
    to_scratch: Paired | None  # None for scratch itself and where no seed is shared


@dataclass(frozen=True)
class Pooled:
    """An arm on one measure, over all cells of the study's grid."""

    measure: Measure
    arm: Arm
    interval: Interval | None  # None where a cell is missing
    to_scratch: Paired | None
    n_missing: int
    n_cells: int
    inapplicable: str | None  # why the strategy cannot do the task at all
    verdict: str


@dataclass(frozen=True)
class Choice:
    """Who is best for a task, a model and a data budget, and who cannot be told apart from it."""

    measure: Measure
    model: str
    budget: str | None
    best: Arm
    interval: Interval
    to_scratch: Paired | None
    tied: tuple[Arm, ...]
    beaten: tuple[Arm, ...]
    missing: tuple[Arm, ...]


def baseline_cell(tables: Tables, cell: Cell) -> Cell:
    """The scratch cell beside a cell: same model, and of the cell's changed settings all that it shares.

    Settings of pretraining alone (a learning rate) do not touch scratch and are not in its variant.
    """

    def changes(other: Cell) -> set[str]:
        return set(filter(None, other.arm.variant.split(",")))

    beside = [
        other
        for other in tables.cells
        if (other.arm.strategy, other.model) == (BASELINE, cell.model) and changes(other) <= changes(cell)
    ]
    default = Cell(Arm(BASELINE, ""), cell.model, None)
    return max(beside, key=lambda other: len(changes(other)), default=default)


def grid(tables: Tables, arm: Arm) -> list[Cell]:
    """The cells that an arm needs to be compared over the whole study."""
    if arm.strategy == BASELINE or all(c.budget is None for c in tables.cells if c.arm == arm):
        return [Cell(arm, model, None) for model in tables.models]
    tried = {(cell.model, cell.budget) for cell in tables.cells if cell.budget is not None}
    return [
        Cell(arm, model, budget)
        for model in tables.models
        for budget in tables.budgets
        if (model, budget) in tried
    ]


def inapplicable(tables: Tables, arm: Arm, task: str) -> str | None:
    """Why an arm cannot do a task, None if it can."""
    for record in tables.records:
        if (record.strategy, record.variant) == arm and task in record.inapplicable:
            return record.inapplicable[task]
    return None


def difference(tables: Tables, measure: Measure, left: Cell, right: Cell) -> dict[int, float]:
    """left - right by seed, in the metric's own unit."""
    values = tables.values.get(measure, {})
    return subtract(values.get(left, _NONE), values.get(right, _NONE))


def summaries(tables: Tables, measure: Measure) -> list[Summary]:
    """Every cell that was tried, on one measure."""
    found = []
    for cell in tables.cells:
        values = tables.values[measure].get(cell, _NONE)
        spread = interval(list(values.values()))
        gap: Seeds = _NONE
        if cell.arm.strategy != BASELINE:
            gap = difference(tables, measure, cell, baseline_cell(tables, cell))
        found.append(Summary(measure, cell, spread, paired(gap)))
    return found


def pooled(tables: Tables, measure: Measure, arm: Arm) -> Pooled:
    """An arm over the whole grid: its mean, its difference to scratch, and the verdict."""
    cells = grid(tables, arm)
    values = [tables.values[measure].get(cell, _NONE) for cell in cells]
    gaps = [difference(tables, measure, cell, baseline_cell(tables, cell)) for cell in cells]
    n_missing = sum(not seeds for seeds in values)
    means = pool(values)
    spread = None if n_missing else interval(list(means.values()))
    reason = inapplicable(tables, arm, measure.task)
    gap, words = None, "baseline"
    if arm.strategy != BASELINE:
        lacking = sum(not seeds for seeds in gaps)
        gap = None if lacking else paired(pool(gaps))
        better = tables.measures[measure].higher_is_better
        words = verdict(gap, higher_is_better=better, n_missing=lacking)
    if gap is None and n_missing == 0 and inapplicable(tables, Arm(BASELINE, ""), measure.task):
        words = "no verdict (scratch cannot do the task)"
    if reason is not None and n_missing == len(cells):
        words = "not applicable"
    else:
        reason = None
    return Pooled(measure, arm, spread, gap, n_missing, len(cells), reason, words)


def between(tables: Tables, measure: Measure, left: Arm, right: Arm) -> Paired | None:
    """left - right over the whole grid, cell by cell and seed by seed; None where a cell is missing."""
    cells = [cell for arm in (left, right) for cell in grid(tables, arm) if cell.budget is not None]
    places = dict.fromkeys((cell.model, cell.budget) for cell in cells)
    gaps = [
        difference(tables, measure, _at(tables, left, *place), _at(tables, right, *place)) for place in places
    ]
    return paired(pool(gaps))


def choices(tables: Tables, measure: Measure) -> list[Choice]:
    """The decision table of one measure: a row per model and data budget with any result."""
    pretrained: set[tuple[str, str | None]]
    pretrained = {(cell.model, cell.budget) for cell in tables.cells if cell.budget is not None}
    places = pretrained or {(cell.model, cell.budget) for cell in tables.cells}
    ordered = sorted(places, key=lambda place: (tables.models.index(place[0]), _rank(tables, place[1])))
    found = (choose(tables, measure, model, budget) for model, budget in ordered)
    return [choice for choice in found if choice is not None]


def choose(tables: Tables, measure: Measure, model: str, budget: str | None) -> Choice | None:
    """The highest mean at one model and budget, and which others its paired interval cannot exclude."""
    values = tables.values[measure]
    cells = {arm: _at(tables, arm, model, budget) for arm in tables.arms}
    spreads = {arm: interval(list(values.get(cell, _NONE).values())) for arm, cell in cells.items()}
    present = {arm: spread for arm, spread in spreads.items() if spread is not None}
    if not present:
        return None
    better = tables.measures[measure].higher_is_better
    sign = 1 if better else -1
    best = max(present, key=lambda arm: sign * present[arm].mean)
    tied: list[Arm] = []
    beaten: list[Arm] = []
    for arm in present:
        gap = paired(difference(tables, measure, cells[best], cells[arm]))
        clear = gap is not None and _is_clear(gap, sign)
        if arm != best:
            (beaten if clear else tied).append(arm)
    missing = [arm for arm in cells if arm not in present and inapplicable(tables, arm, measure.task) is None]
    gap = paired(difference(tables, measure, cells[best], baseline_cell(tables, cells[best])))
    to_scratch = None if best.strategy == BASELINE else gap
    return Choice(
        measure, model, budget, best, present[best], to_scratch, tuple(tied), tuple(beaten), tuple(missing)
    )


def _is_clear(gap: Paired, sign: int) -> bool:
    bound = gap.interval.low if sign > 0 else gap.interval.high
    return bound is not None and sign * bound > 0


def _at(tables: Tables, arm: Arm, model: str, budget: str | None) -> Cell:
    unbudgeted = Cell(arm, model, None)
    return unbudgeted if unbudgeted in tables.cells else Cell(arm, model, budget)


def _rank(tables: Tables, budget: str | None) -> int:
    return -1 if budget is None else tables.budgets.index(budget)
