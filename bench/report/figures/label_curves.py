"""Quality against the number of labels: a line per strategy, and where pretraining stops helping."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from typing_extensions import override

from bench.analysis.compare import is_compared
from bench.analysis.frames import MeasureSeries, Tables, label_series
from bench.analysis.inference import BEFORE, BEYOND
from bench.analysis.untrained import baseline_name
from bench.report.figures.lines import LineFigure
from bench.report.tables.findings import answer, crossover_of, range_of


class LabelCurves(LineFigure):
    """Draw each task that is measured at several label counts, on its first metric, over all cells."""

    title = "Quality against labelled items"
    nothing = "No task is measured at several label counts: nothing to draw."
    xlabel = "labelled items used for fitting (log scale)"
    by_model = False

    @override
    def find(self, tables: Tables) -> list[MeasureSeries]:
        return label_series(tables)

    @override
    def scale(self, axes: Axes, xs: Sequence[int]) -> list[float]:
        axes.set_xscale("log", base=2)
        axes.set_xticks(xs, [f"{x:,}" for x in xs])
        axes.minorticks_off()
        return [float(x) for x in xs]

    @override
    def moved(self, place: float, share: float) -> float:
        return float(place * 2 ** (0.2 * share))

    @override
    def caption(self, tables: Tables) -> str:
        found = self.series(tables)
        if not found:
            return self.nothing
        return (
            "Each task's metric against the number of labelled items: mean over seeds at the headline's "
            "model and data budget, with 95 % t intervals. Points are shifted sideways to avoid overlap. "
            "Below: the number of labels at which pretraining stops helping, with the measured label counts "
            "between which the order is not clear; < and > mark bounds outside the measured range. "
            f"{'. '.join(_finding(tables, series) for series in found)}."
        )


def _finding(tables: Tables, series: MeasureSeries) -> str:
    """Return the strategies of a task, grouped by their crossover."""
    groups: dict[str, list[str]] = {}
    n_seeds: set[int] = set()
    for condition in (condition for condition in tables.conditions if is_compared(condition)):
        point = crossover_of(tables, series, condition)
        if point is None:
            continue
        n_seeds.add(point.n)
        is_outside = point.at in (BEFORE, BEYOND)
        place = "" if is_outside else f" {answer(point)}"
        text = f"{condition.label}{place} {range_of(point, series.xs)}"
        groups.setdefault(answer(point) if is_outside else "stops helping", []).append(text)
    if not groups:
        baseline = baseline_name(tables, [series.task])
        return f"{series.task} ({series.name}): no strategy can be compared with {baseline}"
    n = " to ".join(map(str, dict.fromkeys((min(n_seeds), max(n_seeds)))))
    found = "; ".join(f"{kind}: {', '.join(conditions)}" for kind, conditions in groups.items())
    return f"{series.task} ({series.name}, n = {n} seeds), {found}"
