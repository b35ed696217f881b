"""Planted texts: which texts are added to the training documents, how often, and at which places.

Every data budget is a prefix of one order of documents, so the copies are placed near its front. The copies
of one text are spread evenly there, with at least one document of the corpus between any two. The places are
the same for every budget and seed.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bench.errors import ConfigError

# The last tenth is left free: tokens that do not fill a row at the end of a budget are not trained on.
SPREAD_SHARE = 0.9
GOLDEN = 0.6180339887498949  # multiples of it, mod 1, are spread evenly, so the texts' copies do not coincide


@dataclass(frozen=True)
class Planted:
    """A text that is added to the training documents `copies` times; 0 makes it a control, never added."""

    text: str
    copies: int
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Planting:
    """Texts to plant. Every data budget of at least `within_bytes` holds each exactly `copies` times."""

    texts: list[Planted]
    within_bytes: int


def place(order: NDArray[np.int64], sizes: NDArray[np.int64], planting: Planting) -> NDArray[np.int64]:
    """Insert the copies of planted texts into an order of documents.

    Args:
        order: (N,) the documents 0..N-1 of the corpus, in the order that budgets are prefixes of.
        sizes: (N + K,) bytes of these documents, then of the K planted texts.
        planting: the K texts.

    Returns:
        The order with the planted texts as documents N..N+K-1, each as often as it has copies. The other
        documents keep their order.

    Raises:
        ConfigError: there is too little room for so many copies.
    """
    n, copies = len(order), np.array([item.copies for item in planting.texts], np.int64)
    planted_bytes = int((copies * sizes[n:]).sum())
    ends = np.cumsum(sizes[order])
    within = min(planting.within_bytes, int(ends[-1]) + planted_bytes)
    n_among = int(np.searchsorted(ends, SPREAD_SHARE * within - planted_bytes, side="right"))
    if n_among < copies.max(initial=0):
        raise ConfigError(
            f"corpus.text.within_bytes={planting.within_bytes}: {copies.sum()} planted copies take "
            f"{planted_bytes} bytes and leave {n_among} documents, too few to separate {copies.max()} copies "
            "of one text; raise it, or plant fewer copies"
        )
    keys, places = [np.arange(n, dtype=np.float64)], [order]
    for i, k in enumerate(copies.tolist()):
        phase = (i + 1) * GOLDEN % 1
        keys.append((np.arange(k) + phase) / max(k, 1) * n_among)
        places.append(np.full(k, n + i))
    return np.concatenate(places)[np.argsort(np.concatenate(keys), kind="stable")]
