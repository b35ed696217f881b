"""Probe accuracy by layer: a line per strategy, a panel per task and model."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from typing_extensions import override

from bench.analysis.format import with_seeds
from bench.analysis.frames import MeasureSeries, Tables, numbered_series
from bench.analysis.untrained import shown
from bench.report.figures.lines import LineFigure, spreads

METRIC = r"(\w+)_layer_(\d+)"  # name of a metric at a layer; layer 0 is the embedding


class Layers(LineFigure):
    """Draw means over data budgets, with the most labels where several label counts are measured."""

    title = "Probe accuracy by layer"
    nothing = "No task is probed layer by layer: nothing to draw."
    xlabel = "layer (0: embedding)"
    by_model = True

    @override
    def find(self, tables: Tables) -> list[MeasureSeries]:
        return numbered_series(tables, METRIC)

    @override
    def scale(self, axes: Axes, xs: Sequence[int]) -> list[float]:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return [float(x) for x in xs]

    @override
    def caption(self, tables: Tables) -> str:
        found = self.series(tables)
        if not found:
            return self.nothing
        model = tables.models[-1]
        return (
            "A frozen probe of each layer's features: mean over data budgets within each seed, then over "
            "seeds, with 95 % t intervals. Best layer by mean (biased upward, since it was chosen), with "
            f"model {model}: {'; '.join(_finding(tables, series, model) for series in found)}."
        )


def _finding(tables: Tables, series: MeasureSeries, model: str) -> str:
    sign = tables.measures[series.measures[0]].sign
    parts = []
    for condition in (condition for condition in tables.conditions if not condition.is_external):
        found = [
            (spread, x)
            for x, spread in zip(series.xs, spreads(tables, series, condition, model), strict=True)
            if spread is not None
        ]
        if found:
            spread, x = max(found, key=lambda pair: (sign * pair[0].mean, -pair[1]))
            name, last = shown(tables, condition, [series.task]).label, max(x for _, x in found)
            parts.append(f"{name} at layer {x} of {last}, {with_seeds(spread)}")
    return f"{series.task}: {', '.join(parts) or 'no result'}"
