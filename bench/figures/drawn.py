"""Figures of a study, drawn: name, title, caption and bytes of each, as the report shows them."""

import base64
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.analysis.table import Tables
from bench.build import build
from bench.errors import ConfigError, DataError, in_brief
from bench.figures.base import Figure, render

_MOST_WORKERS = 4
_shared: list[Tables] = []  # of a worker: the study that it draws


@dataclass(frozen=True)
class Drawn:
    """A figure as it goes into the page; `images` by suffix: svg, png, pdf."""

    name: str
    title: str
    caption: str
    images: Mapping[str, bytes]

    @property
    def data_uri(self) -> str:
        """The SVG, for an `img` that needs no file beside the page."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.images['svg']).decode()}"


Result = Drawn | str | None  # a figure, the warning that stands for it, or nothing where it does not apply
Found = tuple[list[Drawn], list[str]]


@contextmanager
def drawing(nodes: Mapping[str, Any], tables: Tables) -> Iterator[Callable[[], Found]]:
    """Draw the figures that apply to the study beside this process, where that can be.

    Args:
        nodes: a `_target_` node per figure, by name.
        tables: the study.

    Yields:
        What waits for the figures, and gives them with a warning for each whose data is damaged.

    Raises:
        ConfigError: a figure that cannot be built, or whose name is no file name.
    """
    figures: dict[str, Figure] = {}
    for name, node in nodes.items():
        if not name.isidentifier():
            raise ConfigError(f"figure.{name}: a figure's name is a file name; use letters, digits and '_'")
        figures[name] = build(node, Figure, f"figure.{name}")  # type: ignore[type-abstract]
    workers = min(_MOST_WORKERS, (os.cpu_count() or 1) - 1, len(figures))
    if workers < 1 or threading.active_count() > 1:  # a lock of another thread would stay locked in a fork
        yield lambda: _sorted(_draw(name, figure, tables) for name, figure in figures.items())
    else:
        with ProcessPoolExecutor(workers, initializer=_share, initargs=(tables,)) as pool:
            futures = {name: pool.submit(_draw, name, figure) for name, figure in figures.items()}
            yield lambda: _sorted(_awaited(figures, tables, futures))


def _awaited(
    figures: dict[str, Figure], tables: Tables, futures: Mapping[str, Future[Result]]
) -> list[Result]:
    """What workers draw; this process draws, from the end, what none has begun."""
    own = {name: _draw(name, figures[name], tables) for name in reversed(figures) if futures[name].cancel()}
    return [own[name] if name in own else future.result() for name, future in futures.items()]


def _sorted(results: Iterable[Result]) -> Found:
    found = list(results)
    return [d for d in found if isinstance(d, Drawn)], [w for w in found if isinstance(w, str)]


def _share(tables: Tables) -> None:
    """By name: where workers are not forked, a list's own method would fill a copy of it."""
    _shared.append(tables)


def _draw(name: str, figure: Figure, tables: Tables | None = None) -> Result:
    tables = tables or _shared[0]
    try:
        if not figure.applies(tables):
            return None
        return Drawn(name, figure.title, figure.caption(tables), render(partial(figure.draw, tables), name))
    except DataError as error:
        return f"Figure {name} left out: {in_brief(error)}"
