"""A mean difference with its error -> p values, power and the number of seeds needed.

Pure functions. Superiority and non-inferiority: one-sample t tests. Equivalence: two one-sided tests
(Schuirmann 1987; Lakens 2017). Variance ratio: Brown and Forsythe 1974. Power: the noncentral t distribution.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
import scipy  # `stats` and `optimize` are loaded on use, since they take a second
import scipy.special
from numpy.typing import NDArray

from bench.analysis.frames import Cell, Measure, Tables
from bench.analysis.stats import LEVEL, resamples
from bench.records import Items

POWER = 0.8
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean difference over S seeds, and over I items if their outcomes are known.

    Its squared standard error is seed_sd² / S + item_se²: more seeds reduce only the first term.
    """

    mean: float
    seed_sd: float
    item_se: float  # 0 where the items are taken as they are
    df: float
    n_seeds: int
    n_items: int | None = None  # None: the error does not include items

    @property
    def se(self) -> float:
        """Return the standard error of the mean."""
        return self.se_with(self.n_seeds)

    def se_with(self, n_seeds: int) -> float:
        """Return the standard error with another number of seeds."""
        return math.sqrt(self.seed_sd**2 / n_seeds + self.item_se**2)

    def bounds(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the bounds of the t interval."""
        half = float(scipy.special.stdtrit(self.df, (1 + level) / 2)) * self.se
        return self.mean - half, self.mean + half

    def p_above(self, bound: float) -> float:
        """Return the one-sided p value of "the true mean is above the bound".

        If all seeds agree, their spread is unknown, and the p value is that of a sign test.
        """
        if self.se > 1e-9 * max(abs(self.mean), abs(bound)):
            return float(scipy.special.stdtr(self.df, (bound - self.mean) / self.se))
        return 0.5**self.n_seeds if self.mean > bound else 1.0

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


@dataclass(frozen=True)
class Ratio:
    """The variance of `right` over that of `left`, with a percentile bootstrap range over seeds."""

    ratio: float
    low: float
    high: float
    p: float  # Brown-Forsythe, two-sided
    n: int


Reach = Callable[[float, float], float]


@lru_cache(maxsize=2**12)
def t_reach(alpha: float, df: float) -> float:
    """Return the difference, in standard errors, that a two-sided t test detects with 80 % power."""
    bound = -float(scipy.special.stdtrit(df, alpha / 2))

    def lacking(shift: float) -> float:
        return float(scipy.stats.nct.sf(bound, df, shift)) - POWER

    return float(scipy.optimize.brentq(lacking, 0.0, 2 * bound + 20.0))


def tost_reach(alpha: float, df: float) -> float:
    """Return the margin, in standard errors, for which equivalence of equal means has 80 % power."""
    return -float(scipy.special.stdtrit(df, alpha) + scipy.special.stdtrit(df, (1 - POWER) / 2))


def seeds_alone(differences: Mapping[int, float] | pd.Series) -> Estimate:
    """Estimate from differences by seed, two or more, on fixed items."""
    sample = np.array([gap for _, gap in sorted(differences.items())], dtype=np.float64)
    n = len(sample)
    return Estimate(float(sample.mean()), float(sample.std(ddof=1)), 0.0, n - 1, n)


def superiority(estimate: Estimate, bound: float = 0.0) -> Decided:
    """Test whether the mean is above or below a bound; a bound below 0 tests non-inferiority."""
    above, below = (min(1.0, 2 * p) for p in (estimate.p_above(bound), estimate.p_below(bound)))
    return Decided(above, below)


def equivalence(estimate: Estimate, margin: float) -> Decided:
    """Test whether the mean is within ±margin, by two one-sided tests, or beyond it on either side."""
    within = max(estimate.p_above(-margin), estimate.p_below(margin))
    beyond = min(1.0, 2 * min(estimate.p_above(margin), estimate.p_below(-margin)))
    return Decided(within, beyond)


def variance_ratio(left: Sequence[float], right: Sequence[float]) -> Ratio | None:
    """Test whether scores (S,) by seed, in the same order, have equal variances.

    It returns None for fewer than three seeds or a side without spread.
    """
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
    """Return right over left (R,) of (2, R, S); infinite if only `left` has no spread, 1 if neither has."""
    left, right = values.var(axis=-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(right / left, nan=1.0, posinf=np.inf)


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
    """Return the smallest ratio of two normal variances that an F test detects with 80 % power."""
    f = scipy.stats.f(n - 1, n - 1)
    return float(f.isf(alpha / 2) / f.ppf(1 - POWER))


def sign_flip_floor(n: int) -> float:
    """Return the smallest two-sided p value of an exact sign-flip test over n seeds."""
    return min(1.0, 2.0 ** (1 - n))


def sign_flip_seeds(n_claims: int, alpha: float = 1 - LEVEL) -> int:
    """Return how many seeds let a sign-flip test reach the level of one of n claims (Bonferroni).

    >>> sign_flip_seeds(8)
    9
    """
    return math.ceil(1 + math.log2(n_claims / alpha))


Array = NDArray[np.float64]
_EXACT = 1e-4  # relative tolerance, since arrays are float32


def crossed(differences: Array) -> Estimate:
    """Estimate from paired differences (S, I), two or more of each, with seeds and items crossed."""
    n_seeds, n_items = differences.shape
    by_seed, by_item, mean = differences.mean(axis=1), differences.mean(axis=0), differences.mean()
    residuals = differences - by_seed[:, None] - by_item[None] + mean
    rest = float((residuals**2).sum()) / ((n_seeds - 1) * (n_items - 1)) / differences.size
    of_seeds, of_items = float(by_seed.var(ddof=1)) / n_seeds, float(by_item.var(ddof=1)) / n_items
    more = max(0.0, of_items - rest)  # the items' part alone, since the residual is in the seeds' part
    df = _satterthwaite(of_seeds, of_items, rest, n_seeds, n_items) if more else n_seeds - 1.0
    return Estimate(float(mean), math.sqrt(of_seeds * n_seeds), math.sqrt(more), df, n_seeds, n_items)


def _satterthwaite(of_seeds: float, of_items: float, rest: float, n_seeds: int, n_items: int) -> float:
    parts = ((of_seeds, n_seeds - 1), (of_items, n_items - 1), (-rest, (n_seeds - 1) * (n_items - 1)))
    total = sum(part for part, _ in parts)
    return max(n_seeds - 1.0, total**2 / sum(part**2 / df for part, df in parts))


def outcomes(tables: Tables, measure: Measure, cell: Cell) -> dict[int, Array]:
    """Return by seed the values (I,) whose mean is the score; empty if unknown for any run.

    Raises:
        DataError: a file of items is damaged.
    """
    found: dict[int, Array] = {}
    scores = dict(tables.seed_values(measure, cell))
    for run_id, seed in tables.ids_of(cell):
        if seed not in scores:
            continue
        values = by_item(tables.arrays(run_id, measure.task), measure)
        score = scores[seed]
        if values is None or abs(values.mean() - score) > _EXACT * max(1.0, abs(score)):
            return {}  # the score is not a mean over items
        found[seed] = values
    return found


def by_item(items: Items, measure: Measure) -> Array | None:
    """Return values (I,) whose mean is the score of one run, averaged over fits; None if there are none.

    A ratio of sums (micro F1, accuracy over words) is linearised: its value plus the influence of each item.
    """
    name = measure.metric
    at = "" if measure.n_labels is None else f"@{measure.n_labels}"
    if f"{name}{at}" in items:
        return _averaged(items[f"{name}{at}"])
    parts = {part: items.get(f"{name}.{part}{at}") for part in ("true_positives", "predicted", "gold")}
    hits, predicted, gold = parts.values()
    if hits is not None and predicted is not None and gold is not None:
        return _ratio(2 * hits, predicted + gold)
    correct, words = items.get(f"{name}.correct{at}"), items.get(f"{name}.words{at}")
    return None if correct is None or words is None else _ratio(correct, words)


def _averaged(values: NDArray[np.generic]) -> Array:
    """Average (..., I) over all but the last axis, to (I,)."""
    wide = values.astype(np.float64)
    return np.asarray(wide.reshape(-1, wide.shape[-1]).mean(axis=0))


def _ratio(above: NDArray[np.generic], below: NDArray[np.generic]) -> Array:
    """Return influences (I,) around sum / sum, from numerators and denominators (..., I)."""
    tops, bottoms = (values.astype(np.float64) for values in np.broadcast_arrays(above, below))
    total = bottoms.sum(axis=-1, keepdims=True)
    value = tops.sum(axis=-1, keepdims=True) / np.maximum(total, 1e-12)
    return _averaged(value + tops.shape[-1] * (tops - value * bottoms) / np.maximum(total, 1e-12))


def matrix(left: Mapping[int, Array], right: Mapping[int, Array]) -> tuple[tuple[int, ...], Array] | None:
    """Return differences (S, I) of shared seeds; None if items differ, or for fewer than two of either."""
    seeds = tuple(sorted(left.keys() & right.keys()))
    rows = [values for seed in seeds for values in (left[seed], right[seed])]
    sizes = {len(values) for values in rows}
    if len(seeds) < 2 or len(sizes) != 1 or sizes.pop() < 2:
        return None
    return seeds, np.stack([left[seed] - right[seed] for seed in seeds])


BEFORE, BEYOND = -math.inf, math.inf  # crossovers below and above all measured label counts


@dataclass(frozen=True)
class Crossover:
    """A crossover in labels, or `BEFORE` or `BEYOND`; a single seed has no bounds."""

    at: float
    low: float | None
    high: float | None
    n: int  # seeds
    is_ahead_throughout: bool  # at every label count that was measured

    def bounds_as(self, write: Callable[[float], str], below: str, above: str) -> list[str]:
        """Format `low` and `high`, with words for bounds outside the range; [] for one seed."""
        if self.low is None or self.high is None:
            return []
        outside = {BEFORE: below, BEYOND: above}
        return [outside.get(bound) or write(bound) for bound in (self.low, self.high)]


def crossover(gains: pd.DataFrame) -> Crossover | None:
    """Return the crossover of the mean over seeds, with its percentile bootstrap interval.

    Resamples without a crossover count as `BEFORE` or `BEYOND`, so that a bound may be either.

    Args:
        gains: a row per seed and a column per label count, above 0 where pretraining is better than
            scratch. Seeds that lack a label count are left out.

    Returns:
        None where fewer than two label counts share a seed.
    """
    found = resampled(gains)
    if found is None:
        return None
    counts, table, samples = found
    means = table.mean(axis=0)
    at, ahead = float(stops_helping(counts, means)), bool((means > 0).all())
    if len(table) == 1:
        return Crossover(at, None, None, 1, ahead)
    return Crossover(at, *bounds(samples), len(table), ahead)


def bounds(samples: NDArray[np.float64]) -> tuple[float, float]:
    """Return the percentile interval of sorted crossovers (R,); either end may be infinite."""
    tail = math.floor(
        (1 - LEVEL) / 2 * (len(samples) - 1)
    )  # an order statistic, since bounds may be infinite
    return float(samples[tail]), float(samples[-1 - tail])


def resampled(gains: pd.DataFrame) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]] | None:
    """Counts C, gains (S, C) of the seeds that have all, crossovers (R,) of bootstraps over these, sorted.

    None where fewer than two label counts share a seed.
    """
    whole = gains.sort_index(axis=0).sort_index(axis=1).dropna()
    counts, table = whole.columns.tolist(), np.ascontiguousarray(whole, dtype=np.float64)  # (S, C)
    if len(counts) < 2 or not len(table):
        return None
    return counts, table, np.sort(stops_helping(counts, table[resamples(len(table))].mean(axis=1)))


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
