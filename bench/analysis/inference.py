"""A mean difference with its error -> p values of what may be claimed of it, and what so many seeds can see.

Pure functions. Superior and no worse: one-sample t tests at a bound. Equal: two one-sided tests (Schuirmann
1987; Lakens 2017). Less spread: Brown and Forsythe 1974. Power: the noncentral t distribution.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import scipy  # of it, `stats` and `optimize` are loaded where they are used: they take a second
import scipy.special
from numpy.typing import NDArray

from bench.analysis.stats import LEVEL, resamples

POWER = 0.8
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean difference over S seeds, and over I items where these are known.

    Its squared standard error is seed_sd² / S + item_se²: more seeds take off the first part alone.
    """

    mean: float
    seed_sd: float
    item_se: float  # 0 where the items are taken as they are
    df: float
    n_seeds: int
    n_items: int | None = None  # None: items are not in the error

    @property
    def se(self) -> float:
        """The standard error of the mean."""
        return self.se_with(self.n_seeds)

    def se_with(self, n_seeds: int) -> float:
        """What the standard error would be with so many seeds."""
        return math.sqrt(self.seed_sd**2 / n_seeds + self.item_se**2)

    def bounds(self, level: float = LEVEL) -> tuple[float, float]:
        """The t interval."""
        half = float(scipy.special.stdtrit(self.df, (1 + level) / 2)) * self.se
        return self.mean - half, self.mean + half

    def p_above(self, bound: float) -> float:
        """One-sided p of "the true mean is above the bound".

        Seeds that all agree tell nothing of their spread: there only their number counts, as in a sign test.
        """
        if self.se > 1e-9 * max(abs(self.mean), abs(bound)):
            return float(scipy.special.stdtr(self.df, (bound - self.mean) / self.se))
        return 0.5**self.n_seeds if self.mean > bound else 1.0

    def p_below(self, bound: float) -> float:
        """One-sided p of "the true mean is below the bound"."""
        return replace(self, mean=-self.mean).p_above(-bound)


@dataclass(frozen=True)
class Decided:
    """Two p values: of what a claim says, and of the opposite. Two-sided where both could be asked."""

    p_for: float
    p_against: float

    @property
    def p(self) -> float:
        """Of the claim's test, whichever way it ends."""
        return min(self.p_for, self.p_against)


@dataclass(frozen=True)
class Ratio:
    """The variance of `right` by that of `left`, with a percentile bootstrap range over seeds."""

    ratio: float
    low: float
    high: float
    p: float  # Brown-Forsythe, two-sided
    n: int


Reach = Callable[[float, float], float]


@lru_cache(maxsize=2**12)
def t_reach(alpha: float, df: float) -> float:
    """The difference, in standard errors, that a two-sided t test at `alpha` sees with 80 % power."""
    bound = -float(scipy.special.stdtrit(df, alpha / 2))

    def lacking(shift: float) -> float:
        return float(scipy.stats.nct.sf(bound, df, shift)) - POWER

    return float(scipy.optimize.brentq(lacking, 0.0, 2 * bound + 20.0))


def tost_reach(alpha: float, df: float) -> float:
    """The margin, in standard errors, within which a true difference of 0 is shown with 80 % power."""
    return -float(scipy.special.stdtrit(df, alpha) + scipy.special.stdtrit(df, (1 - POWER) / 2))


def seeds_alone(differences: Mapping[int, float]) -> Estimate:
    """The estimate from differences by seed, two or more; the items are taken as they are."""
    sample = np.array([differences[seed] for seed in sorted(differences)], dtype=np.float64)
    n = len(sample)
    return Estimate(float(sample.mean()), float(sample.std(ddof=1)), 0.0, n - 1, n)


def superiority(estimate: Estimate, bound: float = 0.0) -> Decided:
    """Above the bound, or below it; with a bound below 0 the test of non-inferiority."""
    above, below = (min(1.0, 2 * p) for p in (estimate.p_above(bound), estimate.p_below(bound)))
    return Decided(above, below)


def equivalence(estimate: Estimate, margin: float) -> Decided:
    """Within ±margin by two one-sided tests, or beyond it on either side."""
    within = max(estimate.p_above(-margin), estimate.p_below(margin))
    beyond = min(1.0, 2 * min(estimate.p_above(margin), estimate.p_below(-margin)))
    return Decided(within, beyond)


def variance_ratio(left: Sequence[float], right: Sequence[float]) -> Ratio | None:
    """Of scores (S,) by seed, in the same order; None for fewer than three seeds or a side without spread."""
    values = np.array([left, right], dtype=np.float64)  # (2, S)
    n = values.shape[1]
    if n < 3 or (np.ptp(values, axis=1) == 0).any():
        return None
    found = np.sort(_ratios(values[:, resamples(n)]))  # (R,)
    tail = math.floor((1 - LEVEL) / 2 * (len(found) - 1))
    p = float(scipy.stats.levene(*values, center="median").pvalue)
    ratio = float(_ratios(values[:, None])[0])
    return Ratio(ratio, float(found[tail]), float(found[-1 - tail]), p, n)


def _ratios(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, R, S) -> (R,): right by left; a resample without spread on a side is at the end of the range."""
    left, right = values.var(axis=-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(right / left, nan=1.0, posinf=np.inf)


def detectable(estimate: Estimate, alpha: float) -> float:
    """The smallest difference that a two-sided t test at `alpha` sees with 80 % power."""
    return t_reach(alpha, estimate.df) * estimate.se


def seeds_needed(estimate: Estimate, effect: float, alpha: float, reach: Reach = t_reach) -> int | None:
    """So many that `effect` is seen with 80 % power; None where the items alone leave too much error.

    Args:
        estimate: of which the spreads are taken as the true ones.
        effect: a difference, or the margin of an equivalence.
        alpha: of the test.
        reach: `t_reach`, or `tost_reach` for an equivalence.
    """

    def is_enough(n: int) -> bool:
        return reach(alpha, n - 1) * estimate.se_with(n) <= effect

    low, high = 1, 2
    while not is_enough(high):
        low, high = high, 2 * high
        if high > _MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def detectable_ratio(n: int, alpha: float) -> float:
    """The smallest ratio of two normal variances that n seeds a side see with 80 % power, by the F test."""
    f = scipy.stats.f(n - 1, n - 1)
    return float(f.isf(alpha / 2) / f.ppf(1 - POWER))


def sign_flip_floor(n: int) -> float:
    """The smallest two-sided p of an exact sign-flip test over n seeds."""
    return min(1.0, 2.0 ** (1 - n))


def sign_flip_seeds(n_claims: int, alpha: float = 1 - LEVEL) -> int:
    """So many seeds that the smallest of n p values can pass Holm's first step.

    >>> sign_flip_seeds(8)
    9
    """
    return math.ceil(1 + math.log2(n_claims / alpha))
