"""What a figure is, and the style that all share. tables -> matplotlib figure, caption -> SVG and PNG.

Colours: Okabe and Ito (2008), safe for colour-blind readers; marker and line style repeat the distinction.
Same tables, same bytes: no dates, no random ids, and the style is set only while drawing.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, ClassVar, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from bench.analysis.compare import is_compared
from bench.analysis.format import measure_label, number
from bench.analysis.frames import Condition, Measure, Tables
from bench.analysis.stats import Interval
from bench.errors import ConfigError

WIDTH_IN = 7.2  # a page's text width
N_COLUMNS = 3  # panels side by side
LONG_TITLE = 34  # characters; a longer one would reach into the next panel
MOST_LOOKS = 16  # arms that marker, colour and dash together tell apart
DPI = 200  # of the PNG
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
    "text.parse_math": False,  # a name with a dollar sign is a name
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


class Look(NamedTuple):
    """How an arm is drawn, in every figure of a study; without a marker: as one thin line of a bundle."""

    colour: str
    marker: str
    dash: Any


class Figure(ABC):
    """Base of all figures; subclasses carry their own frozen `Options`, filled from their YAML."""

    Options: ClassVar[type[Any]]
    title: ClassVar[str]

    def applies(self, tables: Tables) -> bool:
        """Does the study measure what the figure shows? A report leaves it out otherwise."""
        return True

    @abstractmethod
    def draw(self, tables: Tables) -> Canvas:
        """Draw; a missing cell is a gap, a failed run is never a number."""

    @abstractmethod
    def caption(self, tables: Tables) -> str:
        """What is shown, and the finding, computed from the data with n and an interval."""


class TaskFigure(Figure):
    """Base of figures with a panel per task."""

    @dataclass(frozen=True)
    class Options:
        """Which panels; null: every task, each with its first metric."""

        tasks: list[str] | None = None
        metric: str | None = None

    def __init__(self, options: Options) -> None:
        self.options = options

    def measures(self, tables: Tables) -> list[Measure]:
        """The measures to draw.

        Raises:
            ConfigError: a task or metric that no finished run has.
        """
        tasks, metric = self.options.tasks, self.options.metric
        found = [m for m in tables.measures if m.metric == metric] if metric else tables.headlines
        wanted = [measure for measure in found if tasks is None or measure.task in tasks]
        lost = sorted(set(tasks or ()) - {measure.task for measure in wanted})
        if lost or (metric and not wanted):
            known = ", ".join(f"{m.task}/{m.metric}" for m in tables.measures)
            raise ConfigError(f"figure: no scores for tasks={lost} metric={metric}; there are: {known}")
        return wanted


def render(draw: Callable[[], Canvas], name: str) -> dict[str, bytes]:
    """What `draw` draws as `svg`, `png` and `pdf` bytes, the same for the same tables.

    The SVG says which matplotlib drew it: another version may set the same data otherwise.
    """
    images: dict[str, bytes] = {}
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        canvas = draw()
        _settle_labels(canvas)
        if layout := canvas.get_layout_engine():
            layout.execute(canvas)
        canvas.set_layout_engine("none")  # laid out once, so that all formats agree
        dpi = canvas.get_dpi()
        for suffix, write in _WRITERS.items():
            canvas.set_dpi(dpi)  # writers leave their own
            file = io.BytesIO()
            write(canvas, file)
            images[suffix] = file.getvalue()
    return images


def _settle_labels(canvas: Canvas) -> None:
    """Labels that say nothing stay where they are: their place would be sought anew at every drawing."""
    for axes in canvas.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if not axis.get_label_text():
                axis.set_label_coords(0, 0)


def _svg(canvas: Canvas, file: IO[bytes]) -> None:
    FigureCanvasSVG(canvas).print_svg(file, metadata={"Date": None})


def _pdf(canvas: Canvas, file: IO[bytes]) -> None:
    undated = dict.fromkeys(("Creator", "Producer", "CreationDate"))
    FigureCanvasPdf(canvas).print_pdf(file, metadata=undated)


def _png(canvas: Canvas, file: IO[bytes]) -> None:
    canvas.set_dpi(DPI)
    FigureCanvasAgg(canvas).print_png(file, metadata={"Software": None})


# Straight to each backend: `savefig` draws everything once more, in vain, for a layout that is done.
_WRITERS: dict[str, Callable[[Canvas, IO[bytes]], None]] = {"svg": _svg, "pdf": _pdf, "png": _png}


def looks(tables: Tables) -> dict[Condition, Look]:
    """A look for every pretrained arm, by sorted name; of many arms, one for all variants of a strategy."""
    arms = [arm for arm in tables.conditions if is_compared(arm)]
    if is_crowded(tables):
        strategies = list(dict.fromkeys(arm.strategy for arm in arms))
        ranks = [strategies.index(arm.strategy) for arm in arms]
        return {
            arm: Look(COLOURS[i % len(COLOURS)], "", _DASHES[i % len(_DASHES)])
            for arm, i in zip(arms, ranks, strict=True)
        }
    return {
        arm: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], _DASHES[i % len(_DASHES)])
        for i, arm in enumerate(arms)
    }


def is_crowded(tables: Tables) -> bool:
    """Are there more arms than a reader can tell apart, and strategies with variants to draw them by?"""
    arms = [arm for arm in tables.conditions if is_compared(arm)]
    return len(arms) > MOST_LOOKS and len({arm.strategy for arm in arms}) < len(arms)


def bundles(tables: Tables, arms: Sequence[Condition]) -> dict[str, list[Condition]]:
    """Arms by the title of their panel: each its own; of too many, all variants of a strategy together."""
    found: dict[str, list[Condition]] = {}
    for arm in arms:
        found.setdefault(arm.strategy if is_crowded(tables) else arm.label, []).append(arm)
    return found


def panels(rows: int, columns: int, height_in: float, *, sharey: bool) -> tuple[Canvas, list[list[Axes]]]:
    """A grid of panels of a page's width; `sharey` within a row."""
    canvas = Canvas(figsize=(WIDTH_IN, rows * height_in + 0.6), layout="constrained")
    grid = canvas.subplots(rows, columns, squeeze=False, sharey="row" if sharey else False)
    return canvas, [list(row) for row in grid]


def wrapped(n: int, height_in: float = 1.9) -> tuple[Canvas, list[Axes]]:
    """`n` panels in reading order, `N_COLUMNS` side by side; unused places stay empty."""
    columns = min(n, N_COLUMNS)
    canvas, grid = panels(-(-n // columns), columns, height_in, sharey=False)
    flat = [axes for row in grid for axes in row]
    for axes in flat[n:]:
        axes.set_axis_off()
    return canvas, flat[:n]


def n_columns(axes: Axes) -> int:
    """How many panels stand side by side where these axes are one."""
    place = axes.get_subplotspec()
    return place.get_gridspec().ncols if place else 1


def blank(message: str) -> Canvas:
    """A figure that says why there is nothing to see."""
    canvas = Canvas(figsize=(WIDTH_IN, 1.2))
    canvas.text(0.5, 0.5, message, ha="center", va="center", color=GREY)
    return canvas


def references(axes: Axes, scratch: Interval | None) -> None:
    """Scratch as a line, with its interval as a band."""
    if scratch is not None:
        axes.axhline(scratch.mean, color=GREY, linestyle="--", linewidth=1)
        if scratch.low is not None and scratch.high is not None:
            axes.axhspan(scratch.low, scratch.high, color=GREY, alpha=0.15, linewidth=0)


def finish(axes: Axes, tables: Tables, measure: Measure, second_line: str = "") -> None:
    """Title and chance line; a chance that would squeeze all else into a corner is said in the title."""
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
    """Can a level be drawn without squeezing all else into a corner?"""
    low, high = axes.get_ylim()
    return max(low - level, level - high) <= max(1.5 * (high - low), 0.8 * abs(high))


def crowd_note(tables: Tables) -> str:
    """What a line is where there are too many arms for a look each; empty otherwise."""
    if not is_crowded(tables):
        return ""
    return f" {len(looks(tables))} lines: one per variant, without intervals, all of a strategy alike."


def lost_note(tables: Tables) -> str:
    """A sentence on the runs that have no numbers; empty if all finished."""
    lost = [status for status in tables.runs["status"] if status != "finished"]
    counts = ", ".join(f"{lost.count(status)} {status}" for status in sorted(set(lost)))
    return f" Runs without a number: {counts} (see the run table)." if lost else ""


def crosses(axes: Axes, positions: Sequence[float], colour: str) -> None:
    """A cross at the foot of the panel where all runs of a cell were lost."""
    if not positions:
        return
    foot = [0.03] * len(positions)
    transform = axes.get_xaxis_transform()
    axes.plot(positions, foot, "x", color=colour, transform=transform, clip_on=False)


def left_out_note(measures: Sequence[Measure], drawn: Sequence[Measure]) -> str:
    """A sentence on the tasks that have no panel; empty if all have one."""
    missing = list(dict.fromkeys(measure.task for measure in measures if measure not in drawn))
    if not missing:
        return ""
    shown = (
        f" Drawn: the {len(set(drawn))} tasks whose cells differ most for their spread over seeds (F ratio)"
    )
    return f"{shown}; left out: {', '.join(missing)}."
