"""Label budgets as a table: what pretraining adds with few and many labels, and where it stops helping."""

from bench.analysis.compare import gain, grid, is_compared
from bench.analysis.crossover import BEFORE, BEYOND, Crossover, crossover
from bench.analysis.naming import cells_anchor, seeds_note, series_label
from bench.analysis.series import Series, label_series
from bench.analysis.stats import paired
from bench.analysis.table import Arm, Tables
from bench.analysis.text import EMPTY, Entry, Link, View, with_interval


def label_budgets(tables: Tables) -> View | None:
    """A row per task and strategy; None where no task is measured at several label counts."""
    found = [
        (series, arm, crossover_of(tables, series, arm))
        for series in label_series(tables)
        for arm in tables.arms
        if is_compared(arm)
    ]
    if not found:
        return None
    rows: list[list[Entry]] = [
        [
            [_link(tables, series)],
            arm.label,
            *(_difference(tables, series, arm, i) for i in (0, -1)),
            EMPTY if point is None else answer(point),
            EMPTY if point is None else range_of(point, series.xs),
            EMPTY if point is None else str(point.n),
        ]
        for series, arm, point in found
    ]
    counts = [point.n for *_, point in found if point is not None]
    note = (
        "Difference to scratch over all models and data budgets, paired by seed. Pretraining stops helping "
        "where the mean difference leaves the better side for good: linear in log2 labels between two label "
        "counts that were measured, never beyond them. Range: percentile bootstrap of that number over "
        f"seeds; < and >: outside the label counts that were measured. {seeds_note(counts)}"
    )
    header = ["task: metric", "strategy", "minus scratch, fewest labels", "minus scratch, most labels"]
    header += ["pretraining stops helping at", "range", "n"]
    title = "Label budgets: where pretraining stops helping"
    return View("label_budgets", title, note, header, "llrrrrr", rows)


def crossover_of(tables: Tables, series: Series, arm: Arm) -> Crossover | None:
    """Over the whole grid; None where scratch, a cell or a shared seed is missing."""
    cells = grid(tables, arm)
    gains = {
        x: {seed: tables.measures[m].sign * d for seed, d in gain(tables, m, cells).items()}
        for x, m in series.points
    }
    return crossover(gains)


def answer(point: Crossover) -> str:
    """Where the crossover is, or why there is none."""
    if point.at == BEFORE:
        return "never ahead"
    if point.at == BEYOND:
        ahead = "ahead at all label counts"
        return ahead if point.is_ahead_throughout else "no crossover within the range (behind with fewer)"
    return f"{point.at:,.0f} labels"


def range_of(point: Crossover, counts: list[int]) -> str:
    """`[120, > 1,400]`, in labels; what lies outside the measured counts is not a number."""
    bounds = point.bounds_as("{:,.0f}".format, f"< {counts[0]:,}", f"> {counts[-1]:,}")
    return f"[{', '.join(dict.fromkeys(bounds)) or 'one seed'}]"


def _link(tables: Tables, series: Series) -> Link:
    most = series.measures[-1]
    sizes = f"{series.xs[0]:,} to {series.xs[-1]:,} labels"
    label = f"{series_label(tables, most, series.name)} ({sizes})"
    return Link(label, f"#{cells_anchor(tables, most)}")


def _difference(tables: Tables, series: Series, arm: Arm, i: int) -> str:
    gap = paired(gain(tables, series.measures[i], grid(tables, arm)))
    return EMPTY if gap is None else with_interval(gap.interval, signed=True)
