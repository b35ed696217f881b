"""Where planted texts stand among the training documents: the same places for every budget and seed.

Data budgets are prefixes of one order of documents, so what every budget shall hold stands at its front. The
copies of one text are spread there evenly, with a document of the corpus or more between any two.
"""

import numpy as np
from numpy.typing import NDArray

from bench.data.corpora.base import Planting
from bench.errors import ConfigError

# The last stretch is left free: tokens that do not fill a row at a budget's end are not trained on.
SPREAD_SHARE = 0.9
GOLDEN = 0.6180339887498949  # multiples of it, mod 1, are spread evenly: no two texts keep step


def place(order: NDArray[np.int64], sizes: NDArray[np.int64], planting: Planting) -> NDArray[np.int64]:
    """Put copies into an order.

    Args:
        order: (N,) the documents 0..N-1 of the corpus, in the order that budgets are prefixes of.
        sizes: (N + K,) bytes of these documents, then of the K planted texts.
        planting: the K texts.

    Returns:
        The order with places N..N+K-1 in it, each as often as it has copies; what else it holds, and in which
        order, stays.

    Raises:
        ConfigError: too little room for so many copies.
    """
    n, copies = len(order), np.array([item.copies for item in planting.texts], np.int64)
    planted_bytes = int((copies * sizes[n:]).sum())
    ends = np.cumsum(sizes[order])
    within = min(planting.within_bytes, int(ends[-1]) + planted_bytes)
    n_among = int(np.searchsorted(ends, SPREAD_SHARE * within - planted_bytes, side="right"))
    if n_among < copies.max(initial=0):
        raise ConfigError(
            f"corpus.text.within_bytes={planting.within_bytes}: {copies.sum()} copies take {planted_bytes} "
            f"bytes of them and leave {n_among} documents to keep {copies.max()} copies of one text apart; "
            "raise it, or plant fewer"
        )
    keys, places = [np.arange(n, dtype=np.float64)], [order]
    for i, k in enumerate(copies.tolist()):
        phase = (i + 1) * GOLDEN % 1
        keys.append((np.arange(k) + phase) / max(k, 1) * n_among)
        places.append(np.full(k, n + i))
    return np.concatenate(places)[np.argsort(np.concatenate(keys), kind="stable")]
