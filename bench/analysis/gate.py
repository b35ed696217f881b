"""The gate of a task: has it earned to give verdicts in this study?

A task is not informative here if its audit failed, or if no pretrained strategy does better than both chance
and the trivial baseline by more than noise. It is then listed with the reason, and gives no verdict, no rank
and no advice. Each cell at its condition's largest budget is tested one-sided against both bars, over seeds
and, where outcomes by item are known, over items (`bench.analysis.error_model`); both tests together are an
intersection-union test (Berger 1982), and Bonferroni's correction covers the cells. The gate is open where it
cannot be tested: with fewer than three seeds, or where a metric has neither bar.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import pandas as pd

from bench.analysis.compare import is_compared
from bench.analysis.error_model import Sample, estimate, sample
from bench.analysis.format import measure_label, number
from bench.analysis.frames import TRIVIAL, Cell, Measure, Tables
from bench.analysis.stats import LEVEL, MIN_SEEDS

# Headlines of older records that a degenerate answer wins.
SUPERSEDED = {
    "ngram_perplexity": "a text in circles wins by its headline, ngram_perplexity; evaluate it again, by "
    "forward_reverse_perplexity"
}
RISK = "exposure"  # of planted secrets: chance is its best value, not a bar


@dataclass(frozen=True)
class Gate:
    """Whether a task is informative in a study, and why not; or, if it is, what was not tested."""

    is_open: bool
    reason: str = ""


class _Bars(NamedTuple):
    """What a strategy must exceed, by seed; empty where there is no such bar."""

    chance: pd.Series
    trivial: Sample


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
    if measure.metric in SUPERSEDED:
        return Gate(False, SUPERSEDED[measure.metric])
    if measure.metric.startswith(RISK):
        return Gate(True)
    bars = _Bars(_chance(tables, measure), _trivial(tables, measure))
    if not cells or (bars.chance.empty and not bars.trivial.seeds):
        return Gate(True)
    tested = {cell: p for cell in cells if (p := _p(tables, measure, cell, bars)) is not None}
    if not tested:
        return Gate(True, f"not tested: fewer than {MIN_SEEDS} seeds")
    if min(tested.values()) * len(tested) <= 1 - LEVEL:
        return Gate(True, "" if bars.trivial.seeds else "no trivial baseline was recorded (strategy=trivial)")
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


def _trivial(tables: Tables, measure: Measure) -> Sample:
    """Return the trivial baseline; for several models it is the same."""
    cells = [cell for cell in tables.cells_with(measure) if cell.condition.strategy == TRIVIAL]
    return sample(tables, measure, cells[:1])


def _p(tables: Tables, measure: Measure, cell: Cell, bars: _Bars) -> float | None:
    """Return the p value of "better than both bars"; None with too few seeds."""
    own, sign = sample(tables, measure, [cell]), float(tables.measures[measure].sign)
    found = []
    if not bars.chance.empty:
        found.append(estimate((_above(own, bars.chance),), (sign,)))
    if len(bars.trivial.seeds) >= MIN_SEEDS:
        found.append(estimate((own, bars.trivial), (sign, -sign)))
    elif len(bars.trivial.seeds):
        found.append(estimate((_above(own, pd.Series(bars.trivial.scores, bars.trivial.seeds)),), (sign,)))
    known = [one.p_above(0.0) for one in found if one is not None]
    return max(known) if len(known) == len(found) else None


def _above(own: Sample, bar: pd.Series) -> Sample:
    """Return scores minus a known bar by seed; a seed without one has the mean of the others."""
    at = bar.reindex(list(own.seeds)).fillna(bar.mean()).to_numpy()
    items = None if own.items is None else own.items - at[:, None]
    return replace(own, scores=own.scores - at, items=items)


def _reason(tables: Tables, measure: Measure, cells: list[Cell], bars: _Bars) -> str:
    sign = tables.measures[measure].sign
    mean: Callable[[Cell], float] = lambda cell: float(tables.seed_values(measure, cell).mean())  # noqa: E731
    best = max(cells, key=lambda cell: sign * mean(cell))
    shown = [] if bars.chance.empty else [f"chance ({number(float(bars.chance.mean()))})"]
    shown += [f"the trivial baseline ({number(bars.trivial.mean)})"] if bars.trivial.seeds else []
    return (
        f"no strategy is better than {' and '.join(shown)} by more than noise; the best is "
        f"{best.condition.label} with {number(mean(best))} ({measure_label(tables, measure).rstrip()})"
    )
