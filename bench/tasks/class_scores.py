"""Scores of classifications besides accuracy: Matthews correlation and F1, as GLUE uses them.

Both are scikit-learn's. Tied classes share a prediction in equal parts, as they share a hit in
`bench.tasks.probe.hits`. Shapes: M items, C classes.
"""

import warnings
from collections.abc import Callable

import numpy as np
from torch import Tensor

Score = Callable[[Tensor, Tensor, int], float]


def matthews(scores: Tensor, labels: Tensor, positive: int) -> float:
    """Return the Matthews correlation of scores (M, C) with classes (M,); 0 for a constant predictor."""
    from sklearn.metrics import matthews_corrcoef

    gold, predicted, weights = _shared(scores, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a single class has no correlation
        return float(matthews_corrcoef(gold, predicted, sample_weight=weights))


def f1(scores: Tensor, labels: Tensor, positive: int) -> float:
    """Return the F1 of the class `positive`; 0 if it is neither there nor predicted."""
    from sklearn.metrics import f1_score

    gold, predicted, weights = _shared(scores, labels)
    is_gold, is_predicted = gold == positive, predicted == positive
    return float(f1_score(is_gold, is_predicted, sample_weight=weights, zero_division=0))


def _shared(scores: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return gold and predicted classes (K,) with weights: one entry per item and class tied for the best."""
    best = scores == scores.amax(dim=1, keepdim=True)  # (M, C)
    item, predicted = best.nonzero(as_tuple=True)
    weights = 1 / best.sum(dim=1)[item]
    return labels[item].numpy(), predicted.numpy(), weights.numpy()


SCORES: dict[str, Score] = {"matthews": matthews, "f1": f1}
