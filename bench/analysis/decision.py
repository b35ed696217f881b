"""Scores, data and compute -> the decision: with so much of both, which strategy and model, how surely.

Candidates are the cells whose unique data and pretraining FLOPs lie within the caps; scratch always is one.
Certainty is how often the best mean stays the best when seeds are drawn anew, all cells together (bootstrap).
Nothing between or beyond the cells that were measured is guessed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bench.analysis.compare import difference, is_clear, is_compared
from bench.analysis.cost import flops
from bench.analysis.naming import measure_link, seeds_note, short_label
from bench.analysis.stats import LEVEL, Interval, Paired, best_shares, holm, interval, paired
from bench.analysis.table import BASELINE, Cell, Measure, Tables
from bench.analysis.text import EMPTY, Entry, View, n_bytes, p_value, power, with_interval

_SAME = 1.05  # levels within 5 % of compute are one


@dataclass(frozen=True)
class Caps:
    """The most that may be used; None: no limit."""

    data_bytes: float | None = None
    flops: float | None = None


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


def data_bytes(tables: Tables, cell: Cell) -> float | None:
    """Unique text that a cell's data budget grants; image-text strategies train on that budget's pairs.

    None where neither the budget nor the runs name a number; scratch needs none.
    """
    if cell.arm.strategy == BASELINE:
        return 0.0
    for record in tables.runs_of[cell]:
        asked = record.config.get("budget")
        granted = asked.get("unique_bytes") if isinstance(asked, dict) else None
        if granted or record.spent.unique_bytes:
            return float(granted or record.spent.unique_bytes)
    return None


def fits(tables: Tables, cell: Cell, caps: Caps) -> bool:
    """Does a cell lie within the caps? What is not known does not."""
    if cell.arm.strategy == BASELINE:
        return True
    needs = (data_bytes(tables, cell), caps.data_bytes), (flops(tables).get(cell), caps.flops)
    return all(cap is None or (need is not None and need <= cap) for need, cap in needs)


def measured(tables: Tables, measure: Measure) -> list[Cell]:
    """Cells with a number; an external model is no choice, its training is not in the records."""
    return [cell for cell in tables.cells if tables.values[measure].get(cell) and not cell.arm.is_external]


def decide(tables: Tables, measure: Measure, caps: Caps) -> Decision | None:
    """The best mean within the caps; None where there is no candidate, or nothing is better."""
    sign, values = tables.measures[measure].sign, tables.values[measure]
    spreads = {
        cell: spread
        for cell in measured(tables, measure)
        if fits(tables, cell, caps) and (spread := interval(list(values[cell].values()))) is not None
    }
    if not spreads or not sign:
        return None
    best = max(spreads, key=lambda cell: sign * spreads[cell].mean)
    gaps = {other: paired(difference(tables, measure, best, other)) for other in spreads if other != best}
    baselines = [cell for cell in spreads if cell.arm.strategy == BASELINE]
    scratch = max(baselines, key=lambda cell: sign * spreads[cell].mean, default=None)
    against = _against(tables, measure, spreads, scratch)
    shares = best_shares([{s: sign * v for s, v in values[cell].items()} for cell in spreads])
    return Decision(
        measure,
        caps,
        best,
        spreads[best],
        certainty=shares[list(spreads).index(best)] if spreads[best].n > 1 else None,
        scratch=scratch,
        to_scratch=gaps.get(scratch) if scratch is not None else None,
        p_holm=against[best][1] if best in against else 1.0,
        ahead=tuple(c for c, (gap, p) in against.items() if p <= 1 - LEVEL and sign * gap.interval.mean > 0),
        tied=tuple(cell for cell, gap in gaps.items() if gap is None or not is_clear(gap, sign)),
        missing=_missing(tables, measure, caps),
        n_candidates=len(spreads),
        n_tested=len(against),
    )


def _against(
    tables: Tables, measure: Measure, candidates: Iterable[Cell], scratch: Cell | None
) -> dict[Cell, tuple[Paired, float]]:
    """Each pretrained candidate that shares a seed with scratch, minus scratch, with its Holm-corrected p."""
    if scratch is None:
        return {}
    gaps = {c: paired(difference(tables, measure, c, scratch)) for c in candidates if is_compared(c.arm)}
    tested = {cell: gap for cell, gap in gaps.items() if gap is not None}
    corrected = holm([gap.p_t for gap in tested.values()])
    return {cell: (gap, p) for (cell, gap), p in zip(tested.items(), corrected, strict=True)}


def _missing(tables: Tables, measure: Measure, caps: Caps) -> tuple[Cell, ...]:
    """What should be there: lost runs may not even have their compute on record."""
    spent = flops(tables)
    return tuple(
        cell
        for cell in tables.cells
        if not tables.values[measure].get(cell)
        and not cell.arm.is_external
        and (cell.arm, measure.task) not in tables.inapplicable
        and fits(tables, cell, caps if cell in spent else Caps(caps.data_bytes))
    )


def levels(tables: Tables, measure: Measure) -> list[Caps]:
    """Every data budget's text with every compute level of the study, both ascending.

    A compute level is what the dearest strategy of a model and a budget takes: there all of them fit.
    """
    spent = flops(tables)
    dearest: dict[tuple[str, str | None], float] = {}
    own = [cell for cell in measured(tables, measure) if cell in spent]
    for cell in own:
        place = cell.model, cell.budget
        dearest[place] = max(spent[cell], dearest.get(place, 0.0))
    merged: list[float] = []
    for level in sorted(dearest.values(), reverse=True):
        if not merged or level * _SAME < merged[-1]:
            merged.append(level)
    sizes = {data_bytes(tables, cell) for cell in own}
    known: list[float | None] = [*sorted(size for size in sizes if size is not None)]
    return [Caps(size, level) for size in known or [None] for level in reversed(merged)]


def decisions(tables: Tables, measure: Measure) -> list[Decision]:
    """The decision at each level where the candidates are others than at all levels before."""
    found: list[Decision] = []
    seen: set[frozenset[Cell]] = set()
    for caps in levels(tables, measure):
        candidates = frozenset(cell for cell in measured(tables, measure) if fits(tables, cell, caps))
        is_new = candidates not in seen and any(is_compared(cell.arm) for cell in candidates)
        decision = decide(tables, measure, caps) if is_new else None
        found += [decision] if decision is not None else []
        seen.add(candidates)
    return found


def decision_table(tables: Tables) -> View:
    """Task x data x compute -> strategy and model, on each task's headline metric."""
    found = [row for measure in tables.headlines for row in decisions(tables, measure)]
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
        "Highest mean among the cells that need no more unique text and pretraining FLOPs than a row allows; "
        "image-text strategies train on the pairs of the same data budget. Compute levels: what the dearest "
        "strategy of a model and a budget takes. Certainty: in how many of 10,000 bootstraps over seeds it "
        "stays the best; few seeds make it too sure. Minus scratch: the best cell without pretraining, of any "
        "model; p: t test paired by "
        "seed, Holm-corrected over the row's candidates. Not told apart: p > 0.05 against the best, "
        "uncorrected. The best of several is flattered by chance, its certainty as well. "
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
