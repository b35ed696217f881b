"""An estimate with its error -> p values, power and the number of seeds needed.

Pure functions. Superiority and non-inferiority: t tests. Equivalence: two one-sided tests (Schuirmann 1987;
Lakens 2017). Power: the noncentral t distribution. `bench.analysis.error_model` makes the estimates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import scipy  # `stats` and `optimize` are loaded on use, since they take a second
import scipy.special
from numpy.typing import NDArray

from bench.analysis.stats import LEVEL, MIN_SEEDS

POWER = 0.8
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean, a difference or a slope over S seeds, and over I items if their outcomes are known.

    Its squared standard error is seed_sd² / S + item_se²: more seeds reduce only the first term.
    """

    mean: float
    seed_sd: float
    item_se: float  # 0 where the items are taken as they are
    df: float
    n_seeds: int  # of each independent sample; the smallest number where they differ
    n_items: int | None = None  # None: the error does not include items
    n_samples: int = 1  # independent samples of seeds: 1 where seeds pair, 2 for Welch's test
    df_of_seeds: float | None = None  # of the seeds' part; None: S - 1

    @property
    def se(self) -> float:
        """Return the standard error of the mean."""
        return self.se_with(self.n_seeds)

    def se_with(self, n_seeds: int) -> float:
        """Return the standard error with another number of seeds."""
        return math.sqrt(self.seed_sd**2 / n_seeds + self.item_se**2)

    def df_with(self, n_seeds: int) -> float:
        """Return the degrees of freedom of the seeds' part with another number of seeds."""
        own = self.n_seeds - 1 if self.df_of_seeds is None else self.df_of_seeds
        return own / (self.n_seeds - 1) * (n_seeds - 1)

    def bounds(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the bounds of the t interval."""
        half = float(scipy.special.stdtrit(self.df, (1 + level) / 2)) * self.se
        return self.mean - half, self.mean + half

    def p_above(self, bound: float) -> float:
        """Return the one-sided p value of "the true mean is above the bound".

        If all seeds agree, their spread is unknown. The p value is then the smallest one of a sign test, or
        of a permutation test of two independent samples.
        """
        if self.se > 1e-9 * max(abs(self.mean), abs(bound)):
            return float(scipy.special.stdtr(self.df, (bound - self.mean) / self.se))
        n_orders = 2**self.n_seeds if self.n_samples == 1 else math.comb(2 * self.n_seeds, self.n_seeds)
        return 1 / n_orders if self.mean > bound else 1.0

    def p_below(self, bound: float) -> float:
        """Return the one-sided p value of "the true mean is below the bound"."""
        return replace(self, mean=-self.mean).p_above(-bound)


@dataclass(frozen=True)
class Decided:
    """Two p values, of a claim and of its opposite; two-sided if both were possible."""

    p_for: float
    p_against: float

    @property
    def p(self) -> float:
        """Return the p value of the claim's test, in either direction."""
        return min(self.p_for, self.p_against)


Reach = Callable[[float, float], float]


@lru_cache(maxsize=2**12)
def t_reach(alpha: float, df: float) -> float:
    """Return the difference, in standard errors, that a two-sided t test detects with 80 % power."""
    bound = -float(scipy.special.stdtrit(df, alpha / 2))

    def lacking(shift: float) -> float:
        return float(scipy.stats.nct.sf(bound, df, shift)) - POWER

    return float(scipy.optimize.brentq(lacking, 0.0, 2 * bound + 20.0))


def tost_reach(alpha: float, df: float) -> float:
    """Return the margin, in standard errors, within which an interval of equal means lies with 80 % power.

    alpha: the error rate of the two-sided interval.
    """
    return -float(scipy.special.stdtrit(df, alpha / 2) + scipy.special.stdtrit(df, (1 - POWER) / 2))


def superiority(estimate: Estimate, bound: float = 0.0) -> Decided:
    """Test whether the mean is above or below a bound; a bound below 0 tests non-inferiority."""
    above, below = (min(1.0, 2 * p) for p in (estimate.p_above(bound), estimate.p_below(bound)))
    return Decided(above, below)


def equivalence(estimate: Estimate, margin: float) -> Decided:
    """Test whether the mean is within ±margin, by two one-sided tests, or beyond it on either side.

    Both p values are doubled, so that one two-sided interval decides the claim and its opposite.
    """
    within = min(1.0, 2 * max(estimate.p_above(-margin), estimate.p_below(margin)))
    beyond = min(1.0, 2 * min(estimate.p_above(margin), estimate.p_below(-margin)))
    return Decided(within, beyond)


def detectable(estimate: Estimate, alpha: float) -> float:
    """Return the smallest difference that a two-sided t test at `alpha` detects with 80 % power."""
    return t_reach(alpha, estimate.df) * estimate.se


def seeds_needed(estimate: Estimate, effect: float, alpha: float, reach: Reach = t_reach) -> int | None:
    """Return how many seeds detect `effect` with 80 % power; None if no number of seeds is enough.

    Args:
        estimate: its spreads are taken as the true ones.
        effect: a difference, or the margin of an equivalence.
        alpha: the level of the test.
        reach: `t_reach`, or `tost_reach` for an equivalence.
    """

    def is_enough(n: int) -> bool:
        return reach(alpha, estimate.df_with(n)) * estimate.se_with(n) <= effect

    low, high = MIN_SEEDS - 1, MIN_SEEDS
    while not is_enough(high):
        low, high = high, 2 * high
        if high > _MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


BEFORE, BEYOND = -math.inf, math.inf  # crossovers below and above all measured label counts


@dataclass(frozen=True)
class Crossover:
    """A crossover in labels, or `BEFORE` or `BEYOND`; fewer than `MIN_SEEDS` seeds have no bounds."""

    at: float
    low: float | None
    high: float | None
    n: int  # seeds
    is_ahead_throughout: bool  # at every label count that was measured

    def bounds_as(self, write: Callable[[float], str], below: str, above: str) -> list[str]:
        """Format `low` and `high`, with words for bounds outside the range; [] without bounds."""
        if self.low is None or self.high is None:
            return []
        outside = {BEFORE: below, BEYOND: above}
        return [outside.get(bound) or write(bound) for bound in (self.low, self.high)]


def bounds(samples: NDArray[np.float64]) -> tuple[float, float]:
    """Return the percentile interval of sorted crossovers (R,); either end may be infinite."""
    tail = math.floor(
        (1 - LEVEL) / 2 * (len(samples) - 1)
    )  # an order statistic, since bounds may be infinite
    return float(samples[tail]), float(samples[-1 - tail])


def stops_helping(counts: Sequence[int], gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the label count from which on no gain is above 0, interpolated linearly in log2 labels.

    Args:
        counts: C label counts, ascending, two or more.
        gains: (..., C).

    Returns:
        (...): `BEFORE` if no gain is above 0, `BEYOND` if the last one is.
    """
    x, positive = np.log2(counts), gains > 0
    last = len(counts) - 1 - positive[..., ::-1].argmax(axis=-1)  # the last positive gain, if there is any
    left = np.minimum(last, len(counts) - 2)
    is_within = positive.any(axis=-1) & (last == left)
    here, there = (np.take_along_axis(gains, i[..., None], axis=-1)[..., 0] for i in (left, left + 1))
    share = here / np.where(is_within, here - there, 1.0)
    at = 2.0 ** (x[left] + (x[left + 1] - x[left]) * np.where(is_within, share, 0.0))
    return np.where(is_within, at, np.where(positive.any(axis=-1), BEYOND, BEFORE))
