"""Means, intervals and paired differences over seeds. Pure functions; the seed is the unit throughout.

Intervals are Student's t of the mean over seeds. A percentile bootstrap never leaves the range of its values
and held the mean of simulated normal scores 75, 85 and 90 % of the time with 3, 5 and 9 seeds, where the t
interval holds 95 %. It is kept for what has no t interval (crossovers, interquartile means over tasks).
Verdicts rest on the paired t test over seeds, Holm-corrected (1979) over the study's comparisons; the exact
sign-flip p, whose smallest value is 2^(1-n), stands beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import scipy.special
from numpy.typing import NDArray

LEVEL = 0.95
N_RESAMPLES = 10_000
N_EXACT = 14  # up to here all 2^n sign flips are enumerated; beyond, this many are sampled

AHEAD, BEHIND, INCONCLUSIVE = "ahead of scratch", "behind scratch", "inconclusive"
LEANS_AHEAD, LEANS_BEHIND = f"{INCONCLUSIVE}, leaning ahead", f"{INCONCLUSIVE}, leaning behind"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds; `low` and `high` are None for a single seed, which has no spread."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    """Differences left - right over the seeds that both have, with the sign-flip and the t test's p."""

    interval: Interval
    p: float  # sign-flip
    p_t: float  # t test; 1 for a single seed
    seeds: tuple[int, ...]


@lru_cache(maxsize=64)
def resamples(n: int, seed: int = 0) -> NDArray[np.int64]:
    """Indices (R, n) of a bootstrap over n seeds, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, n, (N_RESAMPLES, n))  # (R, n)


def interval(values: Sequence[float]) -> Interval | None:
    """Mean and t interval; None for no values, no bounds for one."""
    return _interval(tuple(sorted(values)))  # so that the order of runs cannot matter


@lru_cache(maxsize=2**16)  # tables, views and figures ask for the same cells again and again
def _interval(values: tuple[float, ...]) -> Interval | None:
    return intervals([values])[0]


def intervals(samples: Sequence[Sequence[float]]) -> list[Interval | None]:
    """`interval` of each: of many samples in a fraction of the time."""
    found: list[Interval | None] = [None] * len(samples)
    for n in sorted({len(sample) for sample in samples} - {0}):
        own = [i for i, sample in enumerate(samples) if len(sample) == n]
        table = np.sort(np.array([samples[i] for i in own], dtype=np.float64), axis=1)  # (K, n)
        if not np.isfinite(table).all():
            raise ValueError("a value is not finite; a failed run must not reach the statistics")
        means = table.mean(axis=1)
        halves = t_bound(n) * table.std(axis=1, ddof=1) / n**0.5 if n > 1 else np.zeros_like(means)
        for i, mean, half in zip(own, means.tolist(), halves.tolist(), strict=True):
            found[i] = Interval(mean, mean - half, mean + half, n) if n > 1 else Interval(mean, None, None, 1)
    return found


@lru_cache(maxsize=64)
def t_bound(n: int) -> float:
    """How many standard errors a t interval over n values goes to either side."""
    return float(scipy.special.stdtrit(n - 1, (1 + LEVEL) / 2))


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided sign-flip p: the share of sign patterns whose mean is at least as far from 0."""
    sample = np.asarray(differences, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("no paired differences")
    means = np.abs(_signs(sample.size, seed) @ sample) / sample.size
    observed = abs(sample.mean())
    return float((means >= observed * (1 - 1e-9)).mean())


@lru_cache(maxsize=16)
def _signs(n: int, seed: int) -> Floats:
    """Sign patterns (P, n): all of them, or a sample."""
    if n <= N_EXACT:
        return np.array(list(product((1.0, -1.0), repeat=n)))
    signs = np.random.default_rng(seed).choice((1.0, -1.0), (2**N_EXACT, n))
    signs[0] = 1.0  # the observed pattern is one of them, so p is never 0
    return signs


def t_test_p(differences: Sequence[float]) -> float:
    """Two-sided one-sample t test of the mean difference against 0; 1 where there is nothing to test."""
    return t_tests_p(np.array([differences], dtype=np.float64))[0]


def t_tests_p(samples: Floats) -> list[float]:
    """`t_test_p` of each row (K, S); NaN is a seed that the row lacks.

    Differences that are all equal say nothing of their spread: there the sign-flip test stands in.
    """
    known = ~np.isnan(samples)
    sizes, found = known.sum(axis=1), np.ones(len(samples))
    for n in sorted(set(sizes.tolist()) - {0, 1}):
        rows = np.flatnonzero(sizes == n)
        table = samples[rows][known[rows]].reshape(-1, n)
        spread = np.ptp(table, axis=1) > 1e-9 * np.abs(table).max(axis=1)
        error = np.where(spread, table.std(axis=1, ddof=1), 1.0) / np.sqrt(n)
        found[rows] = 2 * scipy.special.stdtr(n - 1, -np.abs(table.mean(axis=1) / error))  # as ttest_1samp
        for i in np.flatnonzero(~spread):
            found[rows[i]] = sign_flip_p(table[i].tolist())
    return found.tolist()


def holm(p_values: Sequence[float] | Floats) -> list[float]:
    """Holm's step-down correction: p values that hold the familywise error rate."""
    found, order = np.asarray(p_values, dtype=np.float64), np.argsort(p_values, kind="stable")
    steps = np.minimum(1.0, np.arange(len(found), 0, -1) * found[order])
    corrected = np.empty_like(found)
    corrected[order] = np.maximum.accumulate(steps)
    return corrected.tolist()


def paired(differences: Mapping[int, float], seed: int = 0) -> Paired | None:
    """Summarise per-seed differences; None when no seed is shared."""
    return _paired(tuple(sorted(differences.items())), seed)


@lru_cache(maxsize=2**16)
def _paired(differences: tuple[tuple[int, float], ...], seed: int) -> Paired | None:
    seeds = tuple(index for index, _ in differences)
    values = [value for _, value in differences]
    spread = interval(values)
    if spread is None:
        return None
    return Paired(spread, sign_flip_p(values, seed), t_test_p(values), seeds)


def subtract(left: Mapping[int, float], right: Mapping[int, float]) -> dict[int, float]:
    """left - right for every seed that both have."""
    return {seed: left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())}


def pool(cells: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Average over cells within each seed, for the seeds that every cell has.

    A seed that lacks a cell is left out: its average would be over other cells than the rest's.
    """
    if not cells:
        return {}
    shared = set.intersection(*(set(cell) for cell in cells))
    return {seed: sum(cell[seed] for cell in cells) / len(cells) for seed in sorted(shared)}


def best_shares(values: Floats, seed: int = 0) -> Floats:
    """How often each candidate has the highest mean when the seeds of all are drawn anew together.

    A mean is over those drawn seeds that the candidate has; without any it cannot be the highest. Equals
    share a draw.

    Args:
        values: (C, S), NaN for a seed that the candidate lacks; each has one at least.
        seed: of the draws.

    Returns:
        (C,), which sum to 1.
    """
    known = ~np.isnan(values)
    best = int(np.argmax(np.nanmean(values, axis=1)))
    # never the highest: lower than the best in every seed, of the same seeds; of a large grid few are left
    lost = ((known == known[best]) & ((values < values[best]) | ~known)).all(axis=1)
    values, known = np.nan_to_num(values[~lost]), known[~lost].astype(np.float64)
    counts, times = distinct_draws(values.shape[1], seed)
    means = counts @ values.T  # (R, C), times the drawn seeds: the same for all where all have each seed
    if not known.all():
        n_drawn = counts @ known.T
        means = np.where(n_drawn > 0, means / np.maximum(n_drawn, 1), -np.inf)
    highest = means.max(axis=1, keepdims=True)
    is_best = means >= highest - 1e-9 * np.abs(highest)
    shares = np.zeros(len(lost))
    shares[~lost] = (times / is_best.sum(axis=1)) @ is_best / times.sum()
    return shares


@lru_cache(maxsize=64)
def draw_counts(n: int, seed: int = 0) -> Floats:
    """How often each resample (R, n) of n seeds has drawn each of them."""
    draws = resamples(n, seed)
    return np.stack([(draws == i).sum(axis=1) for i in range(n)], axis=1).astype(np.float64)


@lru_cache(maxsize=64)
def distinct_draws(n: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """The resamples that differ, by their counts (D, n), few for few seeds; how often each comes up (D,)."""
    counts, times = np.unique(draw_counts(n, seed), axis=0, return_counts=True)
    return counts, times


def verdict(difference: Paired | None, *, higher_is_better: bool, p_holm: float, lacking: str) -> str:
    """One word on a pooled difference to scratch: ahead, behind, or why it is inconclusive.

    Args:
        difference: of the cells pooled.
        higher_is_better: of the metric.
        p_holm: the t test's p, corrected; ahead or behind takes 1 - LEVEL or less.
        lacking: what is missing for a verdict, "" if nothing is.
    """
    if lacking or difference is None:
        return f"{INCONCLUSIVE} ({lacking or 'no paired seeds'})"
    if difference.interval.n == 1:
        return f"{INCONCLUSIVE} (one seed)"
    is_better = (difference.interval.mean > 0) == higher_is_better
    if p_holm <= 1 - LEVEL:
        return AHEAD if is_better else BEHIND
    if difference.p_t > 1 - LEVEL:
        return INCONCLUSIVE
    return LEANS_AHEAD if is_better else LEANS_BEHIND
