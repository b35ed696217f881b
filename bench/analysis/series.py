"""Measures of one task that differ in a number alone, to draw a line: label counts, layers, copies."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from bench.analysis.table import Measure, Tables


class Series(NamedTuple):
    """Measures in order of their number x."""

    task: str
    name: str  # of the metric, without the number
    points: tuple[tuple[int, Measure], ...]

    @property
    def xs(self) -> list[int]:
        """The numbers, ascending."""
        return [x for x, _ in self.points]

    @property
    def measures(self) -> list[Measure]:
        """In the order of `xs`."""
        return [measure for _, measure in self.points]


def label_series(tables: Tables) -> list[Series]:
    """Each task's headline metric by the number of labelled items, where there are several."""
    metrics = {measure.task: measure.metric for measure in tables.headlines}
    chosen = [measure for measure in tables.measures if metrics.get(measure.task) == measure.metric]
    found = (((m.task, m.metric), m.n_labels, m) for m in chosen if m.n_labels is not None)
    return [series for series in _series(found) if len(series.points) > 1]


def numbered_series(tables: Tables, pattern: str) -> list[Series]:
    """Measures whose metric is `pattern`: its first group is the name, its second the number.

    Of several label counts the largest is taken.
    """
    largest: dict[tuple[str, str], Measure] = {}
    for measure in tables.measures:
        same = largest.setdefault((measure.task, measure.metric), measure)
        if (measure.n_labels or 0) > (same.n_labels or 0):
            largest[measure.task, measure.metric] = measure
    matched = ((measure, re.fullmatch(pattern, measure.metric)) for measure in largest.values())
    return _series(((m.task, parts[1]), int(parts[2]), m) for m, parts in matched if parts is not None)


def _series(found: Iterable[tuple[tuple[str, str], int, Measure]]) -> list[Series]:
    groups: dict[tuple[str, str], dict[int, Measure]] = {}
    for key, x, measure in found:
        groups.setdefault(key, {})[x] = measure
    return [Series(task, name, tuple(sorted(points.items()))) for (task, name), points in groups.items()]
