"""Claims and tables -> verdicts: each claim is tested with the runs of its study.

All claims of a study are one family of tests, those without numbers included. Each claim has one interval, at
its share of the error rate (`Claims.error_rates`), so that all intervals hold together; the verdict is the
place of that interval against the smallest effect of interest. Intervals at the levels of Holm's steps would
be narrower, but they do not hold together where a verdict depends on more than one bound.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.special

from bench.analysis.claims import (
    CROSSOVER,
    EQUIVALENCE,
    NON_INFERIORITY,
    SLOPE,
    SUPERIORITY,
    VARIANCE_RATIO,
    Claim,
    Claims,
    Side,
    suggestion,
)
from bench.analysis.error_model import (
    Array,
    Sample,
    arrays_of,
    correlation,
    crossing,
    estimate,
    fits,
    is_paired,
    sample,
)
from bench.analysis.format import cell_label
from bench.analysis.frames import BASELINE, Cell, Condition, Measure, Tables
from bench.analysis.gate import why_not
from bench.analysis.inference import Crossover, Decided, Estimate, equivalence, superiority
from bench.analysis.stats import LEVEL, MIN_SEEDS
from bench.analysis.untrained import require_name, shown, shown_cell

MIN_FITS = 5  # of one checkpoint, for a claim on the spread over fine-tunings
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
    _require_known(side.recorded, strategies, "strategy")
    condition = Condition(side.recorded, side.variant or "")
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
    return f"no run of {shown(tables, condition).label} with {asked}; there are {places}"


def _require_known(name: str, known: Sequence[str], what: str) -> None:
    if name not in known:
        raise LackingError(f"no {what} {name!r} in this study{suggestion(name, known)}")


def require_complete(tables: Tables, measure: Measure, sides: Sequence[tuple[Cell, Side]]) -> None:
    """Raise if a cell is missing or a run was lost, since the others would be a biased sample."""
    for cell, side in sides:
        seeds = [seed for _, seed in tables.ids_of(cell)]
        wanted = [side.seeds is None or seed in side.seeds for seed in seeds]
        where = cell_label(shown_cell(tables, cell, [measure.task]), " ")
        missing = sorted(set(side.seeds or ()) - set(seeds))
        chosen = tables.runs["exploratory"].iloc[tables.rows_of(cell)]
        if chosen.any():
            raise LackingError(f"{where} was chosen by a search, which only explores")
        if missing or not any(wanted):
            raise LackingError(f"no run of {where}{f' with seed {missing[0]}' if missing else ''}")
        if (cell.condition, measure.task) in tables.inapplicable:
            reason = tables.inapplicable[cell.condition, measure.task]
            raise LackingError(
                f"{shown(tables, cell.condition, [measure.task]).label} cannot do {measure.task}: {reason}"
            )
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


@dataclass(frozen=True)
class Evidence:
    """The result of a claim's test; effects are above 0 if `left` is better."""

    measure: Measure | None = None
    pairs: tuple[Pair, ...] = ()  # of cells, left and right
    levels: tuple[Cell, ...] = ()  # of a slope
    estimate: Estimate | None = None  # for a ratio of variances, of its logarithm
    crossing: Crossover | None = None
    decided: Decided | None = None
    correlation: float | None = None  # of the two sides over seeds
    is_paired: bool = False  # by the design
    why_not: str = ""  # why there is no evidence
    gated: str = ""  # why the task is not informative in this study, so that the claim has no verdict

    @property
    def cells(self) -> list[Cell]:
        """Return all cells of both sides or of all levels."""
        return list(dict.fromkeys((*(cell for pair in self.pairs for cell in pair), *self.levels)))


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict."""

    name: str
    claim: Claim
    evidence: Evidence
    verdict: Verdict
    p_adjusted: float | None  # multiplied by what its error rate was divided by, at most 1
    level: float  # of the claim's interval, so that the intervals of all claims hold together


def judge(tables: Tables, claims: Claims) -> list[Judged]:
    """Return a verdict on each claim, in the order of the file.

    All claims of a study are one family, those without numbers included: each is judged by its interval at
    its share of the error rate, so the intervals of all claims hold together with at least 95 % probability.

    Raises:
        ConfigError: a claim names the baseline without pretraining that its task does not have.
    """
    found = []
    for name, alpha in claims.error_rates(1 - LEVEL).items():
        claim = claims.claims[name]
        for where, side in claim.sides().items():
            require_name(tables, side.strategy or "", claim.task, f"claims.{name}.{where}.strategy")
        evidence = examine(tables, claim)
        p = min(1.0, evidence.decided.p * (1 - LEVEL) / alpha) if evidence.decided else None
        found.append(Judged(name, claim, evidence, verdict_of(claim, evidence, alpha), p, 1 - alpha))
    return found


def smallest_effect(claim: Claim) -> float:
    """Return the smallest effect of interest on the scale of the estimate: of a ratio, its logarithm."""
    effect = claim.smallest_effect or 0.0
    return math.log(effect) if claim.test == VARIANCE_RATIO else effect


def verdict_of(claim: Claim, evidence: Evidence, alpha: float) -> Verdict:
    """Return the verdict on a claim, whose interval has the error rate alpha."""
    if evidence.why_not or evidence.decided is None:
        return "not run"
    if evidence.gated:
        return "not informative here"
    if evidence.estimate is not None:
        return _BY_TEST[claim.test](Place(evidence.estimate, smallest_effect(claim), alpha / 2))
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
    VARIANCE_RATIO: superiority_verdict,
    SLOPE: superiority_verdict,
}


def examine(tables: Tables, claim: Claim) -> Evidence:
    """Return the evidence on one claim; if a cell or run is missing, only the reason."""
    found = Evidence()
    try:
        measure = measure_of(tables, claim)
        found = replace(found, measure=measure, gated=why_not(tables, measure.task))
        sign = sign_of(tables, claim, measure)
        if claim.test == SLOPE:
            found = replace(found, levels=_levels_of(tables, claim))
            require_complete(tables, measure, list(zip(found.levels, claim.levels, strict=True)))
            return _slope(tables, claim, found, measure, sign)
        found = replace(found, pairs=pairs_of(tables, claim))
        sides = (claim.left, claim.right)
        require_complete(
            tables, measure, [own for pair in found.pairs for own in zip(pair, sides, strict=True)]
        )
        return _tested(tables, claim, found, measure, sign)
    except LackingError as lacking:
        return replace(found, why_not=str(lacking))


def _tested(tables: Tables, claim: Claim, found: Evidence, measure: Measure, sign: int) -> Evidence:
    if claim.test == CROSSOVER:
        return _crossing(tables, claim, found, measure, sign)
    if claim.test == VARIANCE_RATIO:
        return _spread(tables, claim, found, measure)
    left, right = _sides(tables, claim, measure, found.pairs)
    own = _estimate((left, right), (sign, -sign))
    margin = claim.smallest_effect or 0.0
    decided = (
        equivalence(own, margin)
        if claim.test == EQUIVALENCE
        else superiority(own, -margin if claim.test == NON_INFERIORITY else 0.0)
    )
    return replace(
        found,
        estimate=own,
        decided=decided,
        correlation=correlation(left, right),
        is_paired=is_paired(left, right),
    )


def _sides(tables: Tables, claim: Claim, measure: Measure, pairs: Sequence[Pair]) -> tuple[Sample, Sample]:
    """Return the scores of both sides, averaged over their cells within each seed."""
    left, right = zip(*pairs, strict=True)
    return (
        sample(tables, measure, left, claim.left.seeds),
        sample(tables, measure, right, claim.right.seeds),
    )


def _estimate(samples: Sequence[Sample], weights: Sequence[float]) -> Estimate:
    """Return the estimate of a weighted sum.

    Raises:
        LackingError: there are too few seeds.
    """
    found = estimate(samples, weights)
    if found is None:
        n = min(len(own.seeds) for own in samples)
        raise LackingError(f"{n} seed{'s' if n != 1 else ''}: a test takes {MIN_SEEDS} or more of each side")
    return found


def _spread(tables: Tables, claim: Claim, found: Evidence, measure: Measure) -> Evidence:
    """Compare the spread over fine-tunings of one checkpoint, right over left, on a logarithmic scale.

    The logarithm of the variance over fits is one value for each seed, and these values are compared over
    seeds (Bartlett and Kendall 1946), so a heavy tail of scores widens the interval.
    """
    sides = (claim.left, claim.right)
    spreads = [
        _log_variances(tables, measure, [pair[i] for pair in found.pairs], side)
        for i, side in enumerate(sides)
    ]
    own = _estimate(spreads, (-1.0, 1.0))
    return replace(found, estimate=own, decided=superiority(own), is_paired=is_paired(*spreads))


def _log_variances(tables: Tables, measure: Measure, cells: Sequence[Cell], side: Side) -> Sample:
    """Return the logarithm of the variance over fits by seed, averaged over cells, without its known bias."""
    own = sample(tables, measure, cells, side.seeds)
    logs = np.zeros(len(own.seeds))
    for cell in cells:
        ids = {seed: run_id for run_id, seed in tables.ids_of(cell)}
        for i, seed in enumerate(own.seeds):
            outcomes = fits(arrays_of(tables, ids[seed], measure.task), measure)
            n = 1 if outcomes is None else len(outcomes)
            if outcomes is None or n < MIN_FITS:
                where = cell_label(shown_cell(tables, cell, [measure.task]), " ")
                raise LackingError(f"needs {MIN_FITS} fits of each checkpoint; {where} has {n}")
            logs[i] += log_variance(outcomes.mean(axis=1)) / len(cells)
    return Sample(own.seeds, logs, None, own.origins)


def log_variance(scores: Array) -> float:
    """Return the logarithm of the variance of scores (F,) of fits, whose mean is that of the true variance.

    Raises:
        LackingError: all scores are equal.
    """
    half, variance = (len(scores) - 1) / 2, float(scores.var(ddof=1))
    if not variance:
        raise LackingError("all fits of one checkpoint have the same score")
    return math.log(variance) - float(scipy.special.digamma(half)) + math.log(half)


def _levels_of(tables: Tables, claim: Claim) -> tuple[Cell, ...]:
    """Return the cell of each level of a slope.

    Raises:
        LackingError: a level has no cell, or several.
    """
    found = []
    for level in claim.levels:
        condition, own = _condition(tables, level), level.within(claim.cells)
        cells = [cell for cell in tables.cells if cell.condition == condition and _is_at(cell, own)]
        if not cells:
            raise LackingError(_no_cell(tables, condition, own))
        if len(cells) > 1:
            raise LackingError(f"level {level.at:g} has {len(cells)} cells; give its model and budget")
        found.append(cells[0])
    return tuple(found)


def _slope(tables: Tables, claim: Claim, found: Evidence, measure: Measure, sign: int) -> Evidence:
    """Estimate the least-squares slope of the score over the axis; levels that share a trunk pair by seed."""
    samples = [
        sample(tables, measure, [cell], level.seeds)
        for cell, level in zip(found.levels, claim.levels, strict=True)
    ]
    weights = slope_weights([level.at for level in claim.levels], str(claim.axis))
    own = _estimate(samples, [sign * weight for weight in weights])
    return replace(
        found,
        estimate=own,
        decided=superiority(own),
        correlation=correlation(samples[0], samples[-1]),
        is_paired=all(is_paired(samples[0], other) for other in samples[1:]),
    )


def slope_weights(xs: Sequence[float], axis: str) -> list[float]:
    """Return the weights of the scores at each number of the axis in their least-squares slope.

    >>> slope_weights([0, 50, 100], "linear")
    [-0.01, 0.0, 0.01]
    """
    places = np.log2(xs) if axis == "log2" else np.array(xs, dtype=np.float64)
    centred = places - places.mean()
    weights: list[float] = (centred / (centred**2).sum()).tolist()
    return weights


def _crossing(tables: Tables, claim: Claim, found: Evidence, measure: Measure, sign: int) -> Evidence:
    points = {
        x: _sides(tables, claim, *place) for x, place in _points(tables, claim, measure, found.pairs).items()
    }
    crossed = crossing(points, sign)
    if crossed is None:
        raise LackingError(f"no two points of {claim.axis} with scores of both sides")
    decided = crosses_within(points, claim.between or (0.0, 0.0), sign)
    most = points[max(points)]
    return replace(
        found,
        crossing=crossed,
        decided=decided,
        correlation=correlation(*most),
        is_paired=is_paired(*most),
    )


def crosses_within(
    points: Mapping[int, tuple[Sample, Sample]], between: Sequence[float], sign: int
) -> Decided:
    """Test whether the first condition leads at the lower end of a range and trails at its upper end.

    Both one-sided tests have to reject (intersection-union test, Berger 1982), so p is the larger of the two.
    The opposite is that one of the ends is reversed.

    Raises:
        LackingError: there are too few seeds.
    """
    low, high = (_interpolated(points, x, sign) for x in between)
    inside = max(low.p_above(0.0), high.p_below(0.0))
    return Decided(inside, min(1.0, 2 * min(low.p_below(0.0), high.p_above(0.0))))


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


def _interpolated(points: Mapping[int, tuple[Sample, Sample]], at: float, sign: int) -> Estimate:
    """Return the gain at a point, linear in the logarithm of the axis between the measured points.

    A point outside of what was measured stands for the nearest measured one.
    """
    xs = sorted(points)
    at = min(max(at, xs[0]), xs[-1])
    right = next(i for i, x in enumerate(xs) if x >= at)
    if xs[right] == at:
        return _estimate(points[xs[right]], (sign, -sign))
    share = math.log(at / xs[right - 1]) / math.log(xs[right] / xs[right - 1])
    weights = [sign * (1 - share), -sign * (1 - share), sign * share, -sign * share]
    return _estimate((*points[xs[right - 1]], *points[xs[right]]), weights)


def _tokens(tables: Tables, pair: Pair) -> int:
    """Return the training tokens of a pair, the larger number of the two."""
    return int(max(tables.runs_of(cell)["forward_tokens"].fillna(0).max() for cell in pair))
