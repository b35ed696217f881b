"""Means, intervals and paired differences over seeds. Pure functions; the seed is the unit throughout.

Intervals are percentile bootstraps (Efron 1979) of the mean over seeds. Such an interval never leaves the
range of its values, so with n seeds it cannot cover a median more often than 1 - 2^(1-n), whatever level
is asked for: `coverage_ceiling` is what a reader must be told where n is small. The p value is the exact
two-sided sign-flip test on the paired differences, whose smallest possible value is 2^(1-n).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
N_RESAMPLES = 10_000
N_SEEDS_ENOUGH = 6  # from here on the coverage ceiling is above LEVEL
N_SEEDS_VERDICT = 5  # fewer can lean, not decide: their coverage ceiling is below 90 %
N_EXACT = 14  # up to here all 2^n sign flips are enumerated; beyond, this many are sampled

AHEAD, BEHIND, INCONCLUSIVE = "ahead of scratch", "behind scratch", "inconclusive"
LEANS_AHEAD, LEANS_BEHIND = f"{INCONCLUSIVE}, leaning ahead", f"{INCONCLUSIVE}, leaning behind"


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds; `low` and `high` are None for a single seed, which has no spread."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    """Differences left - right over the seeds that both have, with the sign-flip p value."""

    interval: Interval
    p: float
    seeds: tuple[int, ...]


@lru_cache(maxsize=64)
def _resamples(n: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, n, (N_RESAMPLES, n))  # (R, n)


def interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """Mean and percentile bootstrap interval; None for no values, no bounds for one."""
    sample = np.sort(np.asarray(values, dtype=np.float64))  # so that the order of runs cannot matter
    if sample.size == 0:
        return None
    if not np.isfinite(sample).all():
        raise ValueError("a value is not finite; a failed run must not reach the statistics")
    if sample.size == 1:
        return Interval(float(sample[0]), None, None, 1)
    means = sample[_resamples(sample.size, seed)].mean(axis=1)  # (R,)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(sample.mean()), float(low), float(high), int(sample.size))


def coverage_ceiling(n: int) -> float:
    """The most that a percentile bootstrap over n values can cover: 1 - 2^(1-n)."""
    return 1 - 2.0 ** (1 - n)


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided sign-flip p: the share of sign patterns whose mean is at least as far from 0."""
    sample = np.asarray(differences, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("no paired differences")
    if sample.size <= N_EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=sample.size)))  # (2^n, n)
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), (2**N_EXACT, sample.size))
        signs[0] = 1.0  # the observed pattern is one of them, so p is never 0
    means = np.abs(signs @ sample) / sample.size
    observed = abs(sample.mean())
    return float((means >= observed * (1 - 1e-9)).mean())


def paired(differences: Mapping[int, float], seed: int = 0) -> Paired | None:
    """Summarise per-seed differences; None when no seed is shared."""
    seeds = tuple(sorted(differences))
    values = [differences[index] for index in seeds]
    spread = interval(values, seed)
    return None if spread is None else Paired(spread, sign_flip_p(values, seed), seeds)


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


def verdict(difference: Paired | None, *, higher_is_better: bool, n_missing: int) -> str:
    """One word on a pooled difference to scratch: ahead, behind, or why it is inconclusive.

    Ahead or behind: the whole interval is on one side of 0, over `N_SEEDS_VERDICT` seeds or more; over
    fewer, it only leans.
    """
    if n_missing:
        return f"{INCONCLUSIVE} (missing cells)"
    if difference is None:
        return f"{INCONCLUSIVE} (no paired seeds)"
    low, high, n = difference.interval.low, difference.interval.high, difference.interval.n
    if low is None or high is None:
        return f"{INCONCLUSIVE} (one seed)"
    if low <= 0 <= high:
        return INCONCLUSIVE
    is_better = (low > 0) == higher_is_better
    if n < N_SEEDS_VERDICT:
        return LEANS_AHEAD if is_better else LEANS_BEHIND
    return AHEAD if is_better else BEHIND
