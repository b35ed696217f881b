"""Quality against labelled items: a line per strategy, and where pretraining stops helping."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from bench.analysis.compare import is_compared
from bench.analysis.frames import MeasureSeries, Tables, label_series
from bench.analysis.inference import BEFORE, BEYOND
from bench.report.figures.lines import LineFigure
from bench.report.tables.findings import answer, crossover_of, range_of


class LabelCurves(LineFigure):
    """Each task that is measured at several label counts, on its first metric, over the whole grid."""

    title = "Quality against labelled items"
    nothing = "No task is measured at several label counts: nothing to draw."
    xlabel = "labelled items that were fitted to (log scale)"
    by_model = False

    def find(self, tables: Tables) -> list[MeasureSeries]:
        """The tasks' headline metrics at several label counts."""
        return label_series(tables)

    def scale(self, axes: Axes, xs: Sequence[int]) -> list[float]:
        """Log2, with a tick at each label count."""
        axes.set_xscale("log", base=2)
        axes.set_xticks(xs, [f"{x:,}" for x in xs])
        axes.minorticks_off()
        return [float(x) for x in xs]

    def moved(self, place: float, share: float) -> float:
        """By a share of a doubling."""
        return float(place * 2 ** (0.2 * share))

    def caption(self, tables: Tables) -> str:
        """The crossover of each strategy with scratch, with its interval."""
        found = self.series(tables)
        if not found:
            return self.nothing
        return (
            "Each task's metric against the number of labelled items: mean over all models and data budgets "
            "within each seed, then over seeds, with 95 % t intervals, moved sideways a little; a gap is "
            "a strategy that lacks a cell. From how many labels on pretraining stops helping, differences to "
            "scratch paired by seed, in brackets the bootstrap range over seeds, < and > outside what was "
            f"measured. {'. '.join(_finding(tables, series) for series in found)}."
        )


def _finding(tables: Tables, series: MeasureSeries) -> str:
    """Strategies by what can be said of their crossover."""
    groups: dict[str, list[str]] = {}
    n_seeds: set[int] = set()
    for arm in (arm for arm in tables.conditions if is_compared(arm)):
        point = crossover_of(tables, series, arm)
        if point is None:
            continue
        n_seeds.add(point.n)
        is_outside = point.at in (BEFORE, BEYOND)
        place = "" if is_outside else f" {answer(point)}"
        text = f"{arm.label}{place} {range_of(point, series.xs)}"
        groups.setdefault(answer(point) if is_outside else "stops helping", []).append(text)
    if not groups:
        return f"{series.task} ({series.name}): no strategy shares a seed with scratch"
    n = " to ".join(map(str, dict.fromkeys((min(n_seeds), max(n_seeds)))))
    found = "; ".join(f"{kind}: {', '.join(arms)}" for kind, arms in groups.items())
    return f"{series.task} ({series.name}, n = {n} seeds), {found}"
