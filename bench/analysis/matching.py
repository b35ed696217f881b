"""Two studies' tables -> cells that both have, what differs between them, what only one has. Pure functions.

Cells are matched by strategy, variant, model, data budget and measure. Where two or more seeds are in both,
differences are paired by seed, as everywhere; else Welch's t test (1947) for samples of unequal variance.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy

from bench.analysis.compare import Seeds
from bench.analysis.rows import scores_of
from bench.analysis.stats import LEVEL, Interval, holm, interval, paired, subtract
from bench.analysis.table import Cell, Measure, Tables
from bench.analysis.text import flatten
from bench.records import RunRecord

Test = Literal["paired", "Welch", "one seed"]


@dataclass(frozen=True)
class Matched:
    """One cell on one measure, in both studies; the difference is right - left."""

    measure: Measure
    cell: Cell
    left: Interval
    right: Interval
    difference: Interval
    test: Test
    p: float | None  # None where there is nothing to test: one seed, or no spread at all
    p_holm: float | None = None  # corrected over all rows that were matched together
    is_equal: bool = False  # the same seeds with the same values


class Changed(NamedTuple):
    """A setting of matched runs that differs; None: one side does not have it."""

    key: str
    left: str | None
    right: str | None
    n_runs: int


class Twins(NamedTuple):
    """Runs that both sides have under one id, so with the same settings."""

    equal: tuple[str, ...]  # in all scores that both have of tasks with the same settings
    unequal: tuple[tuple[str, float], ...]  # and the largest difference of a score


def measures(left: Tables, right: Tables, *, every: bool) -> list[Measure]:
    """The headline measures of either side, or all; in the left's order, then the right's."""
    sides = [tables.measures if every else tables.headlines for tables in (left, right)]
    return list(dict.fromkeys(measure for side in sides for measure in side))


def cells(left: Tables, right: Tables) -> list[Cell]:
    """The cells of both, in the left's order."""
    return [cell for cell in left.cells if cell in right.runs_of]


def matches(left: Tables, right: Tables, wanted: Iterable[Measure]) -> list[Matched]:
    """Every cell and measure with a value on both sides, Holm-corrected over all of them."""
    places = [(measure, cell) for measure in wanted for cell in cells(left, right)]
    values = [tuple(_values(tables, *place) for tables in (left, right)) for place in places]
    pairs = zip(places, values, strict=True)
    found = [_match(*place, own, other) for place, (own, other) in pairs if own and other]
    tested = [i for i, row in enumerate(found) if row.p is not None]
    p_holm = dict(zip(tested, holm([p for row in found if (p := row.p) is not None]), strict=True))
    return [replace(row, p_holm=p_holm.get(i)) for i, row in enumerate(found)]


def welch(left: Seeds, right: Seeds) -> tuple[Interval, float | None]:
    """Mean of right - mean of left with Welch's interval, and its p; each side has two values or more.

    Two sides without any spread have nothing to test: no p.
    """
    own, other = (np.array(list(side.values())) for side in (left, right))
    gap, n = float(other.mean() - own.mean()), min(own.size, other.size)
    if np.ptp(own) == np.ptp(other) == 0:
        return Interval(gap, gap, gap, n), None
    found = scipy.stats.ttest_ind(other, own, equal_var=False)
    bounds = found.confidence_interval(LEVEL)
    return Interval(gap, float(bounds.low), float(bounds.high), n), float(found.pvalue)


def run_pairs(left: Tables, right: Tables) -> list[tuple[RunRecord, RunRecord]]:
    """Runs of the same cell and seed; of a cell that shares no seed, the first run of each side."""
    found = []
    for cell in cells(left, right):
        own, other = ({run.seed: run for run in reversed(t.runs_of[cell])} for t in (left, right))
        seeds = sorted(own.keys() & other.keys())
        lone = [(left.runs_of[cell][0], right.runs_of[cell][0])]
        found += [(own[seed], other[seed]) for seed in seeds] or lone
    return found


def changes(left: Tables, right: Tables) -> list[Changed]:
    """What differs in the settings, tasks, data and software of matched runs, by key."""
    counts: Counter[tuple[str, str | None, str | None]] = Counter()
    for own, other in run_pairs(left, right):
        shared = left.results.get(own.run_id, {}).keys() & right.results.get(other.run_id, {}).keys()
        a, b = _settings(left, own, shared), _settings(right, other, shared)
        counts.update(
            (key, a.get(key), b.get(key)) for key in a.keys() | b.keys() if a.get(key) != b.get(key)
        )
    found = [Changed(*change, n) for change, n in counts.items()]
    return sorted(found, key=lambda change: (change.key, change.left or "", change.right or ""))


def twins(left: Tables, right: Tables) -> Twins:
    """Runs with one id on both sides, by whether their scores are equal, bit by bit.

    A task that was set otherwise may score otherwise: it says nothing here. A run without a score to go by
    is in neither group.
    """
    own, other = ({run.run_id: run for run in tables.records} for tables in (left, right))
    equal: list[str] = []
    unequal: list[tuple[str, float]] = []
    for run_id in sorted(own.keys() & other.keys()):
        same = _same_tasks(left, right, run_id)
        a, b = _scores(left, own[run_id], same), _scores(right, other[run_id], same)
        gap = max((abs(a[measure] - b[measure]) for measure in a.keys() & b.keys()), default=None)
        if gap:
            unequal.append((run_id, gap))
        elif gap is not None:
            equal.append(run_id)
    return Twins(tuple(equal), tuple(unequal))


def _match(measure: Measure, cell: Cell, left: Seeds, right: Seeds) -> Matched:
    own, other = interval(list(left.values())), interval(list(right.values()))
    assert own is not None
    assert other is not None
    gap = paired(subtract(right, left))
    test: Test = "paired"
    p: float | None
    if gap is not None and gap.interval.n > 1:
        difference, p = gap.interval, gap.p_t
    elif min(own.n, other.n) > 1:
        test, (difference, p) = "Welch", welch(left, right)
    else:
        test, p = "one seed", None
        difference = Interval(other.mean - own.mean, None, None, 1) if gap is None else gap.interval
    return Matched(measure, cell, own, other, difference, test, p, is_equal=dict(left) == dict(right))


def _values(tables: Tables, measure: Measure, cell: Cell) -> Seeds:
    return tables.values.get(measure, {}).get(cell, {})


def _same_tasks(left: Tables, right: Tables, run_id: str) -> set[str]:
    own, other = (tables.results.get(run_id, {}) for tables in (left, right))
    return {task for task in own.keys() & other.keys() if own[task].config == other[task].config}


def _scores(tables: Tables, run: RunRecord, tasks: set[str]) -> Mapping[Measure, float]:
    found = (score for score in scores_of(run, tables.results) if score.task in tasks)
    return {Measure.of(score): score.value for score in found}


def _settings(tables: Tables, run: RunRecord, tasks: Iterable[str]) -> dict[str, str]:
    """What a run was, flat; its seed apart, which is matched or cannot be."""
    results = tables.results.get(run.run_id, {})
    tree: dict[str, Any] = {key: value for key, value in run.config.items() if key != "seed"}
    tree |= {"task": {task: results[task].config for task in tasks}}
    return flatten(tree | {"data": run.data, "environment": run.environment})
