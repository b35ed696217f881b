"""Tables -> every strategy's scores on the tasks that all can do, and the table of their aggregates.

A score counts as (score - chance) / (1 - chance), so that tasks can be averaged. That takes a metric with a
chance level whose best value is 1; others (bits per byte, exposure, perplexity, chrF) are left out and named.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import numpy as np

from bench.analysis import aggregate
from bench.analysis.compare import baseline_cell, grid, level
from bench.analysis.stats import LEVEL, Interval
from bench.analysis.table import BASELINE, Arm, Cell, Measure, Tables
from bench.analysis.text import EMPTY, Entry, View, with_interval

MIN_TASKS = 3  # the middle half of two tasks is the worse seeds of one and the better ones of the other
_SHARE = re.compile(r"(accuracy|em|f1|mrr|recall_at_\d+)(_\w+)?")  # metrics that are 1 where all is right


class Matrix(NamedTuple):
    """An arm's normalised scores (S, T); a seed that lacks a task, or a cell of one, is not in it."""

    seeds: tuple[int, ...]
    scores: aggregate.Array


@dataclass(frozen=True)
class Suite:
    """What is aggregated, and what is not."""

    measures: tuple[Measure, ...]  # T, one per task: those that every arm below has
    matrices: Mapping[Arm, Matrix]
    unscaled: tuple[Measure, ...]  # no chance level, or no known ceiling
    unshared: tuple[Measure, ...]  # some arm below lacks it
    excluded: tuple[Arm, ...]  # they have fewer than half as many tasks as another arm, or no whole seed


def suite(tables: Tables) -> Suite | None:
    """The tasks to aggregate over, and each arm's scores; None for fewer than `MIN_TASKS` tasks."""
    scaled = [measure for measure in tables.headlines if _is_scaled(tables, measure)]
    arms = [arm for arm in tables.arms if not arm.is_external]
    able = {arm: [m for m in scaled if level(tables, m, grid(tables, arm))] for arm in arms}
    most = max(map(len, able.values()), default=0)
    kept = [arm for arm in arms if 2 * len(able[arm]) >= most]
    shared = [measure for measure in scaled if all(measure in able[arm] for arm in kept)]
    if len(shared) < MIN_TASKS:
        return None
    found = {arm: _matrix(tables, arm, shared) for arm in kept}
    matrices = {arm: matrix for arm, matrix in found.items() if matrix.seeds}
    return Suite(
        measures=tuple(shared),
        matrices=matrices,
        unscaled=tuple(measure for measure in tables.headlines if measure not in scaled),
        unshared=tuple(measure for measure in scaled if measure not in shared),
        excluded=tuple(arm for arm in arms if arm not in matrices),
    )


def improvement(tables: Tables, found: Suite, arm: Arm) -> Interval | None:
    """Of an arm over scratch of the same settings, on the seeds of both; None where there is none."""
    scratch = baseline_cell(tables, Cell(arm, tables.models[0], None)).arm
    if arm.strategy == BASELINE or scratch not in found.matrices:
        return None
    own, other = found.matrices[arm], found.matrices[scratch]
    seeds = [seed for seed in own.seeds if seed in other.seeds]
    if not seeds:
        return None
    left, right = (m.scores[[m.seeds.index(seed) for seed in seeds]] for m in (own, other))
    return aggregate.improvement(left, right)


def across_tasks(tables: Tables) -> View | None:
    """A row per strategy; None where too few tasks are shared."""
    found = suite(tables)
    if found is None:
        return None
    rows: list[list[Entry]] = [
        [
            arm.label,
            with_interval(aggregate.interquartile_mean(matrix.scores)),
            with_interval(aggregate.mean(matrix.scores)),
            with_interval(improvement(tables, found, arm)),
            str(len(found.measures)),
            _seeds(tables, arm, matrix),
        ]
        for arm, matrix in found.matrices.items()
    ]
    header = ["strategy", "interquartile mean", "mean", "P(better than scratch)", "tasks", "seeds"]
    marks = ["reference" if arm.strategy == BASELINE else "" for arm in found.matrices]
    title = "Across tasks"
    return View("across_tasks", title, _note(found), header, "lrrrrr", rows, marks=marks)


def _note(found: Suite) -> str:
    return (
        "Each task's headline metric as (score − chance) / (1 − chance): 0 is chance, 1 all right; mean over "
        "all models and data budgets within each seed. Interquartile mean: of the middle half of seeds × "
        "tasks. P(better than scratch): that a run beats a run of scratch on a task drawn at random, a tie "
        f"counting half (Agarwal et al. 2021). Brackets: {100 * LEVEL:.0f} % percentile bootstrap of whole "
        f"seeds, since all tasks score one checkpoint; tasks are fixed. With few seeds they are too narrow "
        "(in simulations they held the truth 75 % of the time with 3 seeds, 90 % with 10): read them as "
        f"ranges. No verdict rests on these numbers. {_left_out(found)}"
    )


def _left_out(found: Suite) -> str:
    """Which tasks are aggregated, and which tasks and strategies are not, in sentences."""
    sentences = [f"Tasks: {_tasks(found.measures)}."]
    if found.unshared:
        sentences.append(f"Left out, as some strategy has no score ({len(found.unshared)}): ")
        sentences[-1] += f"{_tasks(found.unshared)}."
    if found.unscaled:
        sentences.append(f"Left out, without chance level or known ceiling ({len(found.unscaled)}): ")
        sentences[-1] += f"{_tasks(found.unscaled)}."
    if found.excluded:
        names = ", ".join(arm.label for arm in found.excluded)
        sentences.append(f"Strategies left out, with too few tasks or no seed that has all: {names}.")
    return " ".join(sentences)


def _is_scaled(tables: Tables, measure: Measure) -> bool:
    """Has it a chance level, and is it a share whose ceiling is 1?"""
    info = tables.measures[measure]
    values = [value for own in tables.values[measure].values() for value in own.values()]
    inside = all(0 <= value <= aggregate.CEILING for value in (*values, *info.chance))
    named = _SHARE.fullmatch(measure.metric) is not None and info.sign > 0
    return named and inside and bool(info.chance) and max(info.chance) < aggregate.CEILING


def _matrix(tables: Tables, arm: Arm, measures: Iterable[Measure]) -> Matrix:
    """A task's chance is one number for all seeds and arms, so that no strategy is scaled otherwise."""
    columns = {measure: level(tables, measure, grid(tables, arm)) for measure in measures}
    seeds = sorted(set.intersection(*(set(column) for column in columns.values())))
    values = np.array([[column[seed] for column in columns.values()] for seed in seeds])
    chance = np.array([mean(tables.measures[measure].chance) for measure in columns])
    shape = (len(seeds), len(columns))
    return Matrix(tuple(seeds), aggregate.normalised(values.reshape(shape), chance))


def _seeds(tables: Tables, arm: Arm, matrix: Matrix) -> str:
    """`3`, or `2 of 3` where a run or a task of a seed was lost."""
    tried = {record.seed for cell in grid(tables, arm) for record in tables.runs_of.get(cell, ())}
    n = len(matrix.seeds)
    return str(n) if n == len(tried) else f"{n} of {len(tried)}"


def _tasks(measures: Iterable[Measure]) -> str:
    return ", ".join(measure.task for measure in measures) or EMPTY
