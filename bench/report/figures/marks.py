"""Lines and bars of many arms or runs in a panel: one artist for all that can share it.

A large study has thousands of lines, and what a figure takes grows with its artists.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from bench.analysis.stats import Floats, Interval
from bench.report.figures.base import Look


class Stroke(NamedTuple):
    """A line through points (x, y)."""

    points: Floats | Sequence[tuple[float, float]]  # (n, 2)
    colour: Any
    dash: Any
    width: float  # in points


def draw_lines(axes: Axes, lines: Iterable[tuple[Sequence[float], Sequence[Interval | None], Look]]) -> None:
    """Arms' means at their places with their intervals; of bundles, the means alone."""
    thin: list[Stroke] = []
    for places, spreads, look in lines:
        means = [math.nan if spread is None else spread.mean for spread in spreads]
        if look.marker:
            draw_bars(axes, places, spreads, [look.colour] * len(places))
            axes.plot(places, means, marker=look.marker, color=look.colour, linestyle=look.dash)
        else:
            points = list(zip(places, means, strict=True))
            thin.append(Stroke(points, to_rgba(look.colour, 0.8), look.dash, 0.6))
    draw_strokes(axes, thin)


def draw_strokes(axes: Axes, strokes: Sequence[Stroke]) -> None:
    """Lines, each with its look: one artist however many they are."""
    if strokes:
        points, colours, dashes, widths = map(list, zip(*strokes, strict=True))
        lines = [np.asarray(line, dtype=np.float64) for line in points]
        drawn = LineCollection(lines, colors=colours, linestyles=dashes, linewidths=widths, zorder=2)
        axes.add_collection(drawn)
        axes.autoscale_view()


def draw_bars(
    axes: Axes, places: Sequence[float], spreads: Sequence[Interval | None], colours: Sequence[Any]
) -> None:
    """Intervals as bars, each of its colour: one artist however many they are.

    To be drawn before their points, which then set the limits of the axes for both.
    """
    bars = [
        ([(x, spread.low), (x, spread.high)], colour)
        for x, spread, colour in zip(places, spreads, colours, strict=True)
        if spread is not None and spread.low is not None and spread.high is not None
    ]
    if bars:
        lines, of_lines = zip(*bars, strict=True)
        axes.add_collection(LineCollection(lines, colors=of_lines, linewidths=0.9))
