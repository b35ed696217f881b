"""Figures of a study, drawn: name, title, caption and bytes of each, as the report shows them."""

import base64
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import Value
from typing import Any

from bench.analysis.frames import Tables
from bench.config.build import build
from bench.errors import ConfigError, DataError, in_brief
from bench.report.figures.base import Figure, render

_MOST_WORKERS = 4
_shared: list["_Work"] = []  # of a worker: what it takes part in


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
    work = _Work(figures, tables, Value("i", 0))
    workers = min(_MOST_WORKERS, (os.cpu_count() or 1) - 1, len(figures))
    if workers < 1 or threading.active_count() > 1:  # a lock of another thread would stay locked in a fork
        yield lambda: _sorted(work, [])
    else:
        with ProcessPoolExecutor(workers, initializer=_share, initargs=(work,)) as pool:
            futures = [pool.submit(_rest) for _ in range(workers)]
            yield lambda: _sorted(work, futures)


@dataclass(frozen=True)
class _Work:
    """The figures that processes share out among them; `begun` counts, in all of them."""

    figures: Mapping[str, Figure]
    tables: Tables
    begun: Any

    def rest(self) -> dict[str, Result]:
        """Draw the next figure that no process has begun, until there is none."""
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
    """All figures in their order; this process helps to draw them."""
    found = work.rest()
    for other in others:
        found |= other.result()
    results = [found[name] for name in work.figures]
    return [d for d in results if isinstance(d, Drawn)], [w for w in results if isinstance(w, str)]


def _share(work: _Work) -> None:
    """By name: where workers are not forked, a list's own method would fill a copy of it."""
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
