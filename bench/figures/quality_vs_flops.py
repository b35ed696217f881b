"""Quality against pretraining FLOPs: a panel per task, a point per cell. What each strategy costs."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from bench.analysis.compare import Summary, summaries
from bench.analysis.stats import Paired
from bench.analysis.table import BASELINE, Cell, Measure, Tables, cell_of
from bench.analysis.text import power, with_p
from bench.figures.base import (
    GREY,
    TaskFigure,
    blank,
    errors,
    finish,
    legend,
    looks,
    lost_note,
    references,
    wrapped,
)

_NOTHING = "No finished run with pretraining FLOPs: nothing to draw."
_SAME = 1.05  # cells within 5 % of compute are matched, and no line joins them


class QualityVsFlops(TaskFigure):
    """The quality that pretraining compute buys. FLOPs of scratch are none, so it is a line."""

    title = "Quality against pretraining compute"

    def draw(self, tables: Tables) -> Canvas:
        """One panel per task; the larger the marker, the larger the model."""
        measures, flops = self.measures(tables), cell_flops(tables)
        if not measures or not flops:
            return blank(_NOTHING)
        canvas, grid = wrapped(len(measures))
        for axes, measure in zip(grid, measures, strict=True):
            _panel(axes, tables, measure, flops)
        canvas.supxlabel("pretraining FLOPs (log scale)", fontsize=8)
        sizes = [
            Line2D([], [], color=GREY, marker="o", linestyle="", markersize=_size(i), label=f"model {model}")
            for i, model in enumerate(tables.models)
        ]
        legend(canvas, tables, *sizes)
        return canvas

    def caption(self, tables: Tables) -> str:
        """Per task, the cheapest cell that is ahead of scratch."""
        measures, flops = self.measures(tables), cell_flops(tables)
        if not measures or not flops:
            return _NOTHING
        findings = "; ".join(_finding(tables, measure, flops) for measure in measures)
        return (
            "Each task's metric against the FLOPs of pretraining, forward and backward. A point is a cell: "
            "mean over seeds with its bootstrap interval, the fainter the smaller its data budget, moved "
            "sideways a little where compute is matched; lines join a strategy's cells of growing compute at "
            f"the same data budget.{lost_note(tables)} "
            "Cheapest cell whose paired interval lies above scratch (p of the t test, uncorrected): "
            f"{findings}."
        )


def cell_flops(tables: Tables) -> dict[Cell, float]:
    """Mean pretraining FLOPs of each cell's finished runs, for cells that have any."""
    spent: dict[Cell, list[float]] = {}
    for record in tables.records:
        if record.status == "finished" and record.spent.flops > 0:
            spent.setdefault(cell_of(record), []).append(record.spent.flops)
    return {cell: sum(flops) / len(flops) for cell, flops in spent.items()}


def round_ticks(low: float, high: float) -> list[float]:
    """A few round numbers between the bounds of a log axis, or the bounds if there are none."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps: Sequence[Sequence[int]] = ((1, 2, 5), (1, 3), (1,))
    for step in steps:
        ticks = [factor * 10.0**exponent for exponent in powers for factor in step]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= 4:
            return inside if len(inside) > 1 else [low, high]
    return inside[:: math.ceil(len(inside) / 4)]


def _size(index: int) -> float:
    return 4.5 + 1.8 * index


def _alpha(tables: Tables, budget: str | None) -> float:
    if budget is None or len(tables.budgets) == 1:
        return 1.0
    return 0.3 + 0.7 * tables.budgets.index(budget) / (len(tables.budgets) - 1)


def _panel(axes: Axes, tables: Tables, measure: Measure, flops: dict[Cell, float]) -> None:
    found = {row.cell: row for row in summaries(tables, measure)}
    for cell, row in found.items():
        if cell.arm.strategy == BASELINE:
            references(axes, row.interval)
    low, high = min(flops.values()), max(flops.values())
    shift = max(math.log10(high / low), 0.3) * 0.02
    for index, (arm, look) in enumerate(looks(tables).items()):
        factor = 10 ** ((index - (len(looks(tables)) - 1) / 2) * shift)
        own = [cell for cell in found if cell.arm == arm and cell in flops and found[cell].interval]
        for cell in own:
            mean, bars = errors([found[cell].interval])
            size = _size(tables.models.index(cell.model))
            style: dict[str, Any] = {"marker": look.marker, "ms": size, "color": look.colour}
            style |= {"alpha": _alpha(tables, cell.budget), "mec": "white", "mew": 0.4}
            axes.errorbar([flops[cell] * factor], mean, yerr=bars, elinewidth=0.8, **style)
        for budget in tables.budgets:
            line = sorted((flops[cell], _mean(found[cell])) for cell in own if cell.budget == budget)
            if len(line) > 1 and all(b[0] > a[0] * _SAME for a, b in pairwise(line)):
                points = [[x * factor for x, _ in line], [y for _, y in line]]
                axes.plot(*points, color=look.colour, linewidth=0.7, alpha=0.6 * _alpha(tables, budget))
    _log_axis(axes, low, high)
    finish(axes, tables, measure)


def _log_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks = list(dict.fromkeys(round_ticks(low, high)))
    axes.set_xticks(ticks, [power(tick) for tick in ticks])
    margin = max(1.25, (high / low) ** 0.1)
    axes.set_xlim(low / margin, high * margin)


def _mean(row: Summary) -> float:
    if row.interval is None:
        raise ValueError("a cell without a number cannot be drawn")
    return row.interval.mean


def _finding(tables: Tables, measure: Measure, flops: dict[Cell, float]) -> str:
    sign = tables.measures[measure].sign
    if not sign:
        return f"{measure.task} ({measure.metric}): descriptive, nothing is better"
    ahead = [
        (flops[row.cell], row)
        for row in summaries(tables, measure)
        if row.cell in flops and row.to_scratch is not None and _lower_end(row.to_scratch, sign) > 0
    ]
    if not ahead:
        return f"{measure.task}: none"
    cost, row = min(ahead, key=lambda pair: (pair[0], pair[1].cell))
    place = f"{row.cell.arm.label}, {row.cell.model}, {row.cell.budget}"
    return f"{measure.task} ({measure.metric}): {place} at {power(cost)} FLOPs, {with_p(row.to_scratch)}"


def _lower_end(gap: Paired, sign: int) -> float:
    """The end of the interval that is worse for the cell; a single seed shows nothing."""
    bound = gap.interval.low if sign > 0 else gap.interval.high
    return -math.inf if bound is None else sign * bound
