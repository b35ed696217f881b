"""Quality against unique data: a line per strategy, a row per task and a column per model."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter
from typing_extensions import override

from bench.analysis.compare import baseline_cell, choose, most_spread, summaries
from bench.analysis.format import number, with_p, with_seeds
from bench.analysis.frames import BASELINE, Cell, Condition, Measure, Tables
from bench.analysis.untrained import baseline_name, shown
from bench.report.figures.base import TaskFigure
from bench.report.figures.style import (
    N_COLUMNS,
    WIDTH_IN,
    blank,
    crosses,
    crowd_note,
    draw_lines,
    finish,
    left_out_note,
    legend,
    looks,
    lost_note,
    n_columns,
    panels,
    references,
    wrapped,
)

MOST_PANELS = 15  # that fit a page
_CHARACTER_IN, _GAP_IN = 0.06, 0.05  # of a tick's label, and between two
_BESIDE_IN = 0.3  # of a panel's width, for the labels on its left
_SHORT = EngFormatter(sep="")
_NOTHING = "No finished pretrained run: nothing to draw."


class QualityVsData(TaskFigure):
    """Draw how quality changes with unique data. Data budgets are in order of size, evenly spaced."""

    title = "Quality against unique data"

    @override
    def draw(self, tables: Tables) -> Canvas:
        """Draw one panel per task and model."""
        measures = self._drawn(tables)
        if not measures or not tables.budgets:
            return blank(_NOTHING)
        if len(tables.models) == 1:
            canvas, flat = wrapped(len(measures))
            grid = [[axes] for axes in flat]
        else:
            canvas, grid = panels(len(measures), len(tables.models), 1.7, sharey=True)
        for row, measure in zip(grid, measures, strict=True):
            for axes, model in zip(row, tables.models, strict=True):
                _panel(axes, tables, measure, model)
            for axes, model in zip(row, tables.models, strict=True):
                finish(axes, tables, measure, f"model {model}" if len(tables.models) > 1 else "")
        canvas.supxlabel("data budget (unique data, then compute), in order of size", fontsize=8)
        legend(canvas, tables, [measure.task for measure in measures])
        return canvas

    @override
    def caption(self, tables: Tables) -> str:
        measures = self._drawn(tables)
        if not measures or not tables.budgets:
            return _NOTHING
        model, budget = tables.models[-1], tables.budgets[-1]
        findings = [_finding(tables, measure, model, budget) for measure in measures]
        sizes = ", ".join(tables.budgets)
        return (
            f"Each task's metric against the data budget ({sizes}). Points are means over seeds, "
            "and bars their 95 % t intervals. A gap is a cell without a number, and a cross is a cell whose "
            f"runs all failed.{crowd_note(tables)}{lost_note(tables)}"
            f"{left_out_note(self.measures(tables), measures)} "
            f"At the largest budget ({budget}) with model {model}: {'; '.join(findings)}."
        )

    def _drawn(self, tables: Tables) -> list[Measure]:
        """Return the measures of the configured tasks, or as many as fit a page."""
        measures = self.measures(tables)
        if self.options.tasks is None:
            return most_spread(tables, measures, MOST_PANELS // max(1, min(len(tables.models), N_COLUMNS)))
        return measures


def _panel(axes: Axes, tables: Tables, measure: Measure, model: str) -> None:
    found = {row.cell: row.interval for row in summaries(tables, measure)}
    references(axes, found.get(Cell(Condition(BASELINE, ""), model, None)))
    style, lines = looks(tables), []
    for index, (condition, look) in enumerate(style.items()):
        offset = (index - (len(style) - 1) / 2) * min(0.06, 0.5 / len(style))
        spreads = [found.get(Cell(condition, model, budget)) for budget in tables.budgets]
        lines.append(([i + offset for i in range(len(spreads))], spreads, look))
        tried = [Cell(condition, model, budget) in found for budget in tables.budgets]
        lost = [i + offset for i, spread in enumerate(spreads) if spread is None and tried[i]]
        if len(lost) < len(spreads):
            crosses(axes, lost, look.colour)
    draw_lines(axes, lines)
    labels = [tick_label(name) for name in tables.budgets]
    shown = with_room(labels, WIDTH_IN / n_columns(axes) - _BESIDE_IN)
    axes.set_xticks(shown, [labels[i] for i in shown])
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.grid(visible=False, axis="x")


def with_room(labels: Sequence[str], width_in: float) -> range:
    """Return which labels to show so that none hides another; the last one is always shown."""
    longest = max(len(line) for label in labels for line in label.split("\n"))
    step = math.ceil((longest * _CHARACTER_IN + _GAP_IN) * len(labels) / width_in)
    return range((len(labels) - 1) % step, len(labels), step)


def tick_label(budget: str) -> str:
    """Return a budget's name in short lines: `4mb[tokens=120000]` as 4mb, tokens, 120k."""
    name, _, changes = budget.rstrip("]").partition("[")
    parts = [part for change in changes.split(",") for part in change.split("=") if part]
    return "\n".join([name, *(_SHORT(int(part)) if part.isdecimal() else part for part in parts)])


def _finding(tables: Tables, measure: Measure, model: str, budget: str) -> str:
    if not tables.measures[measure].sign:
        return f"{measure.task} ({measure.metric}): descriptive, not ranked"
    choice = choose(tables, measure, model, budget)
    if choice is None:
        return f"{measure.task}: no result"
    name = shown(tables, choice.best, [measure.task]).label
    best = f"{measure.task} ({measure.metric}): {name} {with_seeds(choice.interval)}"
    if choice.best.strategy == BASELINE:
        return f"{best}, ahead of every pretrained strategy's mean"
    values = tables.seed_values(measure, baseline_cell(Cell(choice.best, model, budget)))
    level = f" of {number(values.mean())}" if len(values) else ""
    baseline = baseline_name(tables, [measure.task])
    return f"{best}; difference to {baseline}{level}: {with_p(choice.to_scratch)}"
