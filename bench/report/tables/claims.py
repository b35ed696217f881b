"""Verdicts on claims -> the table that a report opens with, and its CSV."""

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis.claims import CROSSOVER, EQUIVALENCE, SLOPE, VARIANCE_RATIO, Claims, read_claims
from bench.analysis.format import (
    EMPTY,
    Entry,
    Link,
    View,
    measure_link,
    number,
    p_value,
    run_anchor,
    short_label,
)
from bench.analysis.frames import Cell, Tables
from bench.analysis.inference import (
    BEFORE,
    BEYOND,
    POWER,
    Crossover,
    Estimate,
    detectable,
    seeds_needed,
    t_reach,
    tost_reach,
)
from bench.analysis.judging import Judged, Verdict, judge, smallest_effect
from bench.analysis.rates import at_shared_rate
from bench.analysis.stats import LEVEL
from bench.analysis.untrained import shown_cell

_MARKS = {
    "supported": "✓",
    "supported in direction only": "✓",
    "too small to matter": "=",
    "not as large as claimed": "✗",
    "opposite direction": "✗",
    "contradicted": "✗",
    "undecided": "?",
    "not informative here": "–",
    "not run": "–",
}


def claims(tables: Tables, study: Path) -> View | None:
    """Return a table with a row per claim; None if the study has no claims.

    Raises:
        ConfigError: the file is malformed.
    """
    asked, judged = _judged(tables, study)
    if asked is None:
        return None
    is_split = any(one.claim.primary for one in judged)
    rows = [_row(tables, one, is_split=is_split) for one in judged]
    header = [
        "claim",
        "verdict",
        "effect",
        "smallest effect of interest",
        "p (adjusted)",
        "n",
        "left − right",
        "task: metric",
    ]
    header += ["correlation", "power", "test", "family", "reason for the smallest effect", "source"]
    note, align = f"{_counts(judged)} {_note(asked, judged)}", "llrrrlllrlllll"
    if shared := at_shared_rate(tables, asked):
        header, align = [*header, "verdict at the shared rate"], align + "l"
        rows = [[*row, _at_rate(one, shared)] for row, one in zip(rows, judged, strict=True)]
        note += " Verdicts are those at tuned rates; the last column marks those that depend on the rate."
    return View("claims", "Claims and their verdicts", note, header, align, rows)


def _at_rate(one: Judged, shared: Mapping[str, Verdict]) -> str:
    """Return the verdict at the shared rate, and whether it differs."""
    if one.name not in shared:
        return EMPTY
    other = shared[one.name]
    return other if other == one.verdict else f"{other} (depends on the rate)"


@lru_cache(maxsize=1)  # for the page and for its CSV
def _judged(tables: Tables, study: Path) -> tuple[Claims | None, list[Judged]]:
    asked = read_claims(study)
    return asked, judge(tables, asked) if asked else []


def _row(tables: Tables, one: Judged, *, is_split: bool) -> list[Entry]:
    evidence, measure = one.evidence, one.evidence.measure
    return [
        one.claim.statement,
        f"{_MARKS[one.verdict]} {one.verdict}",
        _effect(one),
        _threshold(one),
        EMPTY if one.p_adjusted is None else p_value(one.p_adjusted),
        _n(one),
        _contrast(tables, one),
        [measure_link(tables, measure)] if measure else f"{one.claim.task}: {one.claim.metric}",
        EMPTY if evidence.correlation is None else number(evidence.correlation, signed=True),
        _detail(one),
        one.claim.test.replace("_", " "),
        "primary" if one.claim.primary else "secondary" if is_split else EMPTY,
        one.claim.reason or EMPTY,
        one.claim.source,
    ]


def _contrast(tables: Tables, one: Judged) -> Entry:
    """Return the cells of both sides, each as a link to its runs."""
    if one.evidence.levels:
        found = [_cells(tables, one, [cell]) for cell in one.evidence.levels]
        return [link for i, own in enumerate(found) for link in ([Link("→")] if i else []) + own]
    if not one.evidence.pairs:
        levels = " → ".join(str(level.strategy) for level in one.claim.levels)
        return levels or f"{one.claim.left.strategy} − {one.claim.right.strategy}"
    sides = zip(*one.evidence.pairs, strict=True)
    left, right = (_cells(tables, one, dict.fromkeys(cells)) for cells in sides)
    return [*left, Link("−"), *right]


def _cells(tables: Tables, one: Judged, cells: Iterable[Cell]) -> list[Link]:
    found = []
    for cell in cells:
        runs = [run_id for run_id, _ in tables.ids_of(cell)]
        href = f"#{run_anchor(runs[0])}" if runs else ""
        name = short_label(tables, shown_cell(tables, cell, [one.claim.task]))
        found.append(Link(name, href, f"runs {' '.join(runs)}"))
    return found


def _effect(one: Judged) -> str:
    evidence = one.evidence
    if evidence.estimate is not None:
        is_ratio = one.claim.test == VARIANCE_RATIO
        mean, low, high = (number(value, signed=not is_ratio) for value in _numbers(one, evidence.estimate))
        return f"{'variance × ' if is_ratio else ''}{mean} [{low}, {high}]"
    if evidence.crossing is not None:
        return _crossing(evidence.crossing, str(one.claim.axis))
    return EMPTY


def _numbers(one: Judged, estimate: Estimate) -> tuple[float, float, float]:
    """Return the effect with the bounds that decided; a ratio of variances is estimated by its logarithm."""
    low, high = estimate.bounds(one.level)
    if one.claim.test == VARIANCE_RATIO:
        return math.exp(estimate.mean), math.exp(low), math.exp(high)
    return estimate.mean, low, high


def _crossing(point: Crossover, axis: str) -> str:
    """Format a crossover: `until 412 labels [120, > most labels]`; a range of one point is left out."""
    whole = {BEFORE: "never", BEYOND: f"still with the most {axis}"}
    at = whole.get(point.at) or f"until {point.at:,.0f} {axis}"
    if point.at == point.low == point.high:
        return at
    low, high = point.bounds_as("{:,.0f}".format, f"< fewest {axis}", f"> most {axis}") or (EMPTY, EMPTY)
    return f"{at} [{low}, {high}]"


def _threshold(one: Judged) -> str:
    if one.claim.test == CROSSOVER:
        low, high = one.claim.between or (0.0, 0.0)
        return f"{low:,.0f} to {high:,.0f}"
    effect = one.claim.smallest_effect
    sign = {EQUIVALENCE: "±", VARIANCE_RATIO: "× "}.get(one.claim.test, "")
    unit = (
        {"linear": " per unit", "log2": " per doubling"}[str(one.claim.axis)]
        if one.claim.test == SLOPE
        else ""
    )
    return EMPTY if effect is None else f"{sign}{number(effect)}{unit}"


def _n(one: Judged) -> str:
    evidence = one.evidence
    if evidence.estimate is not None:
        items = evidence.estimate.n_items
        kind = "paired seeds" if evidence.is_paired else "seeds each"
        return f"{evidence.estimate.n_seeds} {kind}" + (f" × {items:,} items" if items else "")
    return EMPTY if evidence.crossing is None else f"{evidence.crossing.n} seeds"


def _detail(one: Judged) -> str:
    """Return why a claim was not run, or the power of the study if the claim is undecided."""
    if one.evidence.why_not or one.evidence.gated:
        return one.evidence.why_not or one.evidence.gated
    if one.verdict != "undecided":
        return EMPTY
    estimate, alpha, effect = one.evidence.estimate, 1 - one.level, smallest_effect(one.claim)
    if estimate is None:
        return "the order at one end of the claimed range is not clear"
    if one.claim.test == EQUIVALENCE:
        seen, reach = tost_reach(alpha, estimate.df) * estimate.se, tost_reach
        text = "equivalence within ±{} can be shown"
    else:
        seen, reach = detectable(estimate, alpha), t_reach
        what = {VARIANCE_RATIO: "variance ratio", SLOPE: "slope"}.get(one.claim.test, "difference")
        text = f"a {what} of {{}} or more can be detected"
    is_ratio = one.claim.test == VARIANCE_RATIO
    text = text.format(number(math.exp(seen) if is_ratio else seen))
    if seen <= effect:
        return text
    n = seeds_needed(estimate, effect, alpha, reach)
    needed = "more items, since no number of seeds is enough" if n is None else f"{n} seeds"
    return f"{text}; an effect of {number(one.claim.smallest_effect or 0.0)} needs {needed}"


def _note(asked: Claims, judged: list[Judged]) -> str:
    n, n_primary = len(judged), sum(one.claim.primary for one in judged)
    levels = {one.claim.primary: f"{100 * one.level:.2f} %" for one in judged}
    at = f"at {levels.get(True) or levels[False]}"
    if 0 < n_primary < n:
        counts = f"{levels[False]} ({n - n_primary} secondary claims)"
        at = f"at {levels[True]} ({n_primary} primary claims) or {counts}"
    changes = "".join(f" Amended on {day}: {text.rstrip('.')}." for day, text in asked.amendments.items())
    return (
        f"The claims were written on {asked.written}, before the runs.{changes} Effect: the difference in "
        "the unit of the metric, positive where the left condition is better; for a slope, the change along "
        f"its axis. Brackets: its t interval {at}, so that the intervals of all {n} claims hold together "
        f"with {100 * LEVEL:.0f} % (Bonferroni; claims that were not run count, too). It covers new seeds, "
        "and new items where the outcomes of single items are recorded. Seeds are paired only where the runs "
        "share a trunk or a checkpoint; correlation: that of both sides over equal seeds, shown and not "
        "used. The verdict is the place of the interval against 0 and the smallest effect of interest, as "
        "docs/claims.md defines it. A variance ratio is that of fine-tunings of one checkpoint, compared "
        "over seeds by its logarithm. A crossover is tested by one-sided tests at both ends of the claimed "
        "range; its brackets are the measured points between which the order is not clear at 95 %. p "
        "(adjusted): the p value of the test, corrected as its interval is. Power: what the test detects "
        f"with {100 * POWER:.0f} % power, if the variance found here is the true one."
    )


def _counts(judged: list[Judged]) -> str:
    """Count verdicts: `Of 15 claims: 3 supported, 2 contradicted.`"""
    verdicts = [one.verdict for one in judged]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in _MARKS if verdict in verdicts]
    return f"Of {len(judged)} claims: {', '.join(counts)}."


def claim_frame(tables: Tables, study: Path) -> pd.DataFrame:
    """Return one row per claim with full precision; empty where the study has none."""
    return pd.DataFrame([_record(tables, one) for one in _judged(tables, study)[1]])


def _record(tables: Tables, one: Judged) -> dict[str, Any]:
    estimate, crossing = one.evidence.estimate, one.evidence.crossing
    spread: tuple[float | None, float | None, float | None, int | None] = (None, None, None, None)
    if estimate is not None:
        spread = (*_numbers(one, estimate), estimate.n_seeds)
    elif crossing is not None:
        spread = (crossing.at, crossing.low, crossing.high, crossing.n)
    measure, decided = one.evidence.measure, one.evidence.decided
    return {
        "claim": one.name,
        "test": one.claim.test,
        "primary": one.claim.primary,
        "left": one.claim.left.strategy,
        "right": one.claim.right.strategy,
        "task": one.claim.task,
        "metric": one.claim.metric,
        "n_labels": measure.n_labels if measure else None,
        **dict(zip(("effect", "low", "high", "n_seeds"), spread, strict=True)),
        "n_items": estimate.n_items if estimate else None,
        "smallest_effect": one.claim.smallest_effect,
        "p": decided.p if decided else None,
        "p_adjusted": one.p_adjusted,
        "level": one.level,
        "correlation": one.evidence.correlation,
        "paired": one.evidence.is_paired,
        "verdict": one.verdict,
        "detail": _detail(one),
        "run_ids": " ".join(run_id for cell in one.evidence.cells for run_id, _ in tables.ids_of(cell)),
    }
