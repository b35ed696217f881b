"""Tables -> comparisons: cell summaries, differences to scratch, verdicts, and which strategy to choose.

Comparisons are paired by seed and made within a cell's model. Over several cells they are averaged within
each seed first, since the seed is the unit; a comparison that lacks a cell is not made.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from bench.analysis.stats import (
    LEVEL,
    Interval,
    Paired,
    holm,
    interval,
    intervals,
    paired,
    pool,
    subtract,
    t_test_p,
    verdict,
)
from bench.analysis.table import BASELINE, Arm, Cell, Measure, Tables, lost
from bench.records import PRETRAINING_ONLY

Seeds = Mapping[int, float]
_NONE: Seeds = {}


@dataclass(frozen=True)
class Summary:
    """One cell on one measure. `interval` is None where no run finished with this score."""

    measure: Measure
    cell: Cell
    interval: Interval | None
    to_scratch: Paired | None  # None for scratch itself, external models and where no seed is shared


@dataclass(frozen=True)
class Pooled:
    """An arm on one measure, over all cells of the study's grid."""

    measure: Measure
    arm: Arm
    interval: Interval | None  # None where a cell is missing
    to_scratch: Paired | None
    n_missing: int
    n_cells: int
    n_lost: int  # runs of its cells that did not finish
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
    """The scratch cell beside a cell: same model, same changed settings but those of pretraining alone.

    It need not exist: scratch with other settings is no baseline.
    """
    shared = [x for x in cell.arm.variant.split() if not x.startswith(PRETRAINING_ONLY)]
    return Cell(Arm(BASELINE, " ".join(shared)), cell.model, None)


@lru_cache(maxsize=2**10)  # like what follows: views and figures ask again and again
def grid(tables: Tables, arm: Arm) -> tuple[Cell, ...]:
    """The cells that an arm needs to be compared over the whole study; an external one its own alone."""
    if arm.is_external:
        return tuple(cell for cell in tables.cells if cell.arm == arm)
    if arm.strategy == BASELINE or all(c.budget is None for c in tables.cells if c.arm == arm):
        return tuple(Cell(arm, model, None) for model in tables.models)
    tried = {(cell.model, cell.budget) for cell in tables.cells if cell.budget is not None}
    return tuple(
        Cell(arm, model, budget)
        for model in tables.models
        for budget in tables.budgets
        if (model, budget) in tried
    )


def level(tables: Tables, measure: Measure, cells: Iterable[Cell]) -> Seeds:
    """Values by seed, averaged over cells; only seeds that every cell has."""
    values = tables.values.get(measure, {})
    return pool([values.get(cell, _NONE) for cell in cells])


def gain(tables: Tables, measure: Measure, cells: Iterable[Cell]) -> Seeds:
    """Differences to scratch by seed, in the metric's own unit, averaged over cells."""
    return pool([difference(tables, measure, cell, baseline_cell(tables, cell)) for cell in cells])


def difference(tables: Tables, measure: Measure, left: Cell, right: Cell) -> dict[int, float]:
    """left - right by seed, in the metric's own unit."""
    values = tables.values.get(measure, {})
    return subtract(values.get(left, _NONE), values.get(right, _NONE))


def is_compared(arm: Arm) -> bool:
    """Is it held against scratch?"""
    return arm.strategy != BASELINE and not arm.is_external


@lru_cache(maxsize=2**8)
def summaries(tables: Tables, measure: Measure) -> tuple[Summary, ...]:
    """Every cell that was tried, on one measure."""
    values = tables.values[measure]
    spreads = intervals([[*values.get(cell, _NONE).values()] for cell in tables.cells])
    found = []
    for cell, spread in zip(tables.cells, spreads, strict=True):
        gap: Seeds = _NONE
        if is_compared(cell.arm):
            gap = difference(tables, measure, cell, baseline_cell(tables, cell))
        found.append(Summary(measure, cell, spread, paired(gap)))
    return tuple(found)


def pooled(tables: Tables, measures: Iterable[Measure]) -> list[Pooled]:
    """Every arm over the whole grid, on all of these measures: means, differences to scratch, verdicts.

    The verdicts' p values are Holm-corrected over all differences among them.
    """
    found = [_pooled(tables, measure, arm) for measure in measures for arm in tables.arms]
    tested = [i for i, row in enumerate(found) if row.to_scratch is not None]
    p_values = [gap.p_t for i in tested if (gap := found[i].to_scratch) is not None]
    p_holm = dict(zip(tested, holm(p_values), strict=True))
    return [replace(row, verdict=_verdict(tables, row, p_holm.get(i, 1.0))) for i, row in enumerate(found)]


@lru_cache(maxsize=2**12)
def _pooled(tables: Tables, measure: Measure, arm: Arm) -> Pooled:
    cells = grid(tables, arm)
    n_missing = sum(not tables.values[measure].get(cell) for cell in cells)
    spread = interval(list(level(tables, measure, cells).values()))
    judged = is_compared(arm) and tables.measures[measure].sign != 0
    gap = paired(gain(tables, measure, cells)) if judged else None
    reason = tables.inapplicable.get((arm, measure.task)) if n_missing == len(cells) else None
    own = [record for cell in cells for record in tables.runs_of.get(cell, ())]
    n_lost = sum(lost(tables, record, measure.task) is not None for record in own)
    return Pooled(measure, arm, spread, gap, n_missing, len(cells), n_lost, reason, verdict="")


def _verdict(tables: Tables, row: Pooled, p_holm: float) -> str:
    if row.arm.strategy == BASELINE:
        return "baseline"
    if row.inapplicable is not None:
        return "not applicable"
    if row.arm.is_external:
        return "external reference"
    if not tables.measures[row.measure].sign:
        return "descriptive"
    if row.to_scratch is None and row.n_missing == 0:
        baselines = [arm for arm in tables.arms if arm.strategy == BASELINE]
        if any((arm, row.measure.task) in tables.inapplicable for arm in baselines):
            return "no verdict (scratch cannot do the task)"
        return "no verdict (no scratch with the same settings and seeds)"
    lacking = "missing cells" if row.n_missing else f"{row.n_lost} runs lost" if row.n_lost else ""
    better = tables.measures[row.measure].sign > 0
    return verdict(row.to_scratch, higher_is_better=better, p_holm=p_holm, lacking=lacking)


def places(tables: Tables) -> list[tuple[str, str | None]]:
    """Every model and data budget that was tried, in order of size."""
    pretrained: set[tuple[str, str | None]]
    pretrained = {(cell.model, cell.budget) for cell in tables.cells if cell.budget is not None}
    found = pretrained or {(c.model, c.budget) for c in tables.cells if not c.arm.is_external}
    return sorted(found, key=lambda place: (tables.models.index(place[0]), _rank(tables, place[1])))


def between(
    tables: Tables, measure: Measure, left: Arm, right: Arm, model: str, budget: str | None
) -> Paired | None:
    """left - right at one model and data budget, seed by seed; None where no seed is shared."""
    cells = _at(tables, left, model, budget), _at(tables, right, model, budget)
    return paired(difference(tables, measure, *cells))


def choose(tables: Tables, measure: Measure, model: str, budget: str | None) -> Choice | None:
    """The best mean at one model and budget, and which others its paired interval cannot exclude.

    None where there is no result, and for a measure that only describes.
    """
    sign = tables.measures[measure].sign
    values = tables.values[measure]
    cells = {arm: _at(tables, arm, model, budget) for arm in tables.arms if not arm.is_external}
    spreads = {arm: interval(list(values.get(cell, _NONE).values())) for arm, cell in cells.items()}
    present = {arm: spread for arm, spread in spreads.items() if spread is not None}
    if not present or not sign:
        return None
    best = max(present, key=lambda arm: sign * present[arm].mean)
    tied: list[Arm] = []
    beaten: list[Arm] = []
    for arm in present:
        if arm != best:
            clear = is_clear(difference(tables, measure, cells[best], cells[arm]), sign)
            (beaten if clear else tied).append(arm)
    missing = [arm for arm in cells if arm not in present and (arm, measure.task) not in tables.inapplicable]
    gap = paired(difference(tables, measure, cells[best], baseline_cell(tables, cells[best])))
    to_scratch = None if best.strategy == BASELINE else gap
    return Choice(
        measure, model, budget, best, present[best], to_scratch, tuple(tied), tuple(beaten), tuple(missing)
    )


def is_clear(differences: Seeds, sign: int) -> bool:
    """Do differences by seed lie on the better side, by an uncorrected t test?"""
    values = list(differences.values())
    return t_test_p(values) <= 1 - LEVEL and sign * sum(values) > 0


def _at(tables: Tables, arm: Arm, model: str, budget: str | None) -> Cell:
    unbudgeted = Cell(arm, model, None)
    return unbudgeted if unbudgeted in tables.runs_of else Cell(arm, model, budget)


def _rank(tables: Tables, budget: str | None) -> int:
    return -1 if budget is None else tables.budgets.index(budget)
