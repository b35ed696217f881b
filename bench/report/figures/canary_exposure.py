"""Exposure of planted secrets against the number of planted copies: a panel per kind of likelihood."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from typing_extensions import override

from bench.analysis.format import number, with_seeds
from bench.analysis.frames import MeasureSeries, Tables, numbered_series
from bench.analysis.untrained import shown
from bench.report.figures.lines import LineFigure, spreads

METRIC = r"(exposure(?:_[a-z]+)?)_at_(\d+)"  # name of the metric, in bits, at a number of copies


class CanaryExposure(LineFigure):
    """Draw how much each strategy remembers of its training text (Carlini et al. 2019, arXiv:1802.08232)."""

    title = "Exposure of planted secrets"
    nothing = "No exposure of planted secrets was measured: nothing to draw."
    xlabel = "copies in the training data, evenly spaced (0: not planted)"
    ylabel = "exposure (bits)"
    by_model = False

    @override
    def find(self, tables: Tables) -> list[MeasureSeries]:
        return numbered_series(tables, METRIC)

    @override
    def scale(self, axes: Axes, xs: Sequence[int]) -> list[float]:
        axes.set_xticks(range(len(xs)), [f"{x:,}" for x in xs])
        axes.grid(visible=False, axis="x")
        return [float(i) for i in range(len(xs))]

    @override
    def caption(self, tables: Tables) -> str:
        found = self.series(tables)
        if not found:
            return self.nothing
        return (
            "Exposure, in bits, of secrets planted in the training text, by the number of copies: mean over "
            "all models and data budgets within each seed, then over seeds, with 95 % t intervals. Chance "
            "(dotted) is the average exposure of a secret of random rank. Kinds of likelihood are not "
            "comparable. "
            f"With the most copies: {'; '.join(_finding(tables, series) for series in found)}."
        )


def _finding(tables: Tables, series: MeasureSeries) -> str:
    most, measure = series.points[-1]
    found = [
        (condition, spreads(tables, series, condition)[-1])
        for condition in tables.conditions
        if not condition.is_external
    ]
    parts = ", ".join(
        f"{shown(tables, condition, [series.task]).label} {with_seeds(spread)}"
        for condition, spread in found
        if spread is not None
    )
    chance = "".join(f", chance {number(level)}" for level in tables.measures[measure].chance[:1])
    return f"{series.task} ({most:,} copies{chance}): {parts or 'no result'}"
