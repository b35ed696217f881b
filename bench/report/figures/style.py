"""The style of all figures: colours, panels, lines, intervals, legends and notes for captions.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; marker and line style
repeat the distinction. `STYLE` is set only while a figure is drawn.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from bench.analysis.compare import is_compared
from bench.analysis.format import measure_label, number
from bench.analysis.frames import BASELINE, Condition, Measure, Tables
from bench.analysis.stats import LEVEL, Floats, Interval
from bench.analysis.untrained import baseline_name

WIDTH_IN = 7.2  # a page's text width
N_COLUMNS = 3  # panels side by side
LONG_TITLE = 34  # characters; a longer title would reach into the next panel
MOST_LOOKS = 16  # strategies that marker, colour and dash together tell apart
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "text.parse_math": False,  # names may contain dollar signs
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
    "path.simplify": False,
}
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
_DASHES = ["-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1))]
GREY = "#6b6b6b"
LONGEST_NAME = 60  # characters
WIDTH_CHARACTERS = 110  # of a page, at a legend's size
ROW_IN = 0.16


class Look(NamedTuple):
    """The colour, marker and line style of a strategy in every figure; without a marker, a thin line."""

    colour: str
    marker: str
    dash: Any


def looks(tables: Tables) -> dict[Condition, Look]:
    """Return a look for every pretrained strategy; where there are too many, its variants share one."""
    conditions = [condition for condition in tables.conditions if is_compared(condition)]
    if is_crowded(tables):
        strategies = list(dict.fromkeys(condition.strategy for condition in conditions))
        ranks = [strategies.index(condition.strategy) for condition in conditions]
        return {
            condition: Look(COLOURS[i % len(COLOURS)], "", _DASHES[i % len(_DASHES)])
            for condition, i in zip(conditions, ranks, strict=True)
        }
    return {
        condition: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], _DASHES[i % len(_DASHES)])
        for i, condition in enumerate(conditions)
    }


def is_crowded(tables: Tables) -> bool:
    """Return whether there are more strategies and variants than a reader can tell apart."""
    conditions = [condition for condition in tables.conditions if is_compared(condition)]
    return len(conditions) > MOST_LOOKS and len({condition.strategy for condition in conditions}) < len(
        conditions
    )


def bundles(tables: Tables, conditions: Sequence[Condition]) -> dict[str, list[Condition]]:
    """Return strategies by the title of their panel; where there are too many, variants share a panel."""
    found: dict[str, list[Condition]] = {}
    for condition in conditions:
        found.setdefault(condition.strategy if is_crowded(tables) else condition.label, []).append(condition)
    return found


def panels(rows: int, columns: int, height_in: float, *, sharey: bool) -> tuple[Canvas, list[list[Axes]]]:
    """Return a grid of panels of a page's width; `sharey` holds within a row."""
    canvas = Canvas(figsize=(WIDTH_IN, rows * height_in + 0.6), layout="constrained")
    grid = canvas.subplots(rows, columns, squeeze=False, sharey="row" if sharey else False)
    return canvas, [list(row) for row in grid]


def wrapped(n: int, height_in: float = 1.9) -> tuple[Canvas, list[Axes]]:
    """Return `n` panels in reading order, `N_COLUMNS` side by side; unused places stay empty."""
    columns = min(n, N_COLUMNS)
    canvas, grid = panels(-(-n // columns), columns, height_in, sharey=False)
    flat = [axes for row in grid for axes in row]
    for axes in flat[n:]:
        axes.set_axis_off()
    return canvas, flat[:n]


def n_columns(axes: Axes) -> int:
    """Return how many panels are side by side in the grid of these axes."""
    place = axes.get_subplotspec()
    return place.get_gridspec().ncols if place else 1


def blank(message: str) -> Canvas:
    """Return a figure that shows only a message."""
    canvas = Canvas(figsize=(WIDTH_IN, 1.2))
    canvas.text(0.5, 0.5, message, ha="center", va="center", color=GREY)
    return canvas


def baseline_label(tables: Tables, tasks: Iterable[str]) -> str:
    """Return the label of the line and band of the baseline without pretraining."""
    return f"{baseline_name(tables, tasks)} (band: {100 * LEVEL:.0f} %)"


def references(axes: Axes, scratch: Interval | None) -> None:
    """Draw the baseline without pretraining as a line, with its interval as a band."""
    if scratch is not None:
        axes.axhline(scratch.mean, color=GREY, linestyle="--", linewidth=1)
        if scratch.low is not None and scratch.high is not None:
            axes.axhspan(scratch.low, scratch.high, color=GREY, alpha=0.15, linewidth=0)


def finish(axes: Axes, tables: Tables, measure: Measure, second_line: str = "") -> None:
    """Set the title and draw the chance level; if it is off scale, the title states it."""
    label = measure_label(tables, measure)
    is_long = len(label) > LONG_TITLE * N_COLUMNS / max(n_columns(axes), N_COLUMNS)
    lines = [*(label.split(": ", 1) if is_long else [label]), second_line]
    for level in tables.measures[measure].chance[:1]:
        if is_near(axes, level):
            axes.axhline(level, color=GREY, linestyle=":", linewidth=1)
        else:
            lines.append(f"chance {number(level)}, off scale")
    axes.set_title("\n".join(line for line in lines if line))


def is_near(axes: Axes, level: float) -> bool:
    """Return whether a level can be drawn without making the rest too small."""
    low, high = axes.get_ylim()
    return max(low - level, level - high) <= max(1.5 * (high - low), 0.8 * abs(high))


def crowd_note(tables: Tables) -> str:
    """Return what a line is if variants share a look; empty otherwise."""
    if not is_crowded(tables):
        return ""
    n = len(looks(tables))
    return f" {n} lines: one per variant, without intervals; all variants of a strategy look alike."


def lost_note(tables: Tables) -> str:
    """Return a sentence on the runs that have no numbers; empty if all finished."""
    lost = [status for status in tables.runs["status"] if status != "finished"]
    counts = ", ".join(f"{lost.count(status)} {status}" for status in sorted(set(lost)))
    return f" Lost runs: {counts} (see the table of runs)." if lost else ""


def crosses(axes: Axes, positions: Sequence[float], colour: str) -> None:
    """Draw a cross at the bottom of the panel for each cell that lost all its runs."""
    if not positions:
        return
    foot = [0.03] * len(positions)
    transform = axes.get_xaxis_transform()
    axes.plot(positions, foot, "x", color=colour, transform=transform, clip_on=False)


class Stroke(NamedTuple):
    """A line through points (x, y)."""

    points: Floats | Sequence[tuple[float, float]]  # (n, 2)
    colour: Any
    dash: Any
    width: float  # in points


def draw_lines(axes: Axes, lines: Iterable[tuple[Sequence[float], Sequence[Interval | None], Look]]) -> None:
    """Draw strategies' means with their intervals; thin lines have no intervals."""
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
    """Draw lines, each with its look, as one artist: time grows with the number of artists."""
    if strokes:
        points, colours, dashes, widths = map(list, zip(*strokes, strict=True))
        lines = [np.asarray(line, dtype=np.float64) for line in points]
        drawn = LineCollection(lines, colors=colours, linestyles=dashes, linewidths=widths, zorder=2)
        axes.add_collection(drawn)
        axes.autoscale_view()


def draw_bars(
    axes: Axes, places: Sequence[float], spreads: Sequence[Interval | None], colours: Sequence[Any]
) -> None:
    """Draw intervals as bars, each with its colour, as one artist.

    Draw them before their points, which then set the limits of the axes for both.
    """
    bars = [
        ([(x, spread.low), (x, spread.high)], colour)
        for x, spread, colour in zip(places, spreads, colours, strict=True)
        if spread is not None and spread.low is not None and spread.high is not None
    ]
    if bars:
        lines, of_lines = zip(*bars, strict=True)
        axes.add_collection(LineCollection(lines, colors=of_lines, linewidths=0.9))


def legend(canvas: Canvas, tables: Tables, tasks: Iterable[str], *extra: Line2D) -> None:
    """Draw one legend for all panels, which show these tasks, above them."""
    named = {
        (condition.strategy if is_crowded(tables) else condition.label): look
        for condition, look in looks(tables).items()
    }
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=_cut(name))
        for name, look in named.items()
    ]
    if any(condition.strategy == BASELINE for condition in tables.conditions):
        handles.append(grey_line("--", baseline_label(tables, tasks)))
    handles += [grey_line(":", "chance"), *extra]
    place_legend(canvas, handles, most_columns=len(handles))


def place_legend(canvas: Canvas, handles: Sequence[Line2D], most_columns: int) -> None:
    """Draw a legend in as many columns as fit a page's width; make the figure taller if it has many rows."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(most_columns, WIDTH_CHARACTERS // (longest + 8)))
    n_rows = -(-len(handles) // columns)
    canvas.set_figheight(canvas.get_figheight() + ROW_IN * max(0, n_rows - 2))  # the margin fits two
    canvas.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=3)


def grey_line(dash: str, label: str) -> Line2D:
    """Return the entry of a reference line, which is thinner than a strategy's."""
    return Line2D([], [], color=GREY, linestyle=dash, linewidth=1, label=label)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def left_out_note(measures: Sequence[Measure], drawn: Sequence[Measure]) -> str:
    """Return a sentence on the tasks that have no panel; empty if all have one."""
    missing = list(dict.fromkeys(measure.task for measure in measures if measure not in drawn))
    if not missing:
        return ""
    n = len(set(drawn))
    shown = f" Drawn: the {n} tasks whose cells differ most relative to their spread over seeds (F ratio)"
    return f"{shown}; left out: {', '.join(missing)}."
