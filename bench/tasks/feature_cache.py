"""Frozen features of a checkpoint, kept while it is evaluated: nothing is computed twice."""

import hashlib
from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import Tensor, nn


class FeatureCache:
    """In memory, for as long as the model lives. Never for a model under training.

    What is kept is what was asked for, whole: a part of it under another name would have gone through other
    batches and differ in the last digits, so that a score would depend on which tasks came before.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Tensor]] = WeakKeyDictionary()

    def get(
        self, model: nn.Module, tokens: Tensor, how: tuple[str, ...], compute: Callable[[], Tensor]
    ) -> Tensor:
        """What `compute` gives; from the second time on as it was. Do not write into it.

        Args:
            model: whose weights count; once they change, it is another one.
            tokens: (N, T) ids that are encoded.
            how: all else that decides: what is computed, attention, pooling.
        """
        ids = hashlib.sha256(tokens.cpu().contiguous().numpy().tobytes()).hexdigest()
        # Their sums: torch's own count of changes misses what fused optimizers do.
        weights = tuple(float(parameter.detach().sum()) for parameter in model.parameters())
        kept = self._kept.setdefault(model, {})
        key = (ids, tuple(tokens.shape), weights, how)
        if key not in kept:
            kept[key] = compute()
        return kept[key]
