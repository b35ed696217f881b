"""Claims and tables -> verdicts. What was written before the runs is held against what they found.

Every claim has one test, whose p value is Holm-corrected over all claims of the study, those without numbers
included. "Equivalent", said of a superiority claim, is a second family of tests, corrected on its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from bench.analysis.claims import (
    CROSSOVER,
    EQUIVALENCE,
    NON_INFERIORITY,
    SUPERIORITY,
    VARIANCE_RATIO,
    Claim,
    Claims,
    Side,
)
from bench.analysis.contrasts import LackingError, Pair, measure_of, pairs_of, require_complete, sign_of
from bench.analysis.crossed import crossed, matrix, outcomes
from bench.analysis.crossover import Crossover, crossover, resampled
from bench.analysis.inference import (
    Decided,
    Estimate,
    Ratio,
    equivalence,
    seeds_alone,
    sign_flip_floor,
    superiority,
    variance_ratio,
)
from bench.analysis.stats import LEVEL, holm, pool, sign_flip_p, subtract
from bench.analysis.table import Cell, Measure, Tables

Verdict = Literal["supported", "contradicted", "equivalent", "underpowered", "not run"]
T = TypeVar("T")


@dataclass(frozen=True)
class Evidence:
    """What the runs say on one claim; effects are above 0 where `left` is better."""

    measure: Measure | None = None
    pairs: tuple[Pair, ...] = ()  # of cells, left and right
    estimate: Estimate | None = None
    ratio: Ratio | None = None
    crossing: Crossover | None = None
    decided: Decided | None = None
    p_flip: float | None = None  # exact sign-flip test over seeds, where the claim has a bound to test
    why_not: str = ""  # why there is no evidence


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict."""

    name: str
    claim: Claim
    evidence: Evidence
    verdict: Verdict
    p_holm: float | None
    n_claims: int  # of the study: what p is corrected for


def judge(tables: Tables, claims: Claims) -> list[Judged]:
    """A verdict on each claim, in the order of the file."""
    found = {name: examine(tables, claim) for name, claim in claims.claims.items()}
    corrected = dict(
        zip(found, holm([e.decided.p if e.decided else 1.0 for e in found.values()]), strict=True)
    )
    equal = _equal(claims, found)
    return [
        Judged(
            name,
            claims.claims[name],
            evidence,
            _verdict(evidence, corrected[name], equal.get(name, 1.0)),
            corrected[name] if evidence.decided else None,
            len(found),
        )
        for name, evidence in found.items()
    ]


def _equal(claims: Claims, found: Mapping[str, Evidence]) -> dict[str, float]:
    """Corrected p of "smaller than the smallest effect" for the claims of superiority."""
    names = [name for name, claim in claims.claims.items() if claim.test == SUPERIORITY]
    p_values = []
    for name in names:
        estimate, margin = found[name].estimate, claims.claims[name].smallest_effect
        p_values.append(equivalence(estimate, margin).p_for if estimate and margin else 1.0)
    return dict(zip(names, holm(p_values), strict=True))


def _verdict(evidence: Evidence, p_holm: float, p_equal: float) -> Verdict:
    if evidence.why_not or evidence.decided is None:
        return "not run"
    if p_equal <= 1 - LEVEL:
        return "equivalent"
    if p_holm > 1 - LEVEL:
        return "underpowered"
    return "supported" if evidence.decided.p_for <= evidence.decided.p_against else "contradicted"


def examine(tables: Tables, claim: Claim) -> Evidence:
    """The evidence on one claim; of cells that are missing or runs that were lost, only that they are."""
    found = Evidence()
    try:
        measure = measure_of(tables, claim)
        found = replace(found, measure=measure)
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
    estimate, gaps = _estimate(tables, claim, measure, found.pairs, sign)
    margin = claim.smallest_effect or 0.0
    if claim.test == EQUIVALENCE:
        return replace(found, estimate=estimate, decided=equivalence(estimate, margin))
    bound = -margin if claim.test == NON_INFERIORITY else 0.0
    flipped = sign_flip_p([gap - bound for gap in gaps.values()])
    return replace(found, estimate=estimate, decided=superiority(estimate, bound), p_flip=flipped)


def _estimate(
    tables: Tables, claim: Claim, measure: Measure, pairs: Sequence[Pair], sign: int
) -> tuple[Estimate, dict[int, float]]:
    """The mean difference with its error, by seeds and items where items are known; and the seeds' own."""
    gaps = pool([_gaps(tables, claim, measure, pair, sign) for pair in pairs])
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
        if found is None or found[0] != tuple(gaps):
            return seeds_alone(gaps), gaps
        matrices.append(sign * found[1])
    if len({values.shape for values in matrices}) != 1:
        return seeds_alone(gaps), gaps
    return crossed(np.mean(matrices, axis=0)), gaps


def _gaps(tables: Tables, claim: Claim, measure: Measure, pair: Pair, sign: int) -> dict[int, float]:
    left, right = (
        _values(tables, measure, *own) for own in zip(pair, (claim.left, claim.right), strict=True)
    )
    return {seed: sign * gap for seed, gap in subtract(left, right).items()}


def _values(tables: Tables, measure: Measure, cell: Cell, side: Side) -> dict[int, float]:
    return _renumbered(tables.values[measure].get(cell, {}), side.seeds)


def _renumbered(by_seed: Mapping[int, T], seeds: Sequence[int] | None) -> dict[int, T]:
    """By seed, or by position among `seeds` where these are given."""
    if seeds is None:
        return dict(sorted(by_seed.items()))
    return {i: by_seed[seed] for i, seed in enumerate(seeds) if seed in by_seed}


def _spread(tables: Tables, claim: Claim, found: Evidence, measure: Measure) -> Evidence:
    sides = [
        pool([_values(tables, measure, pair[i], side) for pair in found.pairs])
        for i, side in enumerate((claim.left, claim.right))
    ]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    ratio = variance_ratio(*([side[seed] for seed in seeds] for side in sides))
    if ratio is None:
        raise LackingError(
            f"{len(seeds)} seeds in common, or no spread: a ratio takes three seeds with a spread"
        )
    is_less = ratio.ratio > 1  # the right side spreads more
    return replace(
        found, ratio=ratio, decided=Decided(ratio.p if is_less else 1.0, 1.0 if is_less else ratio.p)
    )


def _crossing(tables: Tables, claim: Claim, found: Evidence, measure: Measure, sign: int) -> Evidence:
    """p: the share of resamples whose crossover lies outside the claimed range, or inside it."""
    gains = _gains(tables, claim, found.pairs, measure, sign)
    drawn = resampled(gains)
    if drawn is None or len(drawn[1]) < 2:
        raise LackingError(f"no two points of {claim.axis} with two seeds in common")
    low, high = claim.between or (0.0, 0.0)
    inside = float(((drawn[2] >= low) & (drawn[2] <= high)).mean())
    least = sign_flip_floor(len(drawn[1]))  # few seeds agree by chance; a bootstrap of them cannot know
    decided = Decided(max(least, 1 - inside), max(least, inside))
    return replace(found, crossing=crossover(gains), decided=decided)


def _gains(
    tables: Tables, claim: Claim, pairs: Sequence[Pair], measure: Measure, sign: int
) -> dict[int, dict[int, float]]:
    """By label count or tokens and by seed, averaged over the pairs at it; above 0 where left is better."""
    if claim.axis == "labels":
        same = [m for m in tables.measures if m[:2] == measure[:2] and m.n_labels is not None]
        at = {m.n_labels: [_gaps(tables, claim, m, pair, sign) for pair in pairs] for m in same if m.n_labels}
    else:
        at = {}
        for pair in pairs:
            at.setdefault(_tokens(tables, pair), []).append(_gaps(tables, claim, measure, pair, sign))
    return {x: pool(gaps) for x, gaps in at.items()}


def _tokens(tables: Tables, pair: Pair) -> int:
    """Positions that the pretrained side saw; of two, the more."""
    return max(record.spent.forward_tokens for cell in pair for record in tables.runs_of[cell])
