"""Verdicts on claims -> the table that a report opens with, and its CSV."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis.claims import CROSSOVER, EQUIVALENCE, VARIANCE_RATIO, Claims, flip_note, read_claims
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
    detectable_ratio,
    seeds_needed,
    t_reach,
    tost_reach,
)
from bench.analysis.judging import Judged, judge
from bench.analysis.stats import LEVEL

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
    rows = [_row(tables, one) for one in judged]
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
    header += ["p (flip)", "power", "test", "source"]
    note = f"{_counts(judged)} {_note(asked, judged)}"
    return View("claims", "Claims and their verdicts", note, header, "llrrrlllrlll", rows)


@lru_cache(maxsize=1)  # for the page and for its CSV
def _judged(tables: Tables, study: Path) -> tuple[Claims | None, list[Judged]]:
    asked = read_claims(study)
    return asked, judge(tables, asked) if asked else []


def _row(tables: Tables, one: Judged) -> list[Entry]:
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
        EMPTY if evidence.p_flip is None else p_value(evidence.p_flip),
        _detail(one),
        one.claim.test.replace("_", " "),
        one.claim.source,
    ]


def _contrast(tables: Tables, one: Judged) -> Entry:
    """Return the cells of both sides, each as a link to its runs."""
    if not one.evidence.pairs:
        return f"{one.claim.left.strategy} − {one.claim.right.strategy}"
    sides = zip(*one.evidence.pairs, strict=True)
    left, right = (_cells(tables, dict.fromkeys(cells)) for cells in sides)
    return [*left, Link("−"), *right]


def _cells(tables: Tables, cells: Iterable[Cell]) -> list[Link]:
    found = []
    for cell in cells:
        runs = [run_id for run_id, _ in tables.ids_of(cell)]
        href = f"#{run_anchor(runs[0])}" if runs else ""
        found.append(Link(short_label(tables, cell), href, f"runs {' '.join(runs)}"))
    return found


def _effect(one: Judged) -> str:
    evidence = one.evidence
    if evidence.estimate is not None:
        low, high = (number(bound, signed=True) for bound in evidence.estimate.bounds(one.level))
        return f"{number(evidence.estimate.mean, signed=True)} [{low}, {high}]"
    if evidence.ratio is not None:
        ratio = evidence.ratio
        return f"variance × {number(ratio.ratio)} [{number(ratio.low)}, {number(ratio.high)}]"
    if evidence.crossing is not None:
        return _crossing(evidence.crossing, str(one.claim.axis))
    return EMPTY


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
    return EMPTY if effect is None else f"{sign}{number(effect)}"


def _n(one: Judged) -> str:
    evidence = one.evidence
    if evidence.estimate is not None:
        items = evidence.estimate.n_items
        return f"{evidence.estimate.n_seeds} seeds" + (f" × {items:,} items" if items else "")
    known = evidence.ratio or evidence.crossing
    return EMPTY if known is None else f"{known.n} seeds"


def _detail(one: Judged) -> str:
    """Return why a claim was not run, or the power of the study if the claim is undecided."""
    if one.evidence.why_not or one.evidence.gated:
        return one.evidence.why_not or one.evidence.gated
    if one.verdict != "undecided":
        return EMPTY
    alpha, effect = 1 - one.level, one.claim.smallest_effect or 0.0
    if one.evidence.estimate is not None:
        return _power(one.evidence.estimate, effect, alpha, is_equal=one.claim.test == EQUIVALENCE)
    if one.evidence.ratio is not None:
        least = detectable_ratio(one.evidence.ratio.n, alpha)
        return f"{one.evidence.ratio.n} seeds detect a variance ratio of {number(least)} or more"
    return "the interval of the crossover reaches beyond the claimed range"


def _power(estimate: Estimate, effect: float, alpha: float, *, is_equal: bool) -> str:
    if is_equal:
        seen, reach = tost_reach(alpha, estimate.df) * estimate.se, tost_reach
        text = f"equivalence within ±{number(seen)} can be shown"
    else:
        seen, reach = detectable(estimate, alpha), t_reach
        text = f"a difference of {number(seen)} or more can be detected"
    if seen <= effect:
        return text
    n = seeds_needed(estimate, effect, alpha, reach)
    needed = "more items, since no number of seeds is enough" if n is None else f"{n} seeds"
    return f"{text}; an effect of {number(effect)} needs {needed}"


def _note(asked: Claims, judged: list[Judged]) -> str:
    n = len(judged)
    seeds = [one.evidence.estimate.n_seeds for one in judged if one.evidence.estimate is not None]
    flips = f" {flip_note(n, max(seeds))}" if seeds else ""
    return (
        f"The claims were written on {asked.written}, before the runs. Effect: the difference paired by "
        "seed, in the unit of the metric, positive where the left condition is better. Brackets: its t "
        f"interval at {100 * judged[0].level:.2f} %, so that the intervals of all {n} claims hold "
        f"together with {100 * LEVEL:.0f} % (Bonferroni; claims that were not run count, too). It covers "
        "new seeds, and new items where the outcomes of single items are recorded. The verdict is the "
        "place of the interval against 0 and the smallest effect of interest, as docs/claims.md defines "
        "it. A variance ratio is tested by Brown and Forsythe, a crossover by one-sided t tests at both "
        "ends of the claimed range; their brackets are 95 % bootstrap intervals over seeds. p "
        "(adjusted): the p value of the test times the number of claims. Power: what the test detects "
        f"with {100 * POWER:.0f} % power, if the variance found here is the true one. p (flip): exact "
        f"sign-flip test over seeds, uncorrected.{flips}"
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
    estimate, ratio, crossing = one.evidence.estimate, one.evidence.ratio, one.evidence.crossing
    spread: tuple[float | None, float | None, float | None, int | None] = (None, None, None, None)
    if estimate is not None:
        spread = (estimate.mean, *estimate.bounds(one.level), estimate.n_seeds)
    elif ratio is not None:
        spread = (ratio.ratio, ratio.low, ratio.high, ratio.n)
    elif crossing is not None:
        spread = (crossing.at, crossing.low, crossing.high, crossing.n)
    measure, decided = one.evidence.measure, one.evidence.decided
    cells = dict.fromkeys(cell for pair in one.evidence.pairs for cell in pair)
    return {
        "claim": one.name,
        "test": one.claim.test,
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
        "p_sign_flip": one.evidence.p_flip,
        "verdict": one.verdict,
        "detail": _detail(one),
        "run_ids": " ".join(run_id for cell in cells for run_id, _ in tables.ids_of(cell)),
    }
