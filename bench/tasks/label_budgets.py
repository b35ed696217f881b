"""Label budgets: nested sets of labelled items, balanced as far as the data allow. texts -> items.

Shapes: N training items, M test items, T tokens, C classes, S of them seen in training.
"""

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.errors import ConfigError
from bench.tasks.base import Measured
from bench.tasks.probe import hits


def check_label_budgets(budgets: Sequence[int | None], max_labels: int, items: str = "labels") -> None:
    """Of a task's options.

    Raises:
        ConfigError: no budget, or one that `max_labels` does not allow; `items` are what is counted.
    """
    if not budgets or not all(n is None or 1 <= n <= max_labels for n in budgets):
        raise ConfigError(
            f"task.*.label_budgets={list(budgets)}: choose numbers of {items} from 1 to "
            f"max_labels={max_labels}, or null"
        )


@dataclass(frozen=True)
class Texts:
    """Texts of both splits, by the number of their class; classes are those of either, ordered by name."""

    train: list[list[str]]
    test: list[list[str]]

    @staticmethod
    def without_tested(
        train: Mapping[str, list[str]], test: Mapping[str, list[str]]
    ) -> tuple["Texts", Counter[str]]:
        """Without training texts that are test texts too; these and empty classes are counted."""
        tested = {text for texts in test.values() for text in texts}
        names = sorted({*train, *test})
        kept = Texts(
            [[text for text in train.get(name, []) if text not in tested] for name in names],
            [list(test.get(name, [])) for name in names],
        )
        lost = sum(map(len, train.values())) - sum(map(len, kept.train))
        counts = {
            "training text that is also a test text": lost,
            "class without training texts": sum(not texts for texts in kept.train),
            "class without test texts": sum(not texts for texts in kept.test),
        }
        return kept, Counter(counts)

    @property
    def trainable(self) -> list[list[str]]:
        """The classes that have training texts."""
        return [texts for texts in self.train if texts]


@dataclass(frozen=True)
class Items:
    """Encoded texts and the classes (N,) of the first N of them.

    The texts (N', T) are those of the largest budget: their frozen features are computed once for all.
    """

    all_tokens: Tensor
    labels: Tensor

    @property
    def tokens(self) -> Tensor:
        """(N, T)."""
        return self.all_tokens[: len(self.labels)]


@dataclass(frozen=True)
class Budget:
    """What there is at one label budget."""

    train: Items
    validation: Items
    test: Items
    n_classes: int

    @property
    def n_labels(self) -> int:
        """What may be fitted to."""
        return len(self.train.labels)

    @property
    def seen(self) -> Tensor:
        """Classes (S,) with a training item, in order."""
        return self.train.labels.unique()

    def hits(self, scores: Tensor, items: Items) -> NDArray[np.float64]:
        """Hits (M,) of scores (M, S) for the seen classes; the others are never chosen."""
        whole = torch.full((len(scores), self.n_classes), -torch.inf, dtype=torch.float64)
        whole[:, self.seen] = scores.double().cpu()
        return hits(whole, items.labels)

    def priors(self) -> Tensor:
        """The logarithm of each seen class' share (S,): scores of a constant predictor."""
        counts = self.train.labels.bincount(minlength=self.n_classes)[self.seen]
        return (counts / counts.sum()).log()

    def measured(self, metric: str, correct: NDArray[np.float64]) -> Measured:
        """The mean of hits (M,), or (fits, M), as a metric; chance is the constant predictor's."""
        constant = self.priors().expand(len(self.test.labels), -1)
        return Measured(
            metric,
            float(correct.mean()),
            float(self.hits(constant, self.test).mean()),
            len(self.test.labels),
            n_labels=self.n_labels,
        )


Turns = list[list[tuple[str, int]]]  # of (text, class), each with one text of every class that has one left


def in_turns(texts: Sequence[list[str]], seed: int) -> Turns:
    """All texts with the number of their class, shuffled, and dealt out in turns.

    After any turn the classes are balanced as far as the data allow.
    """
    rng = random.Random(seed)  # noqa: S311 - a shuffle, not a secret
    shuffled = [rng.sample(of_class, len(of_class)) for of_class in texts]
    turns: Turns = []
    for i in range(max(map(len, shuffled), default=0)):
        turn = [(of_class[i], label) for label, of_class in enumerate(shuffled) if i < len(of_class)]
        rng.shuffle(turn)
        turns.append(turn)
    return turns


def cut(turns: Turns, n: int) -> tuple[list[tuple[str, int]], Turns]:
    """The whole turns among the first `n` texts, or `n` texts of the first turn if it has more; and the rest.

    Classes of a budget are then equally frequent as long as none runs out: a majority that is the luck of a
    draw would be what a constant predictor lives by.

    >>> turns = [[("a", 0), ("b", 1)], [("c", 1), ("d", 0)]]
    >>> cut(turns, 3)
    ([('a', 0), ('b', 1)], [[('c', 1), ('d', 0)]])
    >>> cut(turns, 1)
    ([('a', 0)], [[('b', 1)], [('c', 1), ('d', 0)]])
    """
    ends = list(itertools.accumulate(map(len, turns)))
    whole = sum(end <= n for end in ends)
    if whole or not turns:
        return list(itertools.chain.from_iterable(turns[:whole])), turns[whole:]
    return turns[0][:n], [turns[0][n:], *turns[1:]]


def sizes(turns: Turns, budgets: Sequence[int | None], most: int) -> tuple[list[int], int]:
    """Texts of each budget, the largest first, and how many budgets go beyond the data.

    Those that do are one with the largest, which has `most` texts, or all there are.

    >>> turns = [[("a", 0), ("b", 1)], [("c", 1), ("d", 0)], [("e", 0)]]
    >>> sizes(turns, [3, 100, None], most=200)
    ([5, 2], 1)
    """
    there = sum(map(len, turns))
    found = {len(cut(turns, most if n is None else n)[0]) for n in budgets}
    return sorted(found, reverse=True), sum(n is not None and n > there for n in budgets)


def n_labels(budgets: Sequence[int | None], n_items: int) -> tuple[list[int], int]:
    """As `sizes`, for items without classes.

    >>> n_labels([32, 128, 512, None], 300)
    ([300, 128, 32], 1)
    """
    found = {min(n_items, n_items if n is None else n) for n in budgets}
    return sorted(found, reverse=True), sum(n is not None and n > n_items for n in budgets)
