"""Claims and tables -> verdicts: each claim is tested with the runs of its study.

All claims of a study are one family of tests, those without numbers included. Each claim has one interval, at
the level of Bonferroni's correction over the family, so that all intervals hold together; the verdict is the
place of that interval against the smallest effect of interest. Intervals at the levels of Holm's steps would
be narrower, but they do not hold together where a verdict depends on more than one bound.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import pandas as pd

from bench.analysis.claims import (
    CROSSOVER,
    EQUIVALENCE,
    NON_INFERIORITY,
    SUPERIORITY,
    VARIANCE_RATIO,
    Claim,
    Claims,
    Side,
    suggestion,
)
from bench.analysis.format import cell_label
from bench.analysis.frames import BASELINE, Cell, Condition, Measure, Tables
from bench.analysis.gate import why_not
from bench.analysis.inference import (
    Array,
    Crossover,
    Decided,
    Estimate,
    Ratio,
    crossed,
    crossover,
    equivalence,
    matrix,
    outcomes,
    seeds_alone,
    superiority,
    variance_ratio,
)
from bench.analysis.stats import LEVEL, pool_series, sign_flip_p

Pair = tuple[Cell, Cell]  # left and right


class LackingError(Exception):
    """A claim cannot be tested; the message says why."""


def measure_of(tables: Tables, claim: Claim) -> Measure:
    """Return the claim's metric, with the label count that it asks for or else the largest."""
    tasks = sorted({measure.task for measure in tables.measures})
    _require_known(claim.task, tasks, "task")
    own = [measure for measure in tables.measures if measure.task == claim.task]
    _require_known(claim.metric, sorted({measure.metric for measure in own}), f"metric of {claim.task}")
    counts = [m for m in own if m.metric == claim.metric and claim.n_labels in (None, m.n_labels)]
    if not counts:
        raise LackingError(f"{claim.task}: {claim.metric} was not measured with {claim.n_labels} labels")
    return max(counts, key=lambda measure: measure.n_labels or 0)


def sign_of(tables: Tables, claim: Claim, measure: Measure) -> int:
    """Return 1 if higher is better and -1 if lower is.

    It is 0 if neither is, which only a claim on the variance allows.
    """
    sign = tables.measures[measure].sign
    asked = {"higher": 1, "lower": -1, None: 0}[claim.better]
    if asked and sign and asked != sign:
        raise LackingError(
            f"better: {claim.better} contradicts the task, which says the opposite of {claim.metric}"
        )
    if not (asked or sign or claim.test == VARIANCE_RATIO):
        raise LackingError(
            f"{claim.metric} only describes: add `better: higher` or `better: lower` to the claim"
        )
    return sign or asked


def pairs_of(tables: Tables, claim: Claim) -> tuple[Pair, ...]:
    """Return the cells to compare: those of the pretrained side, each with its partner."""
    sides = [(_condition(tables, side), side.within(claim.cells)) for side in (claim.left, claim.right)]
    order = 1 if sides[0][0].strategy == BASELINE else 0
    (condition, own), (other, partner) = sides[order], sides[1 - order]
    cells = [cell for cell in tables.cells if cell.condition == condition and _is_at(cell, own)]
    if not cells:
        raise LackingError(_no_cell(tables, condition, own))
    found = []
    for cell in cells:
        budget = None if other.strategy == BASELINE else partner.budget or cell.budget
        mate = Cell(other, partner.model or cell.model, budget)
        found.append((cell, mate) if order == 0 else (mate, cell))
    return tuple(found)


def _condition(tables: Tables, side: Side) -> Condition:
    strategies = sorted({condition.strategy for condition in tables.conditions})
    _require_known(side.strategy or "", strategies, "strategy")
    condition = Condition(side.strategy or "", side.variant or "")
    variants = sorted(a.variant for a in tables.conditions if a.strategy == condition.strategy)
    _require_known(condition.variant, variants, f"variant of {condition.strategy}")
    return condition


def _is_at(cell: Cell, side: Side) -> bool:
    is_pretrained = cell.condition.strategy != BASELINE
    at_budget = side.budget in (None, cell.budget) or not is_pretrained
    return at_budget and side.model in (None, cell.model)


def _no_cell(tables: Tables, condition: Condition, side: Side) -> str:
    places = ", ".join(
        f"{cell.model} {cell.budget or ''}".strip() for cell in tables.cells if cell.condition == condition
    )
    asked = f"model={side.model or 'any'}, budget={side.budget or 'any'}"
    return f"no run of {condition.label} with {asked}; there are {places}"


def _require_known(name: str, known: Sequence[str], what: str) -> None:
    if name not in known:
        raise LackingError(f"no {what} {name!r} in this study{suggestion(name, known)}")


def require_complete(tables: Tables, claim: Claim, measure: Measure, pairs: Sequence[Pair]) -> None:
    """Raise if a cell is missing or a run was lost, since the others would be a biased sample."""
    for cell, side in (
        (cell, side) for pair in pairs for cell, side in zip(pair, (claim.left, claim.right), strict=True)
    ):
        seeds = [seed for _, seed in tables.ids_of(cell)]
        wanted = [side.seeds is None or seed in side.seeds for seed in seeds]
        where = cell_label(cell, " ")
        missing = sorted(set(side.seeds or ()) - set(seeds))
        chosen = tables.runs["exploratory"].iloc[tables.rows_of(cell)]
        if chosen.any():
            raise LackingError(f"{where} was chosen by a search, which only explores")
        if missing or not any(wanted):
            raise LackingError(f"no run of {where}{f' with seed {missing[0]}' if missing else ''}")
        if (cell.condition, measure.task) in tables.inapplicable:
            reason = tables.inapplicable[cell.condition, measure.task]
            raise LackingError(f"{cell.condition.label} cannot do {measure.task}: {reason}")
        lost = tables.why_lost(measure.task)[tables.rows_of(cell)]
        n_lost = sum(asked and why is not None for asked, why in zip(wanted, lost, strict=True))
        if n_lost:
            raise LackingError(f"{n_lost} of {sum(wanted)} runs of {where} lost")
        if tables.seed_values(measure, cell).empty:
            raise LackingError(f"{where} has no score of {measure.task}")


Verdict = Literal[
    "supported",
    "supported in direction only",
    "too small to matter",
    "not as large as claimed",
    "opposite direction",
    "contradicted",
    "undecided",
    "not informative here",
    "not run",
]
T = TypeVar("T")


@dataclass(frozen=True)
class Evidence:
    """The result of a claim's test; effects are above 0 if `left` is better."""

    measure: Measure | None = None
    pairs: tuple[Pair, ...] = ()  # of cells, left and right
    estimate: Estimate | None = None
    ratio: Ratio | None = None
    crossing: Crossover | None = None
    decided: Decided | None = None
    p_flip: float | None = None  # exact sign-flip test over seeds, where the claim has a bound to test
    why_not: str = ""  # why there is no evidence
    gated: str = ""  # why the task is not informative in this study, so that the claim has no verdict


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict."""

    name: str
    claim: Claim
    evidence: Evidence
    verdict: Verdict
    p_adjusted: float | None  # times the number of claims, at most 1
    level: float  # of the claim's interval, so that the intervals of all claims hold together


def judge(tables: Tables, claims: Claims) -> list[Judged]:
    """Return a verdict on each claim, in the order of the file.

    All claims of a study are one family, those without numbers included: each is judged by its interval at
    the level of Bonferroni, so the intervals of all claims hold together with at least 95 % probability.
    """
    n = len(claims.claims)
    alpha = (1 - LEVEL) / n
    found = {name: (claim, examine(tables, claim)) for name, claim in claims.claims.items()}
    return [
        Judged(
            name,
            claim,
            evidence,
            _verdict(claim, evidence, alpha),
            min(1.0, n * evidence.decided.p) if evidence.decided else None,
            1 - alpha,
        )
        for name, (claim, evidence) in found.items()
    ]


def _verdict(claim: Claim, evidence: Evidence, alpha: float) -> Verdict:
    if evidence.why_not or evidence.decided is None:
        return "not run"
    if evidence.gated:
        return "not informative here"
    if evidence.estimate is not None:
        effect = claim.smallest_effect or 0.0
        return _BY_TEST[claim.test](Place(evidence.estimate, effect, alpha / 2))
    if evidence.decided.p_for <= alpha:
        return "supported"
    return "contradicted" if evidence.decided.p_against <= alpha else "undecided"


@dataclass(frozen=True)
class Place:
    """Where the interval of an effect lies against -D, 0 and +D, where D is the smallest effect of interest.

    The interval excludes a bound exactly if the one-sided test at the bound rejects at half the interval's
    error rate, here `tail`.
    """

    estimate: Estimate
    smallest_effect: float
    tail: float

    def above(self, times: int) -> bool:
        """Return whether the whole interval lies above `times` D."""
        return self.estimate.p_above(times * self.smallest_effect) <= self.tail

    def below(self, times: int) -> bool:
        """Return whether the whole interval lies below `times` D."""
        return self.estimate.p_below(times * self.smallest_effect) <= self.tail


def superiority_verdict(at: Place) -> Verdict:
    """Return the region in which the interval lies."""
    if at.above(1):
        return "supported"
    if at.above(-1) and at.below(1):
        return "too small to matter"
    if at.above(0):
        return "supported in direction only"
    if at.below(0):
        return "opposite direction"
    return "not as large as claimed" if at.below(1) else "undecided"


def _no_worse(at: Place) -> Verdict:
    return "supported" if at.above(-1) else "contradicted" if at.below(-1) else "undecided"


def _equivalent(at: Place) -> Verdict:
    if at.above(-1) and at.below(1):
        return "supported"
    return "contradicted" if at.above(1) or at.below(-1) else "undecided"


_BY_TEST: Mapping[str, Callable[[Place], Verdict]] = {
    SUPERIORITY: superiority_verdict,
    NON_INFERIORITY: _no_worse,
    EQUIVALENCE: _equivalent,
}


def examine(tables: Tables, claim: Claim) -> Evidence:
    """Return the evidence on one claim; if a cell or run is missing, only the reason."""
    found = Evidence()
    try:
        measure = measure_of(tables, claim)
        found = replace(found, measure=measure, gated=why_not(tables, measure.task))
        found = replace(found, pairs=pairs_of(tables, claim))
        require_complete(tables, claim, measure, found.pairs)
        return _tested(tables, claim, found, measure, sign_of(tables, claim, measure))
    except LackingError as lacking:
        return replace(found, why_not=str(lacking))


def _tested(tables: Tables, claim: Claim, found: Evidence, measure: Measure, sign: int) -> Evidence:
    if claim.test == CROSSOVER:
        return _crossing(tables, claim, found, measure, sign)
    if claim.test == VARIANCE_RATIO:
        return _spread(tables, claim, found, measure)
    gains = _gains(tables, claim, measure, found.pairs, sign)
    estimate, gaps = gains.estimate, gains.by_seed
    margin = claim.smallest_effect or 0.0
    if claim.test == EQUIVALENCE:
        return replace(found, estimate=estimate, decided=equivalence(estimate, margin))
    bound = -margin if claim.test == NON_INFERIORITY else 0.0
    flipped = sign_flip_p([gap - bound for gap in gaps])
    return replace(found, estimate=estimate, decided=superiority(estimate, bound), p_flip=flipped)


@dataclass(frozen=True)
class Gains:
    """Differences above 0 if `left` is better: by seed, and by seed and item (S, I) where items are known."""

    by_seed: pd.Series
    items: Array | None

    @property
    def estimate(self) -> Estimate:
        """Estimate their mean, over new seeds and new items where items are known."""
        return seeds_alone(self.by_seed) if self.items is None else crossed(self.items)


def _gains(tables: Tables, claim: Claim, measure: Measure, pairs: Sequence[Pair], sign: int) -> Gains:
    """Return the differences on a measure, averaged over the pairs of cells.

    Raises:
        LackingError: fewer than two seeds are shared.
    """
    gaps = pool_series([_gaps(tables, claim, measure, pair, sign) for pair in pairs])
    if len(gaps) < 2:
        raise LackingError(
            f"{len(gaps)} seed{'s' if len(gaps) != 1 else ''} in common: a test takes two or more"
        )
    matrices = []
    for left, right in pairs:
        sides = (
            _renumbered(outcomes(tables, measure, cell), side.seeds)
            for cell, side in ((left, claim.left), (right, claim.right))
        )
        found = matrix(*sides)
        if found is None or found[0] != tuple(gaps.index):
            return Gains(gaps, None)
        matrices.append(sign * found[1])
    if len({values.shape for values in matrices}) != 1:
        return Gains(gaps, None)
    return Gains(gaps, np.mean(matrices, axis=0))


def _gaps(tables: Tables, claim: Claim, measure: Measure, pair: Pair, sign: int) -> pd.Series:
    sides = zip(pair, (claim.left, claim.right), strict=True)
    left, right = (_values(tables, measure, *side) for side in sides)
    return sign * (left - right).dropna()


def _values(tables: Tables, measure: Measure, cell: Cell, side: Side) -> pd.Series:
    own = dict(tables.seed_values(measure, cell))
    return pd.Series(_renumbered(own, side.seeds), dtype="float64")


def _renumbered(by_seed: Mapping[int, T], seeds: Sequence[int] | None) -> dict[int, T]:
    """Return values by seed, or by position among `seeds` if these are given."""
    if seeds is None:
        return dict(sorted(by_seed.items()))
    return {i: by_seed[seed] for i, seed in enumerate(seeds) if seed in by_seed}


def _spread(tables: Tables, claim: Claim, found: Evidence, measure: Measure) -> Evidence:
    sides = [
        pool_series([_values(tables, measure, pair[i], side) for pair in found.pairs])
        for i, side in enumerate((claim.left, claim.right))
    ]
    both = pd.concat(sides, axis=1, join="inner").sort_index()
    ratio = variance_ratio(*both.to_numpy().T)
    if ratio is None:
        raise LackingError(
            f"{len(both)} seeds in common, or no spread: a ratio takes three seeds with a spread"
        )
    is_less = ratio.ratio > 1  # the right side spreads more
    return replace(
        found, ratio=ratio, decided=Decided(ratio.p if is_less else 1.0, 1.0 if is_less else ratio.p)
    )


def _crossing(tables: Tables, claim: Claim, found: Evidence, measure: Measure, sign: int) -> Evidence:
    """Return the crossover, and the p values of "within the claimed range" and of "outside it".

    The crossover lies within the range if `left` leads at its lower end and trails at its upper end; both
    one-sided tests have to reject (intersection-union test, Berger 1982), so p is the larger of the two.
    """
    points = _points(tables, claim, measure, found.pairs)
    gains = {x: _gains(tables, claim, *points[x], sign) for x in sorted(points)}
    crossing = crossover(pd.DataFrame({x: own.by_seed for x, own in gains.items()}))
    if crossing is None:
        raise LackingError(f"no two points of {claim.axis} with two seeds in common")
    low, high = (_interpolated(gains, x).estimate for x in claim.between or (0.0, 0.0))
    inside = max(low.p_above(0.0), high.p_below(0.0))
    outside = min(1.0, 2 * min(low.p_below(0.0), high.p_above(0.0)))
    return replace(found, crossing=crossing, decided=Decided(inside, outside))


def _points(
    tables: Tables, claim: Claim, measure: Measure, pairs: Sequence[Pair]
) -> dict[int, tuple[Measure, list[Pair]]]:
    """Return the measure and the pairs of cells at each label count or number of tokens."""
    if claim.axis == "labels":
        same = [m for m in tables.measures if m[:2] == measure[:2]]
        return {m.n_labels: (m, list(pairs)) for m in same if m.n_labels}
    found: dict[int, tuple[Measure, list[Pair]]] = {}
    for pair in pairs:
        found.setdefault(_tokens(tables, pair), (measure, []))[1].append(pair)
    return found


def _interpolated(gains: Mapping[int, Gains], at: float) -> Gains:
    """Return the gains at a point, linear in the logarithm of the axis between the measured points.

    A point outside of what was measured stands for the nearest measured one.
    """
    xs = sorted(gains)
    at = min(max(at, xs[0]), xs[-1])
    right = next(i for i, x in enumerate(xs) if x >= at)
    one, other = gains[xs[max(right - 1, 0)]], gains[xs[right]]
    width = math.log(xs[right] / xs[max(right - 1, 0)])
    share = math.log(at / xs[right - 1]) / width if width else 1.0
    by_seed = ((1 - share) * one.by_seed + share * other.by_seed).dropna()
    if len(by_seed) < 2:
        raise LackingError(f"{len(by_seed)} seeds in common at the ends of the range: a test takes two")
    if one.items is None or other.items is None or one.items.shape != other.items.shape:
        return Gains(by_seed, None)
    return Gains(by_seed, (1 - share) * one.items + share * other.items)


def _tokens(tables: Tables, pair: Pair) -> int:
    """Return the training tokens of a pair, the larger number of the two."""
    return int(max(tables.runs_of(cell)["forward_tokens"].fillna(0).max() for cell in pair))
