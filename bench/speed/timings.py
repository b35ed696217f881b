"""Seconds of interleaved rounds -> medians, intervals, ratios, verdicts. Pure functions.

Round r of one contender is compared with round r of another: what slows the machine for a while, slows both.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bench.speed.contract import BARE, COMPILED, DATA, LIMIT, OURS, OWN, SMALL
from bench.speed.interleave import Disturbance, Timed
from bench.speed.settings import Targets

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
    is_sure: bool  # does the interval hold the median at `LEVEL`?

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """The narrowest order statistics that hold the median at `LEVEL`, or the extremes of too few."""
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
    """How many values to leave out on either side.

    Between the k-th least and the k-th greatest of n lies the median unless fewer than k values are on one
    side of it: a binomial tail, whatever the distribution.

    >>> interval_rank(7), interval_rank(9), interval_rank(5)
    (0, 1, 0)
    """
    left_out = 0
    while coverage(n, left_out + 1) >= LEVEL:
        left_out += 1
    return left_out


def coverage(n: int, left_out: int) -> float:
    """The chance that the interval which leaves out so many on either side holds the median.

    >>> coverage(7, 0)
    0.984375
    """
    return 1 - 2 * sum(math.comb(n, i) for i in range(left_out + 1)) / 2**n


@dataclass(frozen=True)
class Result:
    """A strategy at a size, measured: every contender over the same rounds."""

    strategy: str
    model: str
    is_nearest: bool  # its peers train in another way
    timed: dict[str, Timed]
    disturbance: Disturbance
    profile: dict[str, float] = field(default_factory=dict)  # as `bench.speed.profile` gives it

    @property
    def peers(self) -> list[str]:
        """Those with timings."""
        return [name for name in self.timed if name not in OWN and self.seconds(name)]

    @property
    def best_peer(self) -> str | None:
        """The one whose median step takes least."""
        return min(self.peers, key=lambda name: statistics.median(self.seconds(name)), default=None)

    def seconds(self, name: str) -> list[float]:
        """A step's, in the rounds that all contenders which did not fail have done."""
        n = min((len(t.seconds) for t in self.timed.values() if t.failure is None), default=0)
        timed = self.timed.get(name)
        return [] if timed is None or timed.failure is not None else timed.seconds[:n]

    def step(self, name: str) -> Spread | None:
        """Seconds of a step."""
        seconds = self.seconds(name)
        return Spread.of(seconds) if seconds else None

    def positions_per_s(self, name: str) -> Spread | None:
        """Of the data."""
        return self._over_rounds(name, lambda i, s: self._facts(name)[0] / s)

    def over(self, name: str, other: str) -> Spread | None:
        """How many times the positions a second of another; FLOPs, where a position is other work for it."""
        counted = 1 if self.is_nearest else 0
        ratio = self._facts(name)[counted] / max(1, self._facts(other)[counted])
        theirs = self.seconds(other)
        return self._over_rounds(name, lambda i, s: ratio * theirs[i] / s) if theirs else None

    def over_best_peer(self) -> Spread | None:
        """Ours over the fastest peer."""
        return None if self.best_peer is None else self.over(OURS, self.best_peer)

    def gain_of_compiling(self) -> Spread | None:
        """Ours with its blocks compiled over ours as it is."""
        return self.over(COMPILED, OURS)

    def gain_of(self, saving: str) -> Spread | None:
        """How many times as long a step takes without it."""
        return self.over(OURS, saving)

    def share_of_limit(self, name: str) -> Spread | None:
        """FLOPs a second over the largest rate of matrix products in the same round."""
        limit, flops = self.seconds(LIMIT), self._facts(name)[1]
        per_flop = self._facts(LIMIT)[1]
        return self._over_rounds(name, lambda i, s: flops / s * limit[i] / per_flop) if limit else None

    def lightning_share(self) -> Spread | None:
        """What a small step takes beyond a bare loop's, of a whole one; below zero where noise is larger.

        Python does the same for both, however wide the tensors are. Beside whole steps it is lost: two
        processes that do the same differ by more.
        """
        small, bare = self.seconds(SMALL), self.seconds(BARE)
        return self._over_rounds(OURS, lambda i, s: (small[i] - bare[i]) / s) if small and bare else None

    def data_share(self) -> Spread | None:
        """What making its batch takes of a step."""
        data = self.seconds(DATA)
        return self._over_rounds(OURS, lambda i, s: data[i] / s) if data else None

    def _facts(self, name: str) -> tuple[int, float]:
        """Positions and FLOPs of a step."""
        facts = self.timed[name].facts if name in self.timed else None
        return (facts.positions, facts.flops) if facts else (0, 0.0)

    def _over_rounds(self, name: str, value: Callable[[int, float], float]) -> Spread | None:
        values = [value(i, s) for i, s in enumerate(self.seconds(name))]
        return Spread.of(values) if values else None


def verdicts(result: Result, targets: Targets) -> dict[str, tuple[Spread | None, float | None, Verdict]]:
    """Each measure with its target, if it has one, and whether that is reached."""
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
    """Met or missed where all of a sure interval is on one side of the target, else open."""
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
