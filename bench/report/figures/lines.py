"""Base of figures with a line per strategy along a numbered axis: labels, layers, planted copies."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from typing_extensions import override

from bench.analysis.compare import grid
from bench.analysis.error_model import mean_of
from bench.analysis.format import number, series_label
from bench.analysis.frames import BASELINE, Condition, MeasureSeries, Tables
from bench.analysis.stats import Interval
from bench.errors import ConfigError
from bench.report.figures.base import Figure
from bench.report.figures.style import GREY, blank, draw_lines, is_near, legend, looks, wrapped


class LineFigure(Figure):
    """Draw a panel per series of measures, and per model if models are not averaged."""

    nothing: ClassVar[str]
    xlabel: ClassVar[str]
    ylabel: ClassVar[str] = ""  # if the titles do not state it
    by_model: ClassVar[bool]  # False: at the headline's model and data budget

    @dataclass(frozen=True)
    class Options:
        """The tasks to draw; null draws every task that has such measures."""

        tasks: list[str] | None = None

    @abstractmethod
    def find(self, tables: Tables) -> list[MeasureSeries]:
        """Return all series that the figure could draw."""

    @abstractmethod
    def scale(self, axes: Axes, xs: Sequence[int]) -> list[float]:
        """Set up the horizontal axis for `xs`, and return their coordinates on it."""

    def moved(self, place: float, share: float) -> float:
        """Return a coordinate moved sideways by a share (-0.5 to 0.5) of the distance between strategies."""
        return place + 0.15 * share

    def series(self, tables: Tables) -> list[MeasureSeries]:
        """Return the series to draw.

        Raises:
            ConfigError: a task has no such measures.
        """
        found, tasks = self.find(tables), self.options.tasks
        lost = sorted(set(tasks or ()) - {series.task for series in found})
        if lost:
            known = ", ".join(dict.fromkeys(series.task for series in found)) or "none"
            raise ConfigError(f"figure: nothing to draw for tasks={lost}; choose from: {known}")
        return [series for series in found if tasks is None or series.task in tasks]

    @override
    def applies(self, tables: Tables) -> bool:
        return bool(self.series(tables))

    def models(self, tables: Tables) -> Sequence[str | None]:
        """Return the models that have their own panels; None: the headline's model."""
        return tables.models if self.by_model else [None]

    @override
    def draw(self, tables: Tables) -> Canvas:
        """Draw means over seeds with their intervals; the baseline is dashed with a band, chance dotted."""
        series_by_model = ((series, model) for series in self.series(tables) for model in self.models(tables))
        places = [(measured(tables, *place), place[1]) for place in series_by_model]
        if not places:
            return blank(self.nothing)
        canvas, flat = wrapped(len(places))
        for axes, (series, model) in zip(flat, places, strict=True):
            self._panel(axes, tables, series, model)
        canvas.supxlabel(self.xlabel, fontsize=8)
        canvas.supylabel(self.ylabel, fontsize=8)
        legend(canvas, tables, {series.task for series, _ in places})
        return canvas

    def _panel(self, axes: Axes, tables: Tables, series: MeasureSeries, model: str | None) -> None:
        places = self.scale(axes, series.xs)
        _band(axes, places, spreads(tables, series, Condition(BASELINE, ""), model))
        style = looks(tables)
        shares = {condition: (i + 0.5) / len(style) - 0.5 for i, condition in enumerate(style)}
        draw_lines(
            axes,
            [
                (
                    [self.moved(place, shares[condition]) for place in places],
                    spreads(tables, series, condition, model),
                    look,
                )
                for condition, look in style.items()
            ],
        )
        lines = [series_label(tables, series.measures[0], series.name)]
        lines += [f"model {model}"] if model is not None and len(tables.models) > 1 else []
        axes.set_title("\n".join([*lines, *_chance(axes, tables, series, places)]))


def spreads(
    tables: Tables, series: MeasureSeries, condition: Condition, model: str | None = None
) -> list[Interval | None]:
    """Return a strategy's mean at each number, with a model or at the headline's place."""
    cells = [cell if model is None else cell._replace(model=model) for cell in grid(tables, condition)]
    return [mean_of(tables, measure, cells) for measure in series.measures]


def measured(tables: Tables, series: MeasureSeries, model: str | None) -> MeasureSeries:
    """Return the points of a series that exist with a model: a small model has fewer layers."""
    found = zip(*(spreads(tables, series, condition, model) for condition in tables.conditions), strict=True)
    points = zip(series.points, found, strict=True)
    return series._replace(points=tuple(point for point, own in points if any(own)))


def _band(axes: Axes, places: Sequence[float], found: Sequence[Interval | None]) -> None:
    nan = math.nan
    means = [nan if spread is None else spread.mean for spread in found]
    low = [nan if spread is None or spread.low is None else spread.low for spread in found]
    high = [nan if spread is None or spread.high is None else spread.high for spread in found]
    axes.plot(places, means, color=GREY, linestyle="--", linewidth=1)
    axes.fill_between(places, low, high, color=GREY, alpha=0.15, linewidth=0)


def _chance(axes: Axes, tables: Tables, series: MeasureSeries, places: Sequence[float]) -> list[str]:
    """Draw the chance level at each number; if it is off scale, return a line for the title instead."""
    levels = [chance[0] if (chance := tables.measures[m].chance) else math.nan for m in series.measures]
    known = [value for value in levels if not math.isnan(value)]
    if known and not all(is_near(axes, value) for value in known):
        return [
            f"chance {' to '.join(dict.fromkeys(number(v) for v in (min(known), max(known))))}, off scale"
        ]
    axes.plot(places, levels, color=GREY, linestyle=":", linewidth=1)
    return []
