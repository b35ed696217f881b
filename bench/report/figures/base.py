"""The base of all figures, and how a study's figures are drawn: tables -> caption, SVG, PNG and PDF.

The same tables give the same bytes: files contain no dates and no random ids, and the style is set only while
a figure is drawn. If possible, several processes draw.
"""

import base64
import io
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import Value
from typing import IO, Any, ClassVar

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from bench.analysis.frames import Measure, Tables
from bench.config.build import build
from bench.config.supervision import end_with, supervisors
from bench.errors import ConfigError, DataError, in_brief
from bench.report.figures.style import STYLE

DPI = 200  # of the PNG
_MOST_WORKERS = 4
_shared: list["_Work"] = []  # the drawing jobs that this worker process shares


class Figure(ABC):
    """Base of all figures; subclasses carry their own frozen `Options`, filled from their YAML.

    A figure is a function of a study's frames (`bench.analysis.frames.Tables`) that draws on a matplotlib
    Figure made without pyplot. Example: the number of steps of every run, as `figure=[steps]`::

        class Steps(Figure):
            title = "Optimizer steps"

            @dataclass(frozen=True)
            class Options:
                log: bool = MISSING

            def draw(self, tables):
                canvas, [axes] = wrapped(1)  # bench.report.figures.style
                axes.plot(tables.runs["steps"], "o")
                axes.set_yscale("log" if self.options.log else "linear")
                return canvas

            def caption(self, tables):
                return f"Optimizer steps of {len(tables.runs)} runs."
    """

    Options: ClassVar[type[Any]]
    title: str

    def __init__(self, options: Any) -> None:
        self.options = options

    def applies(self, tables: Tables) -> bool:
        """Return whether the study measured what the figure shows; a report leaves it out otherwise."""
        return True

    @abstractmethod
    def draw(self, tables: Tables) -> Canvas:
        """Draw the figure; a missing cell is a gap, and a failed run is never a number."""

    @abstractmethod
    def caption(self, tables: Tables) -> str:
        """Return what is shown and what is found, computed from the data, with n and an interval."""


class TaskFigure(Figure):
    """Base of figures with one panel per task."""

    @dataclass(frozen=True)
    class Options:
        """The tasks and the metric to draw; null draws the first metric of every task."""

        tasks: list[str] | None = None
        metric: str | None = None

    def measures(self, tables: Tables) -> list[Measure]:
        """Return the measures to draw.

        Raises:
            ConfigError: no finished run has the task or metric.
        """
        tasks, metric = self.options.tasks, self.options.metric
        found = [m for m in tables.measures if m.metric == metric] if metric else tables.headlines
        wanted = [measure for measure in found if tasks is None or measure.task in tasks]
        lost = sorted(set(tasks or ()) - {measure.task for measure in wanted})
        if lost or (metric and not wanted):
            known = ", ".join(f"{m.task}/{m.metric}" for m in tables.measures)
            raise ConfigError(f"figure: no scores for tasks={lost} metric={metric}; choose from: {known}")
        return wanted


@dataclass(frozen=True)
class Drawn:
    """A figure on a page; `images` holds bytes by suffix: svg, png, pdf."""

    name: str
    title: str
    caption: str
    images: Mapping[str, bytes]

    @property
    def data_uri(self) -> str:
        """Return the SVG as a link for an `img` that needs no file beside the page."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.images['svg']).decode()}"


Result = Drawn | str | None  # a figure, a warning in its place, or None if it does not apply
Found = tuple[list[Drawn], list[str]]


@contextmanager
def drawing(nodes: Mapping[str, Any], tables: Tables) -> Iterator[Callable[[], Found]]:
    """Start to draw the figures that apply to a study, in other processes where possible.

    Args:
        nodes: a `_target_` node per figure, by name.
        tables: the study.

    Yields:
        A function that waits for the figures and returns them, with a warning for each whose data is damaged.

    Raises:
        ConfigError: a figure cannot be built, or its name is not a file name.
    """
    figures: dict[str, Figure] = {}
    for name, node in nodes.items():
        if not name.isidentifier():
            raise ConfigError(f"figure.{name}: a figure's name is a file name; use letters, digits and '_'")
        figures[name] = build(node, Figure, f"figure.{name}")  # type: ignore[type-abstract]
    work = _Work(figures, tables, Value("i", 0))
    workers = min(_MOST_WORKERS, (os.cpu_count() or 1) - 1, len(figures))
    if workers < 1 or threading.active_count() > 1:  # a lock held by another thread stays locked after a fork
        yield lambda: _sorted(work, [])
    else:
        with ProcessPoolExecutor(workers, initializer=_share, initargs=(work,)) as pool:
            futures = [pool.submit(_rest) for _ in range(workers)]
            yield lambda: _sorted(work, futures)


@dataclass(frozen=True)
class _Work:
    """The figures that several processes draw; `begun` counts those that have been started."""

    figures: Mapping[str, Figure]
    tables: Tables
    begun: Any

    def rest(self) -> dict[str, Result]:
        """Draw figures that no process has started, until none is left."""
        found: dict[str, Result] = {}
        while (name := self._next()) is not None:
            found[name] = _draw(name, self.figures[name], self.tables)
        return found

    def _next(self) -> str | None:
        with self.begun.get_lock():
            i = self.begun.value
            self.begun.value = i + 1
        return list(self.figures)[i] if i < len(self.figures) else None


def _sorted(work: _Work, others: Iterable[Future[dict[str, Result]]]) -> Found:
    """Draw with the others, and return all figures in their order."""
    found = work.rest()
    for other in others:
        found |= other.result()
    results = [found[name] for name in work.figures]
    return [d for d in results if isinstance(d, Drawn)], [w for w in results if isinstance(w, str)]


def _share(work: _Work) -> None:
    """Store the work in the global list of a worker process, which ends with the report's process."""
    end_with(supervisors())
    _shared.append(work)


def _rest() -> dict[str, Result]:
    return _shared[0].rest()


def _draw(name: str, figure: Figure, tables: Tables) -> Result:
    try:
        if not figure.applies(tables):
            return None
        return Drawn(name, figure.title, figure.caption(tables), render(partial(figure.draw, tables), name))
    except DataError as error:
        return f"Figure {name} left out: {in_brief(error)}"


def render(draw: Callable[[], Canvas], name: str) -> dict[str, bytes]:
    """Return what `draw` draws as `svg`, `png` and `pdf` bytes.

    Args:
        draw: returns the figure.
        name: seeds the ids inside the SVG.
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
            canvas.set_dpi(dpi)  # writers change it
            file = io.BytesIO()
            write(canvas, file)
            images[suffix] = file.getvalue()
    return images


def _settle_labels(canvas: Canvas) -> None:
    """Fix the place of empty labels, which each drawing would otherwise compute again."""
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


# Call each backend directly: `savefig` would draw everything once more for a layout that is already done.
_WRITERS: dict[str, Callable[[Canvas, IO[bytes]], None]] = {"svg": _svg, "pdf": _pdf, "png": _png}
