"""From how many labels on does pretraining stop helping? Differences by label count -> crossover, interval.

Pure functions. The seed is the unit: differences to scratch are paired within it, and the bootstrap draws it.
Nothing is extrapolated: a crossover lies between two label counts that were measured, or outside all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.analysis.stats import LEVEL, resamples

BEFORE, BEYOND = -math.inf, math.inf  # crossovers below all label counts that were measured, above all


@dataclass(frozen=True)
class Crossover:
    """`at`, `low` and `high` in labels, `BEFORE` or `BEYOND`; no bounds for a single seed."""

    at: float
    low: float | None
    high: float | None
    n: int  # seeds
    is_ahead_throughout: bool  # at every label count that was measured

    def bounds_as(self, write: Callable[[float], str], below: str, above: str) -> list[str]:
        """`low` and `high` for readers, what lies outside the measured by name; [] for a single seed."""
        if self.low is None or self.high is None:
            return []
        outside = {BEFORE: below, BEYOND: above}
        return [outside.get(bound) or write(bound) for bound in (self.low, self.high)]


def crossover(gains: Mapping[int, Mapping[int, float]]) -> Crossover | None:
    """The crossover of the mean over seeds, with its percentile bootstrap interval.

    Resamples without a crossover count as `BEFORE` or `BEYOND`, so that a bound may be either.

    Args:
        gains: by label count and seed, above 0 where pretraining is better than scratch. Seeds that lack a
            label count are left out.

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
    """The percentile interval of resampled crossovers (R,), sorted; either end may be infinite."""
    tail = math.floor((1 - LEVEL) / 2 * (len(samples) - 1))  # a rank: no mean of infinity and a number
    return float(samples[tail]), float(samples[-1 - tail])


def resampled(
    gains: Mapping[int, Mapping[int, float]],
) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]] | None:
    """Counts C, gains (S, C) of the seeds that have all, crossovers (R,) of bootstraps over these, sorted.

    None where fewer than two label counts share a seed.
    """
    counts = sorted(gains)
    seeds = sorted(set.intersection(*(set(gains[n]) for n in counts))) if counts else []
    if len(counts) < 2 or not seeds:
        return None
    table = np.array([[gains[n][seed] for n in counts] for seed in seeds])  # (S, C)
    return counts, table, np.sort(stops_helping(counts, table[resamples(len(seeds))].mean(axis=1)))


def stops_helping(counts: Sequence[int], gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """The label count from which on no gain is above 0, linear in log2 labels between two counts.

    Args:
        counts: C label counts, ascending, two or more.
        gains: (..., C).

    Returns:
        (...): `BEFORE` where no gain is above 0, `BEYOND` where the last one is.
    """
    x, positive = np.log2(counts), gains > 0
    last = len(counts) - 1 - positive[..., ::-1].argmax(axis=-1)  # of the positive ones, where there are any
    left = np.minimum(last, len(counts) - 2)
    is_within = positive.any(axis=-1) & (last == left)
    here, there = (np.take_along_axis(gains, i[..., None], axis=-1)[..., 0] for i in (left, left + 1))
    share = here / np.where(is_within, here - there, 1.0)
    at = 2.0 ** (x[left] + (x[left + 1] - x[left]) * np.where(is_within, share, 0.0))
    return np.where(is_within, at, np.where(positive.any(axis=-1), BEYOND, BEFORE))
