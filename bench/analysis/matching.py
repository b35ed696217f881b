"""Two studies' tables -> the cells that both have, the differences between them, the cells of only one.

Pure functions. Cells are matched by strategy, variant, model, data budget and measure. One cell of two
studies is one design, so that equal seeds pair: if both have three or more seeds in common, differences are
taken by seed; otherwise Welch's t test (1947) compares samples of unequal variance. The error is that of
seeds alone, since two studies may have other items.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy

from bench.analysis.format import flatten
from bench.analysis.frames import Cell, Measure, Tables
from bench.analysis.inference import Estimate, superiority
from bench.analysis.stats import LEVEL, MIN_SEEDS, Interval, holm, interval
from bench.records import settings_agree

Test = Literal["paired", "Welch", "too few seeds"]


@dataclass(frozen=True)
class Matched:
    """One cell on one measure, in both studies; the difference is right - left."""

    measure: Measure
    cell: Cell
    left: Interval
    right: Interval
    difference: Interval
    test: Test
    p: float | None  # None where there is nothing to test: too few seeds, or no spread at all
    p_holm: float | None = None  # corrected over all rows that were matched together
    is_equal: bool = False  # the same seeds with the same values


class Changed(NamedTuple):
    """A setting of matched runs that differs; None if one side does not have it."""

    key: str
    left: str | None
    right: str | None
    n_runs: int


class Twins(NamedTuple):
    """Runs that both sides have under one id, and so with the same settings."""

    equal: tuple[str, ...]  # in all scores that both have of tasks with the same settings
    unequal: tuple[tuple[str, float], ...]  # and the largest difference of a score


def measures(left: Tables, right: Tables, *, every: bool) -> list[Measure]:
    """Return the headline measures of either side, or all measures, in the left's order first."""
    sides = [tables.measures if every else tables.headlines for tables in (left, right)]
    return list(dict.fromkeys(measure for side in sides for measure in side))


def cells(left: Tables, right: Tables) -> list[Cell]:
    """Return the cells of both, in the left's order."""
    return [cell for cell in left.cells if cell in right.position]


def matches(left: Tables, right: Tables, wanted: Iterable[Measure]) -> list[Matched]:
    """Return every cell and measure with a value on both sides, Holm-corrected over all of them."""
    places = [(measure, cell) for measure in wanted for cell in cells(left, right)]
    values = [tuple(tables.seed_values(*place) for tables in (left, right)) for place in places]
    pairs = zip(places, values, strict=True)
    found = [_match(*place, own, other) for place, (own, other) in pairs if len(own) and len(other)]
    tested = [i for i, row in enumerate(found) if row.p is not None]
    p_holm = dict(zip(tested, holm([p for row in found if (p := row.p) is not None]), strict=True))
    return [replace(row, p_holm=p_holm.get(i)) for i, row in enumerate(found)]


def welch(left: pd.Series, right: pd.Series) -> tuple[Interval, float | None]:
    """Return right mean - left mean with Welch's interval and its p value; each side has two or more values.

    The p value is None if neither side has any spread.
    """
    own, other = left.to_numpy(), right.to_numpy()
    gap, n = float(other.mean() - own.mean()), min(own.size, other.size)
    if np.ptp(own) == np.ptp(other) == 0:
        return Interval(gap, gap, gap, n), None
    found = scipy.stats.ttest_ind(other, own, equal_var=False)
    bounds = found.confidence_interval(LEVEL)
    return Interval(gap, float(bounds.low), float(bounds.high), n), float(found.pvalue)


def run_pairs(left: Tables, right: Tables) -> pd.DataFrame:
    """Return runs of the same cell and seed; of a cell that shares no seed, the first run of each side.

    Columns are those of `runs` with the endings `_left` and `_right`.
    """
    sides = []
    for tables in (left, right):
        runs = tables.runs.assign(place=[tables.cells[i] for i in tables.runs["cell"]])
        sides.append(runs.drop_duplicates(["cell", "seed"]))
    same = sides[0].merge(sides[1], on=["place", "seed"], suffixes=("_left", "_right"))
    firsts = [side.drop_duplicates("cell").drop(columns="seed") for side in sides]
    lone = firsts[0].merge(firsts[1], on="place", suffixes=("_left", "_right"))
    lone = lone[~lone["cell_left"].isin(same["cell_left"])]
    return pd.concat([same, lone]).sort_values("cell_left", kind="stable")


def changes(left: Tables, right: Tables) -> list[Changed]:
    """Return what differs in the settings, tasks, data and software of matched runs, by key."""
    counts: Counter[tuple[str, str | None, str | None]] = Counter()
    tasks = [_task_settings(tables) for tables in (left, right)]
    for pair in run_pairs(left, right).itertuples():
        own, other = tasks[0].get(pair.run_id_left, {}), tasks[1].get(pair.run_id_right, {})
        shared = own.keys() & other.keys()
        a = _settings(pair.config_left, own, shared, pair.data_left, pair.environment_left)
        b = _settings(pair.config_right, other, shared, pair.data_right, pair.environment_right)
        counts.update(
            (key, a.get(key), b.get(key)) for key in a.keys() | b.keys() if a.get(key) != b.get(key)
        )
    found = [Changed(*change, n) for change, n in counts.items()]
    return sorted(found, key=lambda change: (change.key, change.left or "", change.right or ""))


def twins(left: Tables, right: Tables) -> Twins:
    """Return runs with one id on both sides, by whether their scores are equal, bit by bit.

    A task with other settings may score otherwise and is left out. A run without a score to compare is in
    neither group.
    """
    tasks = left.results.merge(right.results, on=["run_id", "task"], suffixes=("_left", "_right"))
    agree = map(settings_agree, tasks["config_left"], tasks["config_right"])
    same = tasks[pd.Series(list(agree), index=tasks.index, dtype=bool)]
    place = ["run_id", "task", "metric", "n_labels"]
    scores = left.scores.merge(right.scores, on=place, suffixes=("_left", "_right"))
    scores = scores.merge(same[["run_id", "task"]], on=["run_id", "task"])
    gaps = (scores["value_left"] - scores["value_right"]).abs().groupby(scores["run_id"]).max()
    unequal = gaps[gaps > 0]
    return Twins(tuple(gaps.index[gaps == 0]), tuple(zip(unequal.index, unequal.tolist(), strict=True)))


def _match(measure: Measure, cell: Cell, left: pd.Series, right: pd.Series) -> Matched:
    own, other = interval(left), interval(right)
    assert own is not None
    assert other is not None
    gaps = (right - left).dropna().to_numpy()
    test: Test = "paired"
    p: float | None
    if len(gaps) >= MIN_SEEDS:
        found = Estimate(float(gaps.mean()), float(gaps.std(ddof=1)), 0.0, len(gaps) - 1, len(gaps))
        difference, p = Interval(found.mean, *found.bounds(), found.n_seeds), superiority(found).p
    elif min(own.n, other.n) >= MIN_SEEDS:
        test, (difference, p) = "Welch", welch(left, right)
    else:
        test, p = "too few seeds", None
        gap = float(gaps.mean()) if len(gaps) else other.mean - own.mean
        difference = Interval(gap, None, None, len(gaps) or min(own.n, other.n))
    return Matched(measure, cell, own, other, difference, test, p, is_equal=left.equals(right))


def _task_settings(tables: Tables) -> dict[str, dict[str, Any]]:
    """Return the settings of each task by run id."""
    found: dict[str, dict[str, Any]] = {}
    for row in tables.results.itertuples():
        found.setdefault(row.run_id, {})[row.task] = row.config
    return found


def _settings(
    config: Mapping[str, Any], tasks: Mapping[str, Any], shared: Iterable[str], data: Any, environment: Any
) -> dict[str, str]:
    """Return all settings of a run, flat, but its seed, which is matched or cannot be."""
    tree: dict[str, Any] = {key: value for key, value in config.items() if key != "seed"}
    tree |= {"task": {task: tasks[task] for task in shared}}
    return flatten(tree | {"data": data, "environment": environment})
