"""Claims and the spreads of a pilot -> the power of each claim, before any run. Pure functions, no torch.

A pilot's estimate of a claim gives the spread over seeds and over items, which is taken as the true one.
Estimates of a planned study are drawn from it and put to the functions that judge claims, so plan and verdict
cannot disagree.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.analysis.claims import (
    CROSSOVER,
    EQUIVALENCE,
    NON_INFERIORITY,
    SUPERIORITY,
    VARIANCE_RATIO,
    Assumed,
    Claim,
    Claims,
)
from bench.analysis.error_model import estimate, sample
from bench.analysis.frames import Tables
from bench.analysis.inference import (
    POWER,
    Estimate,
    detectable,
    equivalence,
    seeds_needed,
    superiority,
    t_reach,
    tost_reach,
)
from bench.analysis.judging import (
    Evidence,
    LackingError,
    Place,
    examine,
    measure_of,
    smallest_effect,
    verdict_of,
)
from bench.analysis.stats import LEVEL, MIN_SEEDS

N_DRAWS = 2000  # of simulated studies; the error of a power is 1.1 % or less
POOLABLE = (SUPERIORITY, EQUIVALENCE, NON_INFERIORITY)  # differences of two conditions
MOST_CELLS = 8  # of a pilot that lacks a claim's conditions, for its mean spreads


@dataclass(frozen=True)
class Spread:
    """How a claim's estimate would vary."""

    estimate: Estimate  # its mean is not used
    source: str


@dataclass(frozen=True)
class Outlook:
    """What a planned study can say on one claim."""

    name: str
    claim: Claim
    alpha: float  # the claim's error rate
    n_seeds: int  # of each side
    spread: Spread | None
    why_not: str = ""  # why the power is not known

    @property
    def planned(self) -> Estimate | None:
        """Return a typical estimate with the planned seeds; None where a test is not possible."""
        return (
            with_seeds(self.spread.estimate, self.n_seeds)
            if self.spread and self.n_seeds >= MIN_SEEDS
            else None
        )

    @property
    def power(self) -> float | None:
        """Return the power at the smallest effect of interest; 0 with too few seeds, None where unknown."""
        if self.spread is None:
            return None
        return 0.0 if self.planned is None else simulated_power(self.claim, self.planned, self.alpha)

    @property
    def seeds_for_power(self) -> int | None:
        """Return how many seeds reach 80 % power; None if no number does, since the items are too few."""
        if self.spread is None:
            return None
        reach = tost_reach if self.claim.test == EQUIVALENCE else t_reach
        return seeds_needed(self.spread.estimate, smallest_effect(self.claim), self.alpha, reach)


def outlooks(claims: Claims, n_seeds: Mapping[str, int], pilot: Tables | None) -> list[Outlook]:
    """Return an outlook on each primary claim, or on each claim if none is primary.

    Args:
        claims: of the study.
        n_seeds: planned seeds of the smaller side, by claim.
        pilot: a study with the tasks and metrics of the claims; None: only what the claims assume.
    """
    has_primary = any(claim.primary for claim in claims.claims.values())
    found = []
    for name, alpha in claims.error_rates(1 - LEVEL).items():
        claim = claims.claims[name]
        if claim.primary or not has_primary:
            own = Outlook(name, claim, alpha, n_seeds[name], None)
            try:
                found.append(replace(own, spread=spread_of(claim, pilot)))
            except LackingError as lacking:
                found.append(replace(own, why_not=str(lacking)))
    return found


def spread_of(claim: Claim, pilot: Tables | None) -> Spread:
    """Return the spread that a claim assumes, or else that of a pilot.

    Raises:
        LackingError: neither is known.
    """
    if claim.test == CROSSOVER:
        raise LackingError("a crossover has no smallest effect, so it has no one power")
    if claim.assumed is not None:
        return Spread(assumed(claim.assumed), "assumed")
    if pilot is None:
        raise LackingError("no pilot: give plan.pilot=STUDY, or `assumed` in the claim")
    evidence = examine(pilot, claim)
    if evidence.estimate is not None:
        rho = evidence.correlation
        seeds = "seeds pair" if evidence.is_paired else "independent seeds"
        return Spread(
            evidence.estimate,
            f"{pilot.study}, same conditions, {seeds}" + ("" if rho is None else f", correlation {rho:+.2f}"),
        )
    if claim.test not in POOLABLE:
        raise LackingError(f"pilot {pilot.study}: {evidence.why_not}")
    return pooled(claim, pilot)


def assumed(given: Assumed) -> Estimate:
    """Return an estimate with declared spreads, of the smallest study that can be tested."""
    rho, n = given.correlation, MIN_SEEDS
    sd = given.seed_sd * math.sqrt(2 * (1 - (rho or 0.0)))
    item_se = given.item_sd / math.sqrt(given.n_items) if given.n_items else 0.0
    pairs = rho is not None
    df_of_seeds = float(n - 1 if pairs else 2 * (n - 1))
    own = Estimate(0.0, sd, item_se, 1.0, n, given.n_items, 1 if pairs else 2, df_of_seeds)
    return with_seeds(own, n)


def pooled(claim: Claim, pilot: Tables) -> Spread:
    """Return the mean spread of differences between the cells of a pilot that has other conditions.

    Raises:
        LackingError: the pilot lacks the task or metric, or has fewer than two cells with seeds enough.
    """
    measure = measure_of(pilot, claim)
    samples = [sample(pilot, measure, [cell]) for cell in pilot.cells]
    able = [own for own in samples if len(own.seeds) >= MIN_SEEDS][:MOST_CELLS]
    pairs = [estimate(pair, (1.0, -1.0)) for pair in itertools.combinations(able, 2)]
    known = [own for own in pairs if own is not None and own.n_samples == 2]
    if not known:
        raise LackingError(
            f"pilot {pilot.study}: no two conditions of {measure.task} with {MIN_SEEDS} seeds each"
        )
    n = min(own.n_seeds for own in known)
    own = replace(
        known[0],
        seed_sd=math.sqrt(np.mean([e.seed_sd**2 for e in known])),
        item_se=math.sqrt(np.mean([e.item_se**2 for e in known])),
        n_seeds=n,
        df_of_seeds=2.0 * (n - 1),
    )
    return Spread(with_seeds(own, n), f"{pilot.study}, mean of {len(known)} pairs of its conditions")


def with_seeds(own: Estimate, n_seeds: int, items: float = 1.0) -> Estimate:
    """Return a typical estimate of a study with other numbers of seeds and items.

    Args:
        own: its spreads are taken as the true ones.
        n_seeds: of each independent sample.
        items: the number of items as a multiple of that of `own`.
    """
    n_items = None if own.n_items is None else max(2, round(own.n_items * items))
    item_se = own.item_se / math.sqrt(items)
    df_of_seeds = own.df_with(n_seeds)
    df = _df(own.seed_sd**2 / n_seeds, df_of_seeds, item_se**2, n_items)
    return replace(own, item_se=item_se, df=df, n_seeds=n_seeds, n_items=n_items, df_of_seeds=df_of_seeds)


def _df(of_seeds: float, df_of_seeds: float, of_items: float, n_items: int | None) -> float:
    """Return Satterthwaite's degrees of freedom, as `bench.analysis.error_model` does."""
    if not of_items or n_items is None:
        return df_of_seeds
    spread = of_seeds**2 / df_of_seeds + of_items**2 / (n_items - 1)
    return max(df_of_seeds, (of_seeds + of_items) ** 2 / spread)


def simulated_power(claim: Claim, planned: Estimate, alpha: float, n_draws: int = N_DRAWS) -> float:
    """Return how often a study finds a claim that is true.

    A superiority, a slope or a ratio of variances is true at the smallest effect of interest, and found if
    its interval excludes 0 on the right side. An equivalence or a non-inferiority is true at a difference of
    0, and found if it is supported.
    """
    reaches_bound = claim.test in (EQUIVALENCE, NON_INFERIORITY)
    truth = 0.0 if reaches_bound else smallest_effect(claim)
    return float(np.mean([_is_found(claim, own, alpha) for own in drawn(planned, truth, n_draws)]))


def _is_found(claim: Claim, own: Estimate, alpha: float) -> bool:
    effect = smallest_effect(claim)
    if claim.test == EQUIVALENCE:
        return (
            verdict_of(claim, Evidence(estimate=own, decided=equivalence(own, effect)), alpha) == "supported"
        )
    if claim.test == NON_INFERIORITY:
        return (
            verdict_of(claim, Evidence(estimate=own, decided=superiority(own, -effect)), alpha) == "supported"
        )
    return Place(own, effect, alpha / 2).above(0)


def drawn(planned: Estimate, truth: float, n_draws: int) -> list[Estimate]:
    """Return estimates of simulated studies: a normal mean, and spreads from chi-square distributions."""
    rng = np.random.default_rng(0)
    df_of_seeds = planned.df_with(planned.n_seeds)
    means = rng.normal(truth, planned.se, n_draws)
    of_seeds = planned.seed_sd**2 * rng.chisquare(df_of_seeds, n_draws) / df_of_seeds
    df_of_items = max(1, (planned.n_items or 2) - 1)
    of_items = planned.item_se**2 * rng.chisquare(df_of_items, n_draws) / df_of_items
    found = []
    for mean, seeds, items in zip(means.tolist(), of_seeds.tolist(), of_items.tolist(), strict=True):
        df = _df(seeds / planned.n_seeds, df_of_seeds, items, planned.n_items)
        found.append(replace(planned, mean=mean, seed_sd=math.sqrt(seeds), item_se=math.sqrt(items), df=df))
    return found


def smallest_detectable(claim: Claim, planned: Estimate, alpha: float) -> float:
    """Return what a study finds with 80 % power, in the metric's unit: an effect, a margin, or a ratio."""
    if claim.test == EQUIVALENCE:
        return tost_reach(alpha, planned.df) * planned.se
    found = detectable(planned, alpha)
    return math.exp(found) if claim.test == VARIANCE_RATIO else found


def detectable_by_size(own: Outlook, seeds: Sequence[int], items: Sequence[float]) -> dict[int, list[float]]:
    """Return the smallest detectable effects of a claim, by seeds, for each multiple of the items."""
    assert own.spread is not None
    return {
        n: [smallest_detectable(own.claim, with_seeds(own.spread.estimate, n, x), own.alpha) for x in items]
        for n in seeds
        if n >= MIN_SEEDS
    }


def weak(found: Sequence[Outlook]) -> list[Outlook]:
    """Return the claims whose power is known and below 80 %."""
    return [own for own in found if own.power is not None and own.power < POWER]
