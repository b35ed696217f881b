"""Tables of findings: across tasks, learning, label budgets and fine-tuning stability."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.analysis.compare import (
    AHEAD,
    LEANS_AHEAD,
    HeadlineRow,
    baseline_cell,
    difference,
    grid,
    headline_rows,
    is_compared,
    level,
    place_name,
)
from bench.analysis.error_model import crossing, mean_of, sample
from bench.analysis.format import (
    EMPTY,
    Entry,
    Link,
    View,
    cells_anchor,
    measure_link,
    number,
    seeds_note,
    series_label,
    with_interval,
)
from bench.analysis.frames import BASELINE, Cell, Condition, Measure, MeasureSeries, Tables, label_series
from bench.analysis.gate import informative
from bench.analysis.inference import BEFORE, BEYOND, Crossover
from bench.analysis.stats import (
    CEILING,
    LEVEL,
    Floats,
    Interval,
    interquartile_mean,
    mean_over_tasks,
    normalised,
    probability_of_improvement,
)
from bench.analysis.untrained import baseline_name, shown

MIN_TASKS = 3  # with two tasks the middle half mixes the worse seeds of one with the better ones of the other
_SHARE = re.compile(r"(accuracy|em|f1|mrr|recall_at_\d+)(_\w+)?")  # metrics whose ceiling is 1


class Matrix(NamedTuple):
    """A condition's normalised scores (S, T), of the seeds that have every task in every cell."""

    seeds: tuple[int, ...]
    scores: Floats


@dataclass(frozen=True)
class Suite:
    """The tasks and scores to aggregate, and what is not included."""

    measures: tuple[Measure, ...]  # T, one per task, that every condition in `matrices` has
    matrices: Mapping[Condition, Matrix]
    unscaled: tuple[Measure, ...]  # no chance level, or no known ceiling
    unshared: tuple[Measure, ...]  # a condition in `matrices` lacks it
    excluded: tuple[
        Condition, ...
    ]  # with fewer than half the tasks of another condition, or no seed with all tasks


def suite(tables: Tables) -> Suite | None:
    """Return the tasks to aggregate and each condition's scores; None for fewer than `MIN_TASKS` tasks."""
    scaled = [measure for measure in informative(tables) if _is_scaled(tables, measure)]
    conditions = [condition for condition in tables.conditions if not condition.is_external]
    able = {
        condition: [m for m in scaled if len(level(tables, m, grid(tables, condition)))]
        for condition in conditions
    }
    most = max(map(len, able.values()), default=0)
    kept = [condition for condition in conditions if 2 * len(able[condition]) >= most]
    shared = [measure for measure in scaled if all(measure in able[condition] for condition in kept)]
    if len(shared) < MIN_TASKS:
        return None
    found = {condition: _matrix(tables, condition, shared) for condition in kept}
    matrices = {condition: matrix for condition, matrix in found.items() if matrix.seeds}
    return Suite(
        measures=tuple(shared),
        matrices=matrices,
        unscaled=tuple(measure for measure in informative(tables) if measure not in scaled),
        unshared=tuple(measure for measure in scaled if measure not in shared),
        excluded=tuple(condition for condition in conditions if condition not in matrices),
    )


def improvement(tables: Tables, found: Suite, condition: Condition) -> Interval | None:
    """Return the probability that a condition is better than the untrained baseline of the same settings.

    It uses the seeds of both, and is None if there are none.
    """
    scratch = baseline_cell(Cell(condition, tables.models[0], None)).condition
    if condition.strategy == BASELINE or scratch not in found.matrices:
        return None
    own, other = found.matrices[condition], found.matrices[scratch]
    seeds = [seed for seed in own.seeds if seed in other.seeds]
    if not seeds:
        return None
    left, right = (m.scores[[m.seeds.index(seed) for seed in seeds]] for m in (own, other))
    return probability_of_improvement(left, right)


def across_tasks(tables: Tables) -> View | None:
    """Return a table with a row per strategy; None if too few tasks are shared."""
    found = suite(tables)
    if found is None:
        return None
    tasks = [measure.task for measure in found.measures]
    rows: list[list[Entry]] = [
        [
            shown(tables, condition, tasks).label,
            with_interval(interquartile_mean(matrix.scores)),
            with_interval(mean_over_tasks(matrix.scores)),
            with_interval(improvement(tables, found, condition)),
            str(len(found.measures)),
            _seeds(tables, condition, matrix),
        ]
        for condition, matrix in found.matrices.items()
    ]
    header = [
        "strategy",
        "interquartile mean",
        "mean",
        f"P(better than {baseline_name(tables, tasks)})",
        "tasks",
        "seeds",
    ]
    marks = ["reference" if condition.strategy == BASELINE else "" for condition in found.matrices]
    title = "Across tasks"
    return View(
        "across_tasks",
        title,
        _where(tables) + _note(found, baseline_name(tables, tasks)),
        header,
        "lrrrrr",
        rows,
        marks=marks,
    )


def _where(tables: Tables) -> str:
    name = place_name(tables)
    return f"At {name}. " if name else ""


def _note(found: Suite, baseline: str) -> str:
    return (
        "Each task's headline metric is scaled to (score − chance) / (1 − chance): 0 is chance and 1 is a "
        "perfect score. The interquartile mean is the mean of the middle half of all seeds × tasks. "
        f"P(better than {baseline}) is the probability "
        f"that a run scores higher than a run of {baseline} on a randomly drawn task; a tie counts half "
        f"(Agarwal et al. 2021). Brackets: {100 * LEVEL:.0f} % percentile bootstrap over seeds, on these "
        "tasks; all tasks of a seed are resampled together, since they score one checkpoint. With few seeds "
        "these intervals are too narrow: in simulations they covered the true value in 75 % of cases with 3 "
        f"seeds and in 90 % with 10. No verdict uses these numbers. {_left_out(found)}"
    )


def _left_out(found: Suite) -> str:
    """Return sentences on which tasks and strategies are aggregated and which are not."""
    sentences = [f"Tasks: {_tasks(found.measures)}."]
    if found.unshared:
        sentences.append(f"Not included, because a strategy has no score ({len(found.unshared)}): ")
        sentences[-1] += f"{_tasks(found.unshared)}."
    if found.unscaled:
        sentences.append(f"Not included, because chance or ceiling is unknown ({len(found.unscaled)}): ")
        sentences[-1] += f"{_tasks(found.unscaled)}."
    if found.excluded:
        names = ", ".join(condition.label for condition in found.excluded)
        sentences.append(
            f"Strategies not included, because they lack tasks or a seed with all tasks: {names}."
        )
    return " ".join(sentences)


def _is_scaled(tables: Tables, measure: Measure) -> bool:
    """Return whether a measure has a chance level and is a share with ceiling 1."""
    info = tables.measures[measure]
    values = tables.by_seed(measure)
    levels = (values.min(axis=None), values.max(axis=None), *info.chance)
    inside = all(0 <= level <= CEILING for level in levels)
    named = _SHARE.fullmatch(measure.metric) is not None and info.sign > 0
    return named and inside and bool(info.chance) and max(info.chance) < CEILING


def _matrix(tables: Tables, condition: Condition, measures: Iterable[Measure]) -> Matrix:
    """Return normalised scores, with one chance level per task for all seeds and conditions."""
    columns = [level(tables, measure, grid(tables, condition)) for measure in measures]
    scores = pd.concat(columns, axis=1, join="inner").sort_index()
    chance = np.array([mean(tables.measures[measure].chance) for measure in measures])
    values = np.ascontiguousarray(scores, dtype=np.float64)
    return Matrix(tuple(scores.index), normalised(values, chance))


def _seeds(tables: Tables, condition: Condition, matrix: Matrix) -> str:
    """Format the number of seeds: `3`, or `2 of 3` if a run or a task of a seed was lost."""
    tried = {seed for cell in grid(tables, condition) for _, seed in tables.ids_of(cell)}
    n = len(matrix.seeds)
    return str(n) if n == len(tried) else f"{n} of {len(tried)}"


def _tasks(measures: Iterable[Measure]) -> str:
    return ", ".join(measure.task for measure in measures) or EMPTY


TRAINING, HELD_OUT = "train_loss_nats", "validation_loss_nats"  # of a `CurvePoint`
_MARK = {AHEAD: " ▲", LEANS_AHEAD: " △"}


def learning(tables: Tables) -> View:
    """Return in how many runs each condition's losses fell, and on which tasks it beats the baseline."""
    found, name = headline_rows(tables, tables.headlines), baseline_name(tables)
    rows: list[list[Entry]] = []
    nowhere: list[str] = []
    for condition in (condition for condition in tables.conditions if losses(tables, condition, HELD_OUT)):
        better = [row for row in found if row.condition == condition and _is_better(tables, row)]
        if not better:
            nowhere.append(shown(tables, condition).label)
        fell = [_fell(losses(tables, condition, kind)) for kind in (TRAINING, HELD_OUT)]
        rows.append([shown(tables, condition).label, *fell, ", ".join(map(_gain, better)) or EMPTY])
    note = (
        "The loss is that of the strategy's own objective. It fell if the last point of the curve is lower "
        "than the first one, which is not the start of training; only finished runs count. A held-out loss "
        "that rises while the training loss falls indicates overfitting. For a strategy with phases, the "
        "held-out loss is that of the last phase, and the training loss changes between phases. Better: "
        "the mean difference is an improvement. ▲: significant after Holm's "
        "correction; △: significant before the correction only; no mark: not significant. "
    )
    note += (
        f"Better than {name} on no task: {', '.join(nowhere)}."
        if nowhere
        else f"Every strategy is better than {name} on at least one task."
    )
    header = ["strategy", "training loss fell", "held-out loss fell", f"better than {name} on"]
    return View("learning", f"Training progress and gain over {name}", note, header, "lrrl", rows)


def losses(tables: Tables, condition: Condition, kind: str) -> list[tuple[float, float]]:
    """Return first and last loss of each finished run of a condition that was measured more than once."""
    return _losses(tables, kind).get(condition, [])


@lru_cache(maxsize=2)
def _losses(tables: Tables, kind: str) -> dict[Condition, list[tuple[float, float]]]:
    points = tables.curves.dropna(subset=kind).groupby(["cell", "run_id"], sort=False)[kind]
    ends = points.agg(["size", "first", "last"])
    found: dict[Condition, list[tuple[float, float]]] = {}
    for (cell, _), size, first, last in ends.itertuples(name=None):
        if size > 1:
            found.setdefault(tables.cells[cell].condition, []).append((first, last))
    return found


def _fell(ends: list[tuple[float, float]]) -> str:
    return f"{sum(last < first for first, last in ends)} of {len(ends)} runs" if ends else EMPTY


def _is_better(tables: Tables, row: HeadlineRow) -> bool:
    if row.to_scratch is None:
        return False
    return tables.measures[row.measure].sign * row.to_scratch.interval.mean > 0


def _gain(row: HeadlineRow) -> str:
    assert row.to_scratch is not None
    gain = number(row.to_scratch.interval.mean, signed=True)
    return f"{row.measure.task} {gain}{_MARK.get(row.verdict, '')}"


def label_budgets(tables: Tables) -> View | None:
    """Return a row per task and strategy; None if no task is measured at several label counts."""
    found = [
        (series, condition, crossover_of(tables, series, condition))
        for series in label_series(tables)
        for condition in tables.conditions
        if is_compared(condition)
    ]
    if not found:
        return None
    rows: list[list[Entry]] = [
        [
            [_link(tables, series)],
            condition.label,
            *(_difference(tables, series, condition, i) for i in (0, -1)),
            EMPTY if point is None else answer(point),
            EMPTY if point is None else range_of(point, series.xs),
            EMPTY if point is None else str(point.n),
        ]
        for series, condition, point in found
    ]
    counts = [point.n for *_, point in found if point is not None]
    name = baseline_name(tables, {series.task for series, *_ in found})
    note = (
        f"{_where(tables)}Pretraining stops helping at the label count from which on the mean difference to "
        f"{name} is no improvement. This count is interpolated linearly in log2 labels between two measured "
        "label counts and never extrapolated. Range: from the last measured label count with a clear "
        f"improvement to the first one from which on {name} is clearly better (p ≤ 0.05 at each); < and > "
        f"mark bounds outside the measured label counts. {seeds_note(counts)}"
    )
    header = [
        "task: metric",
        "strategy",
        f"difference to {name}, fewest labels",
        f"difference to {name}, most labels",
    ]
    header += ["pretraining stops helping at", "range", "n"]
    title = "Label budgets: where pretraining stops helping"
    return View("label_budgets", title, note, header, "llrrrrr", rows)


def crossover_of(tables: Tables, series: MeasureSeries, condition: Condition) -> Crossover | None:
    """Return the crossover at the headline's place; None if the baseline or the cell has no scores."""
    cell = grid(tables, condition)[-1]
    sides = (cell, baseline_cell(cell))
    points = {x: (sample(tables, m, sides[:1]), sample(tables, m, sides[1:])) for x, m in series.points}
    return crossing(points, tables.measures[series.measures[-1]].sign)


def answer(point: Crossover) -> str:
    """Return the label count of the crossover, or why there is none."""
    if point.at == BEFORE:
        return "never ahead"
    if point.at == BEYOND:
        ahead = "ahead at all label counts"
        return ahead if point.is_ahead_throughout else "ahead with the most labels, behind with fewer"
    return f"{point.at:,.0f} labels"


def range_of(point: Crossover, counts: list[int]) -> str:
    """Format the range of a crossover in labels: `[120, > 1,400]`."""
    bounds = point.bounds_as("{:,.0f}".format, f"< {counts[0]:,}", f"> {counts[-1]:,}")
    return f"[{', '.join(dict.fromkeys(bounds)) or 'too few seeds'}]"


def _link(tables: Tables, series: MeasureSeries) -> Link:
    most = series.measures[-1]
    sizes = f"{series.xs[0]:,} to {series.xs[-1]:,} labels"
    label = f"{series_label(tables, most, series.name)} ({sizes})"
    return Link(label, f"#{cells_anchor(tables, most)}")


def _difference(tables: Tables, series: MeasureSeries, condition: Condition, i: int) -> str:
    cell = grid(tables, condition)[-1]
    gap = difference(tables, series.measures[i], cell, baseline_cell(cell))
    return EMPTY if gap is None else with_interval(gap.interval, signed=True)


FIT_SD, FAILED = "_fit_sd", "failed_fits"  # names of metrics


class Tuned(NamedTuple):
    """A fine-tuned measure with the measures of its stability."""

    measure: Measure
    fit_sd: Measure
    failed: Measure


def stability(tables: Tables) -> View | None:
    """Return a row per fine-tuned measure and strategy, the baseline, too; None if nothing is fine-tuned."""
    rows: list[list[Entry]] = []
    counts: list[int] = []
    for tuned in fine_tuned(tables):
        for condition in tables.conditions:
            spread, failed = (_mean(tables, measure, condition) for measure in (tuned.fit_sd, tuned.failed))
            between = sd_over_seeds(tables, tuned.measure, condition)
            if (spread, failed, between) == (None, None, None):
                continue
            counts += [found.n for found in (spread, failed) if found is not None]
            texts = [
                with_interval(spread),
                EMPTY if between is None else number(between),
                EMPTY if failed is None else number(failed.mean),
            ]
            name = shown(tables, condition, [tuned.measure.task]).label
            rows.append([[measure_link(tables, tuned.measure)], name, *texts])
    if not rows:
        return None
    note = (
        f"{_where(tables)}Standard deviations of the score over fine-tunings of one checkpoint and over "
        "seeds of the whole run. A fine-tuning failed if it diverged or ended no "
        "better than a constant prediction (Mosbach et al. 2021). "
        f"{seeds_note(counts)}"
    )
    header = ["task: metric", "strategy", "sd over fits", "sd over seeds", "share of failed fits"]
    return View("stability", "Fine-tuning stability", note, header, "llrrr", rows)


def fine_tuned(tables: Tables) -> list[Tuned]:
    """Return measures with a spread over fits.

    A task that records only failed fits is represented by its headline metric.
    """
    found = [
        Tuned(m, m._replace(metric=m.metric + FIT_SD), m._replace(metric=FAILED)) for m in tables.measures
    ]
    with_spread = [tuned for tuned in found if tuned.fit_sd in tables.measures]
    told = {(tuned.measure.task, tuned.measure.n_labels) for tuned in with_spread}
    headlines = {(measure.task, measure.metric) for measure in tables.headlines}
    alone = [
        tuned
        for tuned in found
        if tuned.failed in tables.measures
        and (tuned.measure.task, tuned.measure.metric) in headlines
        and (tuned.measure.task, tuned.measure.n_labels) not in told
    ]
    return [tuned for tuned in found if tuned in with_spread or tuned in alone]


def sd_over_seeds(tables: Tables, measure: Measure, condition: Condition) -> float | None:
    """Return the mean over cells of the standard deviation over seeds; None without two seeds in a cell."""
    values = pd.DataFrame(tables.values(measure, grid(tables, condition)))
    spreads = values.std(axis=1).dropna()
    return float(spreads.mean()) if len(spreads) else None


def _mean(tables: Tables, measure: Measure, condition: Condition) -> Interval | None:
    return mean_of(tables, measure, grid(tables, condition))
