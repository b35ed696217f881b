"""Label budgets: nested sets of labelled items, balanced as far as the data allow. texts by class -> items.

Shapes: N training items, M test items, T tokens, C classes, S of them seen in training.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.protocols import hits
from bench.tasks.base import Measured


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
    """Encoded texts (N, T) and their classes (N,)."""

    tokens: Tensor
    labels: Tensor

    def first(self, n: int) -> "Items":
        """The first `n`."""
        return Items(self.tokens[:n], self.labels[:n])


@dataclass(frozen=True)
class Budget:
    """What is there at one label budget.

    `pool` holds the training items of the largest budget, of which the first `n_labels` may be fitted to, so
    that their frozen features are computed once for all budgets.
    """

    pool: Items
    n_labels: int
    validation: Items
    test: Items
    n_classes: int

    @property
    def train(self) -> Items:
        """What may be fitted to."""
        return self.pool.first(self.n_labels)

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


def in_turns(texts: Sequence[list[str]], seed: int) -> list[tuple[str, int]]:
    """All texts with the number of their class, shuffled, one of each class in turn while it has any.

    Every beginning of it is balanced as far as the data allow.
    """
    rng = random.Random(seed)  # noqa: S311 - a shuffle, not a secret
    shuffled = [rng.sample(of_class, len(of_class)) for of_class in texts]
    drawn: list[tuple[str, int]] = []
    for turn in range(max(map(len, shuffled), default=0)):
        each = [(of_class[turn], label) for label, of_class in enumerate(shuffled) if turn < len(of_class)]
        rng.shuffle(each)
        drawn += each
    return drawn


def n_labels(budgets: Sequence[int | None], n_items: int) -> tuple[list[int], int]:
    """The sizes of the budgets where so many items are there, the largest first; how many budgets go beyond.

    Those that do are one with the largest.

    >>> n_labels([32, 128, 512, None], 300)
    ([300, 128, 32], 1)
    """
    sizes = {min(n_items, n_items if n is None else n) for n in budgets}
    return sorted(sizes, reverse=True), sum(n is not None and n > n_items for n in budgets)
