"""Seconds of interleaved rounds -> medians, intervals, ratios and verdicts. Pure functions.

Ratios compare the same round of two contenders, since whatever slows the machine for a while slows both.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bench.speed.interleave import Timed
from bench.speed.settings import BARE, DATA, LIMIT, OURS, OWN, SMALL, Targets

LEVEL = 0.95
Verdict = Literal["met", "missed", "open", ""]


@dataclass(frozen=True)
class Spread:
    """A median over rounds, its interval, and the middle half of the rounds."""

    median: float
    low: float
    high: float
    quarter: float
    three_quarters: float
    is_sure: bool  # whether the interval covers the median at `LEVEL`

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Take the narrowest order statistics that cover the median at `LEVEL`, or else the extremes."""
        ordered = sorted(values)
        first = interval_rank(len(ordered))
        return Spread(
            statistics.median(ordered),
            ordered[first],
            ordered[-1 - first],
            float(np.quantile(ordered, 0.25)),
            float(np.quantile(ordered, 0.75)),
            coverage(len(ordered), first) >= LEVEL,
        )


def interval_rank(n: int) -> int:
    """Return how many values to drop on either side.

    The median lies between the k-th smallest and the k-th largest of n values unless fewer than k values are
    on one side of it: a binomial tail, whatever the distribution.

    >>> interval_rank(7), interval_rank(9), interval_rank(5)
    (0, 1, 0)
    """
    n_dropped = 0
    while coverage(n, n_dropped + 1) >= LEVEL:
        n_dropped += 1
    return n_dropped


def coverage(n: int, n_dropped: int) -> float:
    """Return the probability that the interval without `n_dropped` values on either side covers the median.

    >>> coverage(7, 0)
    0.984375
    """
    return 1 - 2 * sum(math.comb(n, i) for i in range(n_dropped + 1)) / 2**n


@dataclass(frozen=True)
class Result:
    """The measurements of a strategy at a size: every contender over the same rounds."""

    strategy: str
    model: str
    is_nearest: bool  # its peers train another objective
    timed: dict[str, Timed]
    others_share: float | None  # of the processors, used by other processes
    profile: dict[str, float] = field(default_factory=dict)  # `bench.speed.profile.shares`

    @property
    def peers(self) -> list[str]:
        """Return the names of the peers that were timed."""
        return [name for name in self.timed if name not in OWN and self.seconds(name)]

    @property
    def best_peer(self) -> str | None:
        """Return the peer with the shortest median step."""
        return min(self.peers, key=lambda name: statistics.median(self.seconds(name)), default=None)

    def seconds(self, name: str) -> list[float]:
        """Return the seconds of a step, in the rounds that all contenders without a failure have finished."""
        n = min((len(t.seconds) for t in self.timed.values() if t.failure is None), default=0)
        timed = self.timed.get(name)
        return [] if timed is None or timed.failure is not None else timed.seconds[:n]

    def step(self, name: str) -> Spread | None:
        """Return the seconds of a step."""
        seconds = self.seconds(name)
        return Spread.of(seconds) if seconds else None

    def tokens_per_s(self, name: str) -> Spread | None:
        """Return the tokens of the data per second."""
        return self._over_rounds(name, lambda i, s: self._facts(name)[0] / s)

    def over(self, name: str, other: str) -> Spread | None:
        """Return the ratio of tokens per second of two contenders; of FLOPs if the peers are only nearest."""
        counted = 1 if self.is_nearest else 0
        ratio = self._facts(name)[counted] / max(1, self._facts(other)[counted])
        theirs = self.seconds(other)
        return self._over_rounds(name, lambda i, s: ratio * theirs[i] / s) if theirs else None

    def over_best_peer(self) -> Spread | None:
        """Return our speed over that of the fastest peer."""
        return None if self.best_peer is None else self.over(OURS, self.best_peer)

    def share_of_limit(self, name: str) -> Spread | None:
        """Return FLOP/s over the largest rate of matrix products in the same round."""
        limit, flops = self.seconds(LIMIT), self._facts(name)[1]
        per_flop = self._facts(LIMIT)[1]
        return self._over_rounds(name, lambda i, s: flops / s * limit[i] / per_flop) if limit else None

    def lightning_share(self) -> Spread | None:
        """Return the time of a small step beyond that of a bare loop, as a share of a whole step.

        Lightning's Python takes as long in a small step as in a whole one, where it would be lost in noise:
        two processes that do the same differ by more. It is negative where noise is larger still.
        """
        small, bare = self.seconds(SMALL), self.seconds(BARE)
        return self._over_rounds(OURS, lambda i, s: (small[i] - bare[i]) / s) if small and bare else None

    def data_share(self) -> Spread | None:
        """Return the share of a step that its batch takes."""
        data = self.seconds(DATA)
        return self._over_rounds(OURS, lambda i, s: data[i] / s) if data else None

    def _facts(self, name: str) -> tuple[int, float]:
        """Return tokens and FLOPs of a step."""
        facts = self.timed[name].facts if name in self.timed else None
        return (facts.tokens, facts.flops) if facts else (0, 0.0)

    def _over_rounds(self, name: str, value: Callable[[int, float], float]) -> Spread | None:
        values = [value(i, s) for i, s in enumerate(self.seconds(name))]
        return Spread.of(values) if values else None


def verdicts(result: Result, targets: Targets) -> dict[str, tuple[Spread | None, float | None, Verdict]]:
    """Return each measure with its target, if any, and the verdict on it."""
    measured = {
        "over_best_peer": result.over_best_peer(),
        "share_of_limit": result.share_of_limit(OURS),
        "lightning_share": result.lightning_share(),
        "data_share": result.data_share(),
    }
    at_least = ("over_best_peer", "share_of_limit")
    return {
        key: (spread, target, verdict(spread, target, at_least=key in at_least))
        for key, spread in measured.items()
        for target in [getattr(targets, key)]
    }


def verdict(spread: Spread | None, target: float | None, *, at_least: bool) -> Verdict:
    """Return met or missed if all of a sure interval is on one side of the target, else open."""
    if spread is None or target is None:
        return ""
    if not spread.is_sure:
        return "open"
    low, high, target = (
        (spread.low, spread.high, target) if at_least else (-spread.high, -spread.low, -target)
    )
    if low >= target:
        return "met"
    return "missed" if high < target else "open"
