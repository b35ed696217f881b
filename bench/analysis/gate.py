"""The gate of a task: has it earned to give verdicts in this study?

A task is not informative here if its audit failed, or if no pretrained strategy does better than both chance
and the trivial baseline by more than noise. It is then listed with the reason, and gives no verdict, no rank
and no advice. Each cell at its condition's largest budget is tested one-sided against both bars, over seeds
and, where outcomes by item are known, over items; the two tests together are an intersection-union test
(Berger 1982), and Bonferroni's correction covers the cells. The gate is open where it cannot be tested: with
one seed, or where a metric has neither bar.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.analysis.compare import is_compared
from bench.analysis.format import measure_label, number
from bench.analysis.frames import TRIVIAL, Cell, Measure, Tables
from bench.analysis.inference import Array, Estimate, crossed, matrix, outcomes, seeds_alone
from bench.analysis.stats import LEVEL

RISK = "exposure"  # of planted secrets: chance is its best value, not a bar


@dataclass(frozen=True)
class Gate:
    """Whether a task is informative in a study, and why not; or, if it is, what was not tested."""

    is_open: bool
    reason: str = ""


class _Bars(NamedTuple):
    """What a strategy must exceed: values by seed, empty where there is no such bar."""

    chance: pd.Series
    trivial: pd.Series


@lru_cache(maxsize=2**6)
def gates(tables: Tables) -> Mapping[str, Gate]:
    """Return the gate of each task, by its headline metric."""
    return {measure.task: gate(tables, measure) for measure in tables.headlines}


def informative(tables: Tables) -> list[Measure]:
    """Return the headline measures of the tasks whose gate is open."""
    return [measure for measure in tables.headlines if is_informative(tables, measure)]


def is_informative(tables: Tables, measure: Measure) -> bool:
    """Return whether the gate of a measure's task is open; so it is for a task without a headline metric."""
    found = gates(tables).get(measure.task)
    return found is None or found.is_open


def why_not(tables: Tables, task: str) -> str:
    """Return why a task is not informative; "" if it is."""
    found = gates(tables).get(task)
    return "" if found is None or found.is_open else found.reason


def gate(tables: Tables, measure: Measure) -> Gate:
    """Test one measure."""
    if measure.task in tables.failed_audits:
        return Gate(False, f"its audit failed: {tables.failed_audits[measure.task]}")
    cells = _largest(tables, measure)
    if measure.metric.startswith(RISK):
        return Gate(True)
    bars = _Bars(_chance(tables, measure), _trivial(tables, measure))
    if not cells or (bars.chance.empty and bars.trivial.empty):
        return Gate(True)
    tested = {cell: p for cell in cells if (p := _p(tables, measure, cell, bars)) is not None}
    if not tested:
        return Gate(True, "not tested: fewer than two seeds")
    if min(tested.values()) * len(tested) <= 1 - LEVEL:
        return Gate(True, "" if len(bars.trivial) else "no trivial baseline was recorded (strategy=trivial)")
    return Gate(False, _reason(tables, measure, list(tested), bars))


def _largest(tables: Tables, measure: Measure) -> list[Cell]:
    """Return each compared condition's cells at its largest budget with a score, one per model."""
    found: dict[tuple[object, str], Cell] = {}
    for cell in tables.cells_with(measure):  # ascending in the budget
        if is_compared(cell.condition):
            found[cell.condition, cell.model] = cell
    return list(found.values())


def _chance(tables: Tables, measure: Measure) -> pd.Series:
    """Return the chance level by seed, which may differ where labels are drawn by seed."""
    own = tables.scores[tables.scores["measure"] == list(tables.measures).index(measure)]
    return own.dropna(subset="chance").groupby("seed")["chance"].mean()


def _trivial(tables: Tables, measure: Measure) -> pd.Series:
    """Return the trivial baseline by seed, the mean over models, for which it is the same."""
    cells = [cell for cell in tables.cells_with(measure) if cell.condition.strategy == TRIVIAL]
    if not cells:
        return pd.Series(dtype="float64")
    return pd.concat([tables.seed_values(measure, cell) for cell in cells]).groupby(level=0).mean()


def _p(tables: Tables, measure: Measure, cell: Cell, bars: _Bars) -> float | None:
    """Return the p value of "better than both bars"; None with fewer than two seeds."""
    values = tables.seed_values(measure, cell)
    sign = tables.measures[measure].sign
    items = outcomes(tables, measure, cell)
    by_bar = []
    for bar in (part for part in bars if not part.empty):
        at = bar.reindex(values.index).fillna(bar.mean())  # a seed without the baseline: its mean
        gaps = sign * (values - at)
        if len(gaps) < 2:
            return None
        known = None
        if bar is bars.trivial:
            known = matrix(items, _trivial_outcomes(tables, measure))
        elif items:
            known = matrix(items, {seed: np.full(len(items[seed]), at[seed]) for seed in items})
        by_bar.append(_estimate(gaps, None if known is None else sign * known[1]).p_above(0.0))
    return max(by_bar)


def _estimate(gaps: pd.Series, items: Array | None) -> Estimate:
    return seeds_alone(gaps) if items is None else crossed(items)


def _trivial_outcomes(tables: Tables, measure: Measure) -> Mapping[int, Array]:
    cells = [cell for cell in tables.cells_with(measure) if cell.condition.strategy == TRIVIAL]
    return outcomes(tables, measure, cells[0]) if cells else {}


def _reason(tables: Tables, measure: Measure, cells: list[Cell], bars: _Bars) -> str:
    sign = tables.measures[measure].sign
    mean: Callable[[Cell], float] = lambda cell: float(tables.seed_values(measure, cell).mean())  # noqa: E731
    best = max(cells, key=lambda cell: sign * mean(cell))
    named = {"chance": bars.chance, "the trivial baseline": bars.trivial}
    shown = [f"{name} ({number(float(bar.mean()))})" for name, bar in named.items() if not bar.empty]
    return (
        f"no strategy is better than {' and '.join(shown)} by more than noise; the best is "
        f"{best.condition.label} with {number(mean(best))} ({measure_label(tables, measure).rstrip()})"
    )
