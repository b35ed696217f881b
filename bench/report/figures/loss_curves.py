"""Validation loss against tokens: a panel per strategy, since losses of objectives are not comparable."""

from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from typing_extensions import override

from bench.analysis.format import with_seeds
from bench.analysis.frames import Cell, Condition, Tables
from bench.analysis.stats import interval
from bench.report.figures.base import Figure
from bench.report.figures.style import (
    GREY,
    Stroke,
    blank,
    bundles,
    draw_strokes,
    is_crowded,
    lost_note,
    place_legend,
    wrapped,
)

_NOTHING = "No finished run has a validation loss: nothing to draw."
_BUNDLED = " All variants of a strategy are in one panel."
_MOST_RUNS = 400  # drawn one by one
_DASHES: list[Any] = ["-", "--", ":", "-."]

_LIGHTEST = 0.6  # of the colour map

Curve = dict[int, float]  # validation loss in nats by tokens


class LossCurves(Figure):
    """Draw how each strategy's own loss falls: seeds as thin lines, their mean as a thick one."""

    title = "Validation loss during pretraining"

    @dataclass(frozen=True)
    class Options:
        """The strategies to draw; null draws all that have a curve."""

        strategies: list[str] | None = None

    def _curves(self, tables: Tables) -> dict[Cell, dict[str, Curve]]:
        wanted = self.options.strategies
        curves = validation_curves(tables)
        return {
            cell: runs for cell, runs in curves.items() if wanted is None or cell.condition.strategy in wanted
        }

    @override
    def draw(self, tables: Tables) -> Canvas:
        """Draw one panel per strategy; colour is the data budget, line style the model."""
        curves = self._curves(tables)
        if not curves:
            return blank(_NOTHING)
        conditions = [
            condition
            for condition in tables.conditions
            if any(cell.condition == condition for cell in curves)
        ]
        panels = bundles(tables, conditions)
        canvas, grid = wrapped(len(panels), height_in=1.8)
        for axes, (title, own) in zip(grid, panels.items(), strict=True):
            shown = {cell: list(runs.values()) for cell, runs in curves.items() if cell.condition in own}
            _draw_curves(axes, tables, shown, seeds=shows_seeds(curves))
            _finish(axes, title)
        canvas.supxlabel("tokens processed", fontsize=8)
        canvas.supylabel("validation loss (nats per target)", fontsize=8)
        place_legend(canvas, _handles(tables), most_columns=5)
        return canvas

    @override
    def caption(self, tables: Tables) -> str:
        curves = self._curves(tables)
        if not curves:
            return _NOTHING
        conditions = [
            condition
            for condition in tables.conditions
            if any(cell.condition == condition for cell in curves)
        ]
        findings = "; ".join(_finding(tables, condition, curves) for condition in conditions)
        return (
            "Validation loss of each strategy's own objective, in nats per target (for most objectives, a "
            "predicted token). It is not comparable across panels. "
            f"{'Thin lines: single seeds; thick: their mean' if shows_seeds(curves) else 'Means over seeds'}."
            f"{_BUNDLED if is_crowded(tables) else ''}{lost_note(tables)} "
            f"At the end, in each strategy's largest cell: {findings}."
        )


def validation_curves(tables: Tables) -> dict[Cell, dict[str, Curve]]:
    """Return the validation losses of every finished run that has any, by cell and run."""
    curves: dict[Cell, dict[str, Curve]] = {}
    points = tables.curves.dropna(subset="validation_loss_nats")
    for (cell, run_id), own in points.groupby(["cell", "run_id"], sort=False):
        tokens, losses = own["forward_tokens"].tolist(), own["validation_loss_nats"].tolist()
        curves.setdefault(tables.cells[cell], {})[run_id] = dict(zip(tokens, losses, strict=True))
    return curves


def shows_seeds(curves: dict[Cell, dict[str, Curve]]) -> bool:
    """Return whether there are few enough runs to draw each."""
    return sum(len(runs) for runs in curves.values()) <= _MOST_RUNS


def mean_curve(runs: list[Curve]) -> Curve:
    """Return the mean over runs at the steps that all of them measured."""
    shared = sorted(set.intersection(*(set(run) for run in runs)))
    return {tokens: sum(run[tokens] for run in runs) / len(runs) for tokens in shared}


def _draw_curves(axes: Axes, tables: Tables, curves: dict[Cell, list[Curve]], *, seeds: bool) -> None:
    colours = {budget: _colour(tables, budget) for budget in (None, *tables.budgets)}
    lines: list[Stroke] = []
    for cell, runs in curves.items():
        colour, dash = colours[cell.budget], _dash(tables, cell.model)
        lines += [Stroke([*run.items()], to_rgba(colour, 0.45), dash, 0.5) for run in runs if seeds]
        mean = mean_curve(runs)
        lines.append(Stroke([*mean.items()], colour, dash, 1.6))
        if len(mean) == 1:  # a branch of a trunk shares the trunk's steps and adds its own end
            axes.plot([*mean], [*mean.values()], ".", color=colour)
    draw_strokes(axes, lines)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlim(left=0)


def _colour(tables: Tables, budget: str | None) -> Any:
    """Return a colour that is darker for a larger data budget."""
    rank = 0 if budget is None else tables.budgets.index(budget)
    n_larger = len(tables.budgets) - 1 - rank
    return mpl.colormaps["viridis"](_LIGHTEST * n_larger / max(len(tables.budgets) - 1, 1))


def _dash(tables: Tables, model: str) -> Any:
    return _DASHES[tables.models.index(model) % len(_DASHES)]


def _handles(tables: Tables) -> list[Line2D]:
    budgets = [
        Line2D([], [], color=_colour(tables, name), linewidth=1.6, label=f"data {name}")
        for name in tables.budgets
    ]
    models = [
        Line2D([], [], color=GREY, linestyle=_dash(tables, name), label=f"model {name}")
        for name in tables.models
    ]
    return budgets + models


def _finding(tables: Tables, condition: Condition, curves: dict[Cell, dict[str, Curve]]) -> str:
    cell = [cell for cell in tables.cells if cell.condition == condition and cell in curves][-1]
    ends = [run[max(run)] for run in curves[cell].values()]
    place = f"{cell.model}, {cell.budget}" if cell.budget else cell.model
    return f"{condition.label} ({place}) {with_seeds(interval(ends))}"
