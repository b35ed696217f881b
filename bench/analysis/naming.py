"""What measures, cells and runs are called in tables and figures, and where a link to them leads."""

from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import quote

from bench.analysis.stats import LEVEL
from bench.analysis.table import Cell, Measure, Tables
from bench.analysis.text import Link

_ARROWS = {1: "\N{NO-BREAK SPACE}↑", -1: "\N{NO-BREAK SPACE}↓", 0: ""}


def measure_label(tables: Tables, measure: Measure) -> str:
    """`task: metric (labels) ↑`, the arrow pointing to better, none where nothing is; once if named alike."""
    labels = "" if measure.n_labels is None else f" ({measure.n_labels:,} labels)"
    return f"{_names(measure)}{labels}{_ARROWS[tables.measures[measure].sign]}"


def series_label(tables: Tables, measure: Measure, name: str) -> str:
    """As `measure_label`, for several measures of a task that are drawn together under `name`."""
    return f"{_names(measure._replace(metric=name))}{_ARROWS[tables.measures[measure].sign]}"


def _names(measure: Measure) -> str:
    return ": ".join(dict.fromkeys((measure.task, measure.metric)))


def cells_anchor(tables: Tables, measure: Measure) -> str:
    """The id of a measure's cells table."""
    return f"cells-{list(tables.measures).index(measure)}"


def measure_link(tables: Tables, measure: Measure) -> Link:
    """A measure's label that leads to its cells."""
    return Link(measure_label(tables, measure), f"#{cells_anchor(tables, measure)}")


def cell_label(cell: Cell, between: str = ", ") -> str:
    """`clm, 0.2m, 4mb`."""
    return between.join(part for part in (cell.arm.label, cell.model, cell.budget) if part)


def short_label(tables: Tables, cell: Cell) -> str:
    """As `cell_label`, without the model or the budget where the study has but one."""
    model = cell.model if len(tables.models) > 1 else ""
    budget = cell.budget if len(tables.budgets) > 1 else None
    return cell_label(Cell(cell.arm, model, budget))


@lru_cache(maxsize=2**16)  # asked for at every score of every run
def run_anchor(run_id: str) -> str:
    """The id of a run's row."""
    return f"run-{quote(run_id, safe='')}"


def seeds_note(seeds: Iterable[int]) -> str:
    """What an interval is, and where there is none."""
    counts = sorted(set(seeds))
    base = f"Brackets: {100 * LEVEL:.0f} % t interval of the mean over seeds, on these items."
    if 2 in counts:
        base += " Two seeds know little of their spread: there it goes 12.7 standard errors to either side."
    if 1 in counts:
        base += " One seed has no interval."
    return base
