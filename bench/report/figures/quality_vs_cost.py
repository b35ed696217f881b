"""Quality against a cost of pretraining: a panel per task, a point per cell, and the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any

import numpy as np
import scipy
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from omegaconf import MISSING
from typing_extensions import override

from bench.analysis.compare import Summary, most_spread, summaries
from bench.analysis.cost import SOURCES, Member, energy_note, flops, front, joules, seconds
from bench.analysis.format import amount, cell_label, power, with_p
from bench.analysis.frames import BASELINE, Cell, Measure, Tables
from bench.analysis.untrained import shown_cell
from bench.report.figures.base import TaskFigure
from bench.report.figures.style import (
    GREY,
    Look,
    Stroke,
    blank,
    crowd_note,
    draw_bars,
    draw_strokes,
    finish,
    is_crowded,
    left_out_note,
    legend,
    looks,
    lost_note,
    references,
    wrapped,
)

MOST_TASKS = 9  # panels of one kind of cost that fit a page
_SAME = 1.05  # cells within 5 % of a cost have equal cost, and no line joins them
_APART, _MOST_MOVED = 0.02, 0.5  # shares of the axis: between two cells, and all such gaps together
_RING = {True: ("black", "-"), False: ("black", ":")}  # by whether the gain of a member of the front is clear

Costs = Mapping[Cell, float]


class Cost(Enum):
    """The cost on the horizontal axis."""

    flops = "pretraining FLOPs"
    seconds = "pretraining seconds"
    joules = "joules of pretraining"


TITLES = {Cost.flops: "compute", Cost.seconds: "time", Cost.joules: "energy"}


class QualityVsCost(TaskFigure):
    """Draw quality against a cost of pretraining.

    Scratch has no pretraining, so it is a line, and the cheapest member of the front. Measured energy and
    estimated energy never share a panel.
    """

    @dataclass(frozen=True)
    class Options(TaskFigure.Options):
        """The cost on the horizontal axis."""

        cost: Cost = MISSING

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.cost = options.cost
        self.title = f"Quality against pretraining {TITLES[self.cost]}"
        self._nothing = f"No finished run has {self.cost.value} on record: nothing to draw."

    @override
    def applies(self, tables: Tables) -> bool:
        return bool(self._costs(tables))

    def _costs(self, tables: Tables) -> dict[str, Costs]:
        """Return each cell's cost, the mean over its finished runs, by the source of the cost."""
        if self.cost is Cost.joules:
            found = {source: joules(tables, source) for source in SOURCES}
        else:
            found = {"": flops(tables) if self.cost is Cost.flops else seconds(tables)}
        return {source: costs for source, costs in found.items() if costs}

    def _value(self, cost: float) -> str:
        """Return a cost with its unit."""
        if self.cost is Cost.flops:
            return f"{power(cost)} FLOPs"
        return f"{amount(cost)} {'s' if self.cost is Cost.seconds else 'J'}"

    def _remark(self, tables: Tables) -> str:
        """Return what a reader must know of the cost."""
        if self.cost is Cost.flops:
            return ", forward and backward"
        if self.cost is Cost.seconds:
            return ", which depend on the machine and its load"
        return f"; cells without energy records are left out. {energy_note(tables).rstrip('.')}"

    @override
    def draw(self, tables: Tables) -> Canvas:
        """Draw one panel per task and source of the cost; larger markers are larger models."""
        places = self._places(tables)
        if not places:
            return blank(self._nothing)
        canvas, grid = wrapped(len(places))
        for axes, (measure, source, costs) in zip(grid, places, strict=True):
            _panel(axes, tables, measure, costs)
            finish(axes, tables, measure, source)
        canvas.supxlabel(f"{self.cost.value} (log scale), evaluation not included", fontsize=8)
        legend(canvas, tables, [measure.task for measure, *_ in places], *_handles(tables))
        return canvas

    @override
    def caption(self, tables: Tables) -> str:
        places = self._places(tables)
        if not places:
            return self._nothing
        findings = "; ".join(self._finding(tables, *place) for place in places)
        return (
            f"Each task's metric against {self.cost.value}{self._remark(tables)}. Each point is a cell: its "
            "mean over seeds with the 95 % t interval. Smaller data budgets are fainter, and points are "
            "shifted sideways to avoid overlap. Lines join a strategy's cells at one data budget. The step "
            "line is the Pareto front, which starts without pretraining at no cost; its members are ringed, "
            "with a dotted ring if the gain over the next cheaper member is not clear (p > 0.05, t test, "
            "uncorrected)."
            f"{crowd_note(tables)}{lost_note(tables)}"
            f"{left_out_note(self.measures(tables), [measure for measure, *_ in places])} "
            f"Members of the front with a clear gain: {findings}."
        )

    def _places(self, tables: Tables) -> list[tuple[Measure, str, Costs]]:
        """Return the panels: measure, source of the cost, and the costs of cells."""
        known = self._costs(tables)
        measures = self.measures(tables)
        if self.options.tasks is None:
            measures = most_spread(tables, measures, MOST_TASKS // max(len(known), 1))
        places = [(measure, source, costs) for measure in measures for source, costs in known.items()]
        return [place for place in places if any(cell in place[2] for cell in tables.cells_with(place[0]))]

    def _finding(self, tables: Tables, measure: Measure, source: str, costs: Costs) -> str:
        name = f"{measure.task} ({', '.join(part for part in (measure.metric, source) if part)})"
        if not tables.measures[measure].sign:
            return f"{name}: descriptive, not ranked"
        members = front(tables, measure, costs)
        clear = [
            self._gain(shown_cell(tables, member.cell, [measure.task]), member)
            for member in members
            if member.is_clear
        ]
        return f"{name}: {', '.join(clear) or 'none'}"

    def _gain(self, cell: Cell, member: Member) -> str:
        return f"{cell_label(cell)} at {self._value(member.cost)}, {with_p(member.gain)}"


def _panel(axes: Axes, tables: Tables, measure: Measure, costs: Costs) -> None:
    found = {row.cell: row for row in summaries(tables, measure)}
    for cell, row in found.items():
        if cell.condition.strategy == BASELINE:
            references(axes, row.interval)
    low, high = min(costs.values()), max(costs.values())
    places = places_of(tables, costs)
    lines: list[Stroke] = []
    for condition, look in looks(tables).items():
        own = [
            cell for cell in found if cell.condition == condition and cell in costs and found[cell].interval
        ]
        _points(axes, tables, look, [(places[cell], found[cell]) for cell in own])
        for budget in tables.budgets:
            line = sorted(
                (costs[cell], places[cell], _mean(found[cell])) for cell in own if cell.budget == budget
            )
            if len(line) > 1 and all(b[0] > a[0] * _SAME for a, b in pairwise(line)):
                colour = to_rgba(look.colour, 0.6 * _alpha(tables, budget))
                lines.append(Stroke([(x, y) for _, x, y in line], colour, "-", 0.7))
    draw_strokes(axes, lines)
    _log_axis(axes, low, high)
    _front(axes, tables, front(tables, measure, costs), places)


def places_of(tables: Tables, costs: Costs) -> dict[Cell, float]:
    """Return the coordinates of cells: near their cost, in its order, with room between them.

    Least squares on the log cost with minimum gaps: isotonic regression of costs less the gaps before them.
    """
    conditions = {condition: i for i, condition in enumerate(looks(tables))}
    cells = sorted(
        (cell for cell in costs if cell.condition in conditions),
        key=lambda c: (costs[c], conditions[c.condition]),
    )
    width = max(math.log10(max(costs.values()) / min(costs.values())), 0.3)
    gaps = min(_APART, _MOST_MOVED / max(len(cells), 1)) * width * np.arange(len(cells))
    logs = np.log10([costs[cell] for cell in cells])
    placed = scipy.optimize.isotonic_regression(logs - gaps).x + gaps if cells else gaps
    return dict(zip(cells, (10.0**placed).tolist(), strict=True))


def _points(axes: Axes, tables: Tables, look: Look, points: Sequence[tuple[float, Summary]]) -> None:
    """Draw a strategy's cells; without intervals if there are too many variants."""
    xs = [x for x, _ in points]
    means = [_mean(row) for _, row in points]
    if is_crowded(tables):
        axes.plot(xs, means, ".", ms=2, color=look.colour, alpha=0.6)
        return
    colours = [to_rgba(look.colour, _alpha(tables, row.cell.budget)) for _, row in points]
    draw_bars(axes, xs, [row.interval for _, row in points], colours)
    style: dict[str, Any] = {"c": colours, "marker": look.marker, "edgecolors": "white", "linewidths": 0.4}
    axes.scatter(xs, means, s=[_size(tables, row.cell.model) ** 2 for _, row in points], zorder=2, **style)


def _front(axes: Axes, tables: Tables, members: Sequence[Member], places: Mapping[Cell, float]) -> None:
    """Draw steps through the members of the front, and a ring around each that has a cost."""
    low, high = axes.get_xlim()
    xs = [places.get(member.cell, low) for member in members]
    ys = [member.interval.mean for member in members]
    if members:
        axes.step([*xs, high], [*ys, ys[-1]], where="post", color="black", linewidth=0.7, zorder=1.5)
    for x, y, member in zip(xs, ys, members, strict=True):
        if member.cell in places:
            colour, dash = _RING[member.is_clear is not False]
            area = (_size(tables, member.cell.model) + 4) ** 2
            ring: dict[str, Any] = {"facecolors": "none", "edgecolors": colour, "linestyles": dash}
            axes.scatter([x], [y], s=area, linewidths=0.9, zorder=3, clip_on=False, **ring)


def _handles(tables: Tables) -> list[Line2D]:
    sizes = [
        Line2D(
            [],
            [],
            color=GREY,
            marker="o",
            linestyle="",
            markersize=_size(tables, model),
            label=f"model {model}",
        )
        for model in tables.models
    ]
    return [*sizes, Line2D([], [], color="black", linewidth=0.7, label="Pareto front")]


def _size(tables: Tables, model: str) -> float:
    return 4.5 + 1.8 * tables.models.index(model)


def _alpha(tables: Tables, budget: str | None) -> float:
    if budget is None or len(tables.budgets) == 1:
        return 1.0
    return 0.3 + 0.7 * tables.budgets.index(budget) / (len(tables.budgets) - 1)


def _mean(row: Summary) -> float:
    if row.interval is None:
        raise ValueError("a cell without a number cannot be drawn")
    return row.interval.mean


def _log_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks = list(dict.fromkeys(round_ticks(low, high)))
    axes.set_xticks(ticks, [amount(tick) for tick in ticks])
    margin = max(1.25, (high / low) ** 0.1)
    axes.set_xlim(low / margin, high * margin)


def round_ticks(low: float, high: float) -> list[float]:
    """Return a few round numbers within the bounds of a log axis, or the bounds if there are none."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps: Sequence[Sequence[int]] = ((1, 2, 5), (1, 3), (1,))
    for step in steps:
        ticks = [factor * 10.0**exponent for exponent in powers for factor in step]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= 4:
            return inside if len(inside) > 1 else [low, high]
    return inside[:: math.ceil(len(inside) / 4)]
