"""Loss or error against training tokens: fits with bands, measured cells, and the held-out prediction."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from typing_extensions import override

from bench.analysis.error_model import mean_of
from bench.analysis.frames import Cell, Condition, Tables
from bench.analysis.scaling import Fit, HeldOut, half_width, held_out
from bench.analysis.scaling_data import Quantity, measured_cells, run_of
from bench.analysis.stats import Interval, interval
from bench.errors import ConfigError
from bench.report.figures.base import Figure
from bench.report.figures.style import GREY, LONG_TITLE, Look, blank, draw_bars, looks, place_legend, wrapped
from bench.report.tables.scaling import Row, check, exponent, fits

_NOTHING = "No strategy was trained for two different training lengths: nothing to draw."
_DASHES: list[Any] = ["-", "--", ":", "-."]


class Panel(NamedTuple):
    """Strategies that are comparable on a quantity."""

    rows: tuple[Row, ...]


class Scaling(Figure):
    """Draw how loss or error falls with training, with the scaling fit of each strategy."""

    title = "Scaling with training"

    @dataclass(frozen=True)
    class Options:
        """The tasks to draw; null draws all tasks and the validation loss."""

        tasks: list[str] | None = None

    def panels(self, tables: Tables) -> list[Panel]:
        """Return a panel per task, and per strategy for its loss.

        Raises:
            ConfigError: a task cannot be drawn.
        """
        found = [row for row in fits(tables) if _n_budgets(tables, row) > 1]
        tasks = self.options.tasks
        measures = dict.fromkeys(quantity.measure for quantity, *_ in found if quantity.measure)
        lost = sorted(set(tasks or ()) - {measure.task for measure in measures})
        if lost:
            known = ", ".join(measure.task for measure in measures) or "none"
            raise ConfigError(f"figure: nothing to draw for tasks={lost}; choose from: {known}")
        losses = [Panel((row,)) for row in found if row[0].measure is None and tasks is None]
        wanted = [measure for measure in measures if tasks is None or measure.task in tasks]
        return losses + [Panel(tuple(row for row in found if row[0].measure == m)) for m in wanted]

    @override
    def applies(self, tables: Tables) -> bool:
        return bool(self.panels(tables))

    @override
    def draw(self, tables: Tables) -> Canvas:
        """Draw the panels; colour is the strategy, line style the model."""
        found = self.panels(tables)
        if not found:
            return blank(_NOTHING)
        canvas, flat = wrapped(len(found))
        for axes, panel in zip(flat, found, strict=True):
            _panel(axes, tables, panel)
        canvas.supxlabel("training tokens D", fontsize=8)
        _legend(canvas, tables, {condition for panel in found for _, condition, _ in panel.rows})
        return canvas

    @override
    def caption(self, tables: Tables) -> str:
        rows = [row for panel in self.panels(tables) for row in panel.rows]
        if not rows:
            return _NOTHING
        fitted = [_finding(q, condition, result) for q, condition, result in rows if isinstance(result, Fit)]
        reasons = list(dict.fromkeys(result for *_, result in rows if isinstance(result, str)))
        refused = f" {len(rows) - len(fitted)} of {len(rows)} fits were not possible: {'; '.join(reasons)}."
        return (
            "Loss or error against training tokens (lower is better). Losses are comparable only within an "
            "objective. Points are means over seeds, and bars their 95 % t intervals. Lines are fits on data "
            "that is not repeated, with bands over seeds; thin lines join points without a fit. Hollow "
            "points: the largest budget as predicted by a fit without it."
            f"{refused if reasons else ''}" + (f" Fits: {'; '.join(fitted)}." if fitted else "")
        )


def _n_budgets(tables: Tables, row: Row) -> int:
    """Return the number of different training lengths."""
    cells = measured_cells(tables, row[0], row[1])
    return len({run_of(tables, cell)["forward_tokens"] for cell in cells})


def _panel(axes: Axes, tables: Tables, panel: Panel) -> None:
    style = looks(tables)
    for quantity, condition, result in panel.rows:
        for model in tables.models:
            _line(axes, tables, (quantity, condition, result), model, style[condition])
        if isinstance(result, Fit) and isinstance(held := held_out(result.seen), HeldOut):
            _hollow(axes, held, style[condition])
    quantity, condition, _ = panel.rows[0]
    lines = quantity.label.split(": ", 1) if len(quantity.label) > LONG_TITLE else [quantity.label]
    axes.set_title("\n".join([*lines, *([] if quantity.is_shared else [condition.label])]))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())


def _line(axes: Axes, tables: Tables, row: Row, model: str, look: Look) -> None:
    """Draw the measured cells of a model, and the fit with its band."""
    quantity, condition, result = row
    cells = [cell for cell in measured_cells(tables, quantity, condition) if cell.model == model]
    if not cells:
        return
    runs = [run_of(tables, cell) for cell in cells]
    tokens = [float(run["forward_tokens"]) for run in runs]
    spreads = [_spread(tables, quantity, cell) for cell in cells]
    means = [math.nan if spread is None else spread.mean for spread in spreads]
    dash = _DASHES[tables.models.index(model) % len(_DASHES)]
    joined: dict[str, Any] = {"linestyle": dash if isinstance(result, str) else "none", "linewidth": 0.8}
    draw_bars(axes, tokens, spreads, [look.colour] * len(tokens))
    axes.plot(tokens, means, color=look.colour, marker=look.marker, **joined)
    if isinstance(result, Fit):
        places = np.geomspace(min(tokens), result.seen.tokens.max(), 100)
        best, draws = result.curve(runs[0]["parameters"], places)
        axes.plot(places, best, color=look.colour, linestyle=dash)
        if len(draws):
            factor = np.exp(half_width(np.log(draws), len(result.seen.values)))
            band = best / factor, best * factor
            axes.fill_between(places, *band, color=look.colour, alpha=0.18, linewidth=0)


def _spread(tables: Tables, quantity: Quantity, cell: Cell) -> Interval | None:
    """Return the mean of a cell with its interval; a share is drawn as its distance to 1."""
    if quantity.measure is None:
        return interval(quantity.values.loc[tables.position[cell]].dropna())
    found = mean_of(tables, quantity.measure, [cell])
    if found is None or tables.measures[quantity.measure].sign < 0:
        return found
    low, high = (None if bound is None else 1 - bound for bound in (found.high, found.low))
    return Interval(1 - found.mean, low, high, found.n)


def _hollow(axes: Axes, held: HeldOut, look: Look) -> None:
    """Draw the held-out prediction with its band, slightly to the right of the measured point."""
    place = [held.tokens * 1.25]
    style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "linestyle": "none"}
    draw_bars(axes, place, [held.predicted], [look.colour])
    axes.plot(place, [held.predicted.mean], markerfacecolor="white", markersize=6, **style)


def _legend(canvas: Canvas, tables: Tables, drawn: set[Condition]) -> None:
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle="-", label=condition.label)
        for condition, look in looks(tables).items()
        if condition in drawn
    ]
    if len(tables.models) > 1:
        handles += [
            Line2D([], [], color=GREY, linestyle=_DASHES[i % len(_DASHES)], label=f"model {model}")
            for i, model in enumerate(tables.models)
        ]
    place_legend(canvas, handles, most_columns=5)


def _finding(quantity: Quantity, condition: Condition, result: Fit) -> str:
    names = [name for name in ("alpha", "beta", "R*") if result.exponent(name) is not None]
    exponents = ", ".join(f"{name} {exponent(result, name)}" for name in names)
    return f"{quantity.label}, {condition.label}: {exponents}; held-out check: {check(held_out(result.seen))}"
