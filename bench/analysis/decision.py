"""Scores, data and compute -> the decision: with so much of both, which strategy and model, how surely.

Candidates are the cells whose unique data and pretraining FLOPs lie within the caps; scratch always is one.
Certainty is how often the best mean stays the best when seeds are drawn anew, all cells together (bootstrap).
Nothing between or beyond the cells that were measured is guessed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from bench.analysis.compare import difference, is_clear, is_compared
from bench.analysis.cost import flops
from bench.analysis.naming import measure_link, seeds_note, short_label
from bench.analysis.stats import LEVEL, Interval, Paired, best_shares, holm, interval, paired, t_test_p
from bench.analysis.table import BASELINE, Cell, Measure, Tables
from bench.analysis.text import EMPTY, Entry, View, n_bytes, p_value, power, with_interval

_APART = 2  # compute levels that are closer than by this factor are one


class Caps(NamedTuple):
    """The most that may be used; None: no limit."""

    data_bytes: float | None
    flops: float | None


@dataclass(frozen=True)
class Decision:
    """The best cell within the caps, and what can be said of it and of the others."""

    measure: Measure
    caps: Caps
    best: Cell
    interval: Interval
    certainty: float | None  # None for a single seed
    scratch: Cell | None  # the best without pretraining; None: none was measured
    to_scratch: Paired | None  # best - scratch
    p_holm: float  # of that, over all pretrained candidates
    ahead: tuple[Cell, ...]  # pretrained candidates that are shown to beat scratch, by p_holm
    tied: tuple[Cell, ...]
    missing: tuple[Cell, ...]  # within the caps, without a number
    n_candidates: int
    n_tested: int  # of them, those held against scratch


class Need(NamedTuple):
    """What a cell takes; None: not known."""

    data_bytes: float | None
    flops: float | None

    def fits(self, caps: Caps) -> bool:
        """Does it lie within the caps? What is not known does not."""
        return all(
            cap is None or (own is not None and own <= cap) for own, cap in zip(self, caps, strict=True)
        )


def needs(tables: Tables) -> dict[Cell, Need]:
    """Unique text and pretraining FLOPs of every cell but external ones, which are no choice."""
    spent = flops(tables)
    return {
        cell: Need(0.0, 0.0)
        if cell.arm.strategy == BASELINE
        else Need(_data_bytes(tables, cell), spent.get(cell))
        for cell in tables.cells
        if not cell.arm.is_external
    }


def _data_bytes(tables: Tables, cell: Cell) -> float | None:
    """The text that its data budget grants; image-text strategies train on that budget's pairs."""
    for record in tables.runs_of[cell]:
        asked = record.config.get("budget")
        granted = asked.get("unique_bytes") if isinstance(asked, dict) else None
        if granted or record.spent.unique_bytes:
            return float(granted or record.spent.unique_bytes)
    return None


def pretrained(tables: Tables, measure: Measure, takes: Mapping[Cell, Need]) -> dict[Cell, Need]:
    """What each pretrained cell with a number takes."""
    values = tables.values[measure]
    return {cell: need for cell, need in takes.items() if values.get(cell) and cell.arm.strategy != BASELINE}


def decide(tables: Tables, measure: Measure, caps: Caps, takes: Mapping[Cell, Need]) -> Decision | None:
    """The best mean within the caps; None where there is no candidate, or nothing is better.

    Args:
        tables: of the study.
        measure: what is to be good.
        caps: on data and compute.
        takes: see `needs`.
    """
    sign, values = tables.measures[measure].sign, tables.values[measure]
    spreads = {
        cell: spread
        for cell, need in takes.items()
        if need.fits(caps) and (spread := interval(list(values.get(cell, {}).values()))) is not None
    }
    if not spreads or not sign:
        return None
    best = max(spreads, key=lambda cell: sign * spreads[cell].mean)
    gaps = {other: difference(tables, measure, best, other) for other in spreads if other != best}
    baselines = [cell for cell in spreads if cell.arm.strategy == BASELINE]
    scratch = max(baselines, key=lambda cell: sign * spreads[cell].mean, default=None)
    tested = _against(tables, measure, spreads, scratch)
    p_holm = dict(zip(tested, holm([t_test_p(list(gap.values())) for gap in tested.values()]), strict=True))
    shares = best_shares([{s: sign * v for s, v in values[cell].items()} for cell in spreads])
    return Decision(
        measure,
        caps,
        best,
        spreads[best],
        certainty=shares[list(spreads).index(best)] if spreads[best].n > 1 else None,
        scratch=scratch,
        to_scratch=paired(gaps[scratch]) if scratch in gaps else None,
        p_holm=p_holm.get(best, 1.0),
        ahead=tuple(c for c, p in p_holm.items() if p <= 1 - LEVEL and is_clear(tested[c], sign)),
        tied=tuple(cell for cell, gap in gaps.items() if not is_clear(gap, sign)),
        missing=_missing(tables, measure, caps, takes),
        n_candidates=len(spreads),
        n_tested=len(tested),
    )


def _against(
    tables: Tables, measure: Measure, candidates: Iterable[Cell], scratch: Cell | None
) -> dict[Cell, dict[int, float]]:
    """Each pretrained candidate minus scratch by seed, for those that share a seed with it."""
    if scratch is None:
        return {}
    gaps = {c: difference(tables, measure, c, scratch) for c in candidates if is_compared(c.arm)}
    return {cell: gap for cell, gap in gaps.items() if gap}


def _missing(tables: Tables, measure: Measure, caps: Caps, takes: Mapping[Cell, Need]) -> tuple[Cell, ...]:
    """What should be there: lost runs may not even have their compute on record."""
    return tuple(
        cell
        for cell, need in takes.items()
        if not tables.values[measure].get(cell)
        and (cell.arm, measure.task) not in tables.inapplicable
        and need.fits(caps if need.flops is not None else Caps(caps.data_bytes, None))
    )


def levels(takes: Mapping[Cell, Need]) -> list[Caps]:
    """Every data budget's text with every compute level, both ascending.

    A compute level is what the dearest strategy of a model and a budget takes: there all of them fit.
    """
    dearest: dict[tuple[str, str | None], float] = {}
    for cell, need in takes.items():
        place = cell.model, cell.budget
        dearest[place] = max(need.flops or 0.0, dearest.get(place, 0.0))
    merged: list[float] = []
    for level in sorted(filter(None, dearest.values()), reverse=True):
        if not merged or level * _APART <= merged[-1]:
            merged.append(level)
    sizes: list[float | None] = [*sorted({need.data_bytes for need in takes.values() if need.data_bytes})]
    return [Caps(size, level) for size in sizes or [None] for level in reversed(merged)]


@lru_cache(maxsize=1)  # for the page and for its CSV
def all_decisions(tables: Tables) -> tuple[Decision, ...]:
    """Those of each task's headline metric."""
    takes = needs(tables)
    return tuple(row for measure in tables.headlines for row in decisions(tables, measure, takes))


def decisions(tables: Tables, measure: Measure, takes: Mapping[Cell, Need]) -> list[Decision]:
    """The decision at each level where the pretrained candidates are others than at all levels before."""
    found: list[Decision] = []
    seen = {frozenset[Cell]()}
    own = pretrained(tables, measure, takes)
    for caps in levels(own):
        candidates = frozenset(cell for cell, need in own.items() if need.fits(caps))
        decision = decide(tables, measure, caps, takes) if candidates not in seen else None
        found += [decision] if decision is not None else []
        seen.add(candidates)
    return found


def decision_table(tables: Tables) -> View:
    """Task x data x compute -> strategy and model, on each task's headline metric."""
    found = all_decisions(tables)
    rows: list[list[Entry]] = [
        [
            [measure_link(tables, row.measure)],
            EMPTY if row.caps.data_bytes is None else n_bytes(row.caps.data_bytes),
            EMPTY if row.caps.flops is None else power(row.caps.flops),
            row.best.arm.label,
            row.best.model,
            row.best.budget or EMPTY,
            with_interval(row.interval),
            certainty(row),
            EMPTY if row.to_scratch is None else with_interval(row.to_scratch.interval, signed=True),
            EMPTY if row.to_scratch is None else p_value(row.p_holm),
            _labels(tables, row.tied),
            _labels(tables, row.missing),
        ]
        for row in found
    ]
    note = (
        "Best mean among the cells that need no more unique text and pretraining FLOPs than a row allows; "
        "image-text strategies train on the pairs of the same data budget. Compute levels: what the dearest "
        "strategy of a model and a budget takes, in steps of two or more. Certainty: in how many of 10,000 "
        "bootstraps over seeds it stays the best; few seeds make it too sure. Minus scratch: the best cell "
        "without pretraining, of any model; p: t test paired by seed, Holm-corrected over the row's "
        "candidates. Not told apart: p > 0.05 against the best, uncorrected. The best of several is "
        "flattered by chance, and its certainty with it. "
        f"{seeds_note(row.interval.n for row in found)}"
    )
    header = ["task: metric", "unique text ≤", "FLOPs ≤", "best", "model", "data budget", "mean", "certainty"]
    header += ["minus scratch", "p (Holm)", "not told apart from it", "missing"]
    title = "Which strategy and model, for which task, data and compute"
    return View("decisions", title, note, header, "lrrlllrrrrll", rows)


def certainty(row: Decision) -> str:
    """`98 %`; a single seed has none, and neither has a single candidate."""
    if row.n_candidates == 1:
        return "no rival"
    return EMPTY if row.certainty is None else f"{100 * row.certainty:.0f} %"


def _labels(tables: Tables, cells: Iterable[Cell]) -> str:
    return "; ".join(short_label(tables, cell) for cell in cells) or EMPTY
