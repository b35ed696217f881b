"""Label budgets: what all tasks with labelled training items share, besides their options.

A task is measured with several numbers of labels; each smaller set is a prefix of the larger ones.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.tasks.base import Measured
from bench.tasks.probe import Choice


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


def probe_choice(choice: Choice, n_labels: int) -> list[Measured]:
    """Return the layer and the penalty that validation items chose for a probe, as descriptive metrics."""
    values = {"probe_layer": float(choice.layer), "probe_inverse_penalty": choice.inverse_penalty}
    return [Measured(name, value, None, n_labels, None, n_labels) for name, value in values.items()]


def failed_fits(failed: Sequence[bool], n_labels: int | None) -> Measured:
    """Return the share of fine-tunings that failed (see `Tuned.failed`), as a metric."""
    return Measured("failed_fits", sum(failed) / len(failed), None, len(failed), False, n_labels)
