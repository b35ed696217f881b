"""Probe accuracy by layer: what a strategy's layers hold, a line per strategy, a panel per task and model."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bench.analysis.format import with_seeds
from bench.analysis.frames import MeasureSeries, Tables, numbered_series
from bench.report.figures.lines import LineFigure, spreads

METRIC = r"(\w+)_layer_(\d+)"  # what a task calls its metric at a layer; 0 is the embedding


class Layers(LineFigure):
    """Means over data budgets; where several label counts are measured, with the most labels."""

    title = "Probe accuracy by layer"
    nothing = "No task is probed layer by layer: nothing to draw."
    xlabel = "layer (0: embedding)"
    by_model = True

    def find(self, tables: Tables) -> list[MeasureSeries]:
        """Metrics that are measured at every layer."""
        return numbered_series(tables, METRIC)

    def scale(self, axes: Axes, xs: Sequence[int]) -> list[float]:
        """Whole layers."""
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return [float(x) for x in xs]

    def caption(self, tables: Tables) -> str:
        """Each strategy's best layer of the largest model."""
        found = self.series(tables)
        if not found:
            return self.nothing
        model = tables.models[-1]
        return (
            "A frozen probe of each layer's features: mean over data budgets within each seed, then over "
            "seeds, with 95 % t intervals. Best mean over layers, flattered by the "
            f"choice, with model {model}: {'; '.join(_finding(tables, series, model) for series in found)}."
        )


def _finding(tables: Tables, series: MeasureSeries, model: str) -> str:
    sign = tables.measures[series.measures[0]].sign
    parts = []
    for arm in (arm for arm in tables.conditions if not arm.is_external):
        found = [
            (spread, x)
            for x, spread in zip(series.xs, spreads(tables, series, arm, model), strict=True)
            if spread is not None
        ]
        if found:
            spread, x = max(found, key=lambda pair: (sign * pair[0].mean, -pair[1]))
            parts.append(f"{arm.label} at layer {x} of {max(x for _, x in found)}, {with_seeds(spread)}")
    return f"{series.task}: {', '.join(parts) or 'no result'}"
