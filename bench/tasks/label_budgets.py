"""Label budgets: the options and scores that all tasks with labelled training items share.

A task is measured with several numbers of labels; each smaller set is a prefix of the larger ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING

from bench.errors import ConfigError
from bench.tasks.base import Measured, require_at_least, require_choice
from bench.tasks.finetune import Tuning
from bench.tasks.probe import as_attention


@dataclass(frozen=True)
class LabelledOptions(Tuning):
    """Options of a task with label budgets; those of `Tuning` matter for protocol finetune only."""

    protocols: ClassVar[tuple[str, ...]] = ("probe", "finetune")

    protocol: str = MISSING  # probe | finetune, and what the task family adds
    attention: str = MISSING  # own (the strategy's) | causal | bidirectional
    label_budgets: list[int | None] = MISSING  # labelled training items; null: max_labels, or all available
    max_labels: int = MISSING
    validation_items: int = MISSING  # at most, and never more than there are labels
    test_items: int = MISSING  # at most

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "protocol", self.protocols)
        as_attention(self.attention)
        require_at_least(self, 1, "max_labels", "validation_items", "test_items")
        budgets = self.label_budgets
        if not budgets or not all(n is None or 1 <= n <= self.max_labels for n in budgets):
            raise ConfigError(
                f"task.*.label_budgets={list(budgets)}: choose numbers of labelled items from 1 to "
                f"max_labels={self.max_labels}, or null"
            )


def n_labels(budgets: Sequence[int | None], n_items: int) -> tuple[list[int], int]:
    """Return the distinct budgets, the largest first, and how many budgets exceed the data.

    >>> n_labels([32, 128, 512, None], 300)
    ([300, 128, 32], 1)
    """
    found = {min(n_items, n_items if n is None else n) for n in budgets}
    return sorted(found, reverse=True), sum(n is not None and n > n_items for n in budgets)


def fit_spread(metric: str, by_fit: NDArray[np.float64], n_labels: int | None) -> list[Measured]:
    """Return the standard deviation of a score over fits (F,), as a metric; nothing for a single fit."""
    if len(by_fit) < 2:
        return []
    spread = float(by_fit.std(ddof=1))
    return [Measured(f"{metric}_fit_sd", spread, None, len(by_fit), False, n_labels)]


def failed_fits(failed: Sequence[bool], n_labels: int | None) -> Measured:
    """Return the share of fine-tunings that failed (see `Tuned.failed`), as a metric."""
    return Measured("failed_fits", sum(failed) / len(failed), None, len(failed), False, n_labels)
