"""Scores of taggings: F1 of spans, as seqeval reads them, or accuracy of words. tags -> counts -> score.

Spans are read by `seqeval` (https://github.com/chakki-works/seqeval) in its default mode, which follows
CoNLL's conlleval: a span counts if its type and both ends are right; invalid BIO sequences are read leniently
(an I- after O, or after another type, starts a span) and never repaired.
Scores are computed from counts by sentence, so that they can be bootstrapped by sentence.
Shapes: N sentences; a tag list holds a tag per word.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

Tags = Sequence[str]
Counts = Mapping[str, NDArray[np.int64]]  # name -> (N,)


class TagScore(ABC):
    """A metric of taggings."""

    metric: ClassVar[str]
    untagged: ClassVar[str]  # the tag of words that cannot be predicted

    @abstractmethod
    def counts(self, gold: Iterable[Tags], predicted: Iterable[Tags]) -> Counts:
        """Return the counts by sentence that the metric is computed from."""

    @abstractmethod
    def value(self, counts: Counts) -> float:
        """Return the metric over all sentences, from 0 to 1."""

    @abstractmethod
    def n_items(self, counts: Counts) -> int:
        """Return the number of scored spans or words."""

    @abstractmethod
    def written(self, words: Sequence[str], tags: Tags) -> str:
        """Format a tagged sentence for a reader."""


class SpanF1(TagScore):
    """Micro-averaged F1 of typed spans; 0 if there are none."""

    metric = "f1"
    untagged = "O"

    def counts(self, gold: Iterable[Tags], predicted: Iterable[Tags]) -> Counts:
        """Count correct, predicted and gold spans."""
        rows = [(_spans(g), _spans(p)) for g, p in zip(gold, predicted, strict=True)]
        table = np.array([(len(g & p), len(p), len(g)) for g, p in rows], np.int64).reshape(-1, 3)
        return dict(zip(("true_positives", "predicted", "gold"), table.T, strict=True))

    @override
    def value(self, counts: Counts) -> float:
        total = counts["predicted"].sum() + counts["gold"].sum()
        return float(2 * counts["true_positives"].sum() / total) if total else 0.0

    @override
    def n_items(self, counts: Counts) -> int:
        return int(counts["gold"].sum())

    def written(self, words: Sequence[str], tags: Tags) -> str:
        """Mark spans by brackets.

        >>> SpanF1().written(["in", "New", "York", "now"], ["O", "B-LOC", "I-LOC", "O"])
        'in [New York]LOC now'
        """
        marked = list(words)
        for kind, first, last in _spans(tags):
            marked[first] = "[" + marked[first]
            marked[last] += f"]{kind}"
        return " ".join(marked)


class WordAccuracy(TagScore):
    """Share of words, not of sentences, with the right tag."""

    metric = "accuracy"
    untagged = ""  # never right

    def counts(self, gold: Iterable[Tags], predicted: Iterable[Tags]) -> Counts:
        """Count correct words and all words."""
        pairs = list(zip(gold, predicted, strict=True))
        correct = [sum(a == b for a, b in zip(g, p, strict=True)) for g, p in pairs]
        return {"correct": np.array(correct, np.int64), "words": np.array([len(g) for g, _ in pairs])}

    @override
    def value(self, counts: Counts) -> float:
        return float(counts["correct"].sum() / counts["words"].sum())

    @override
    def n_items(self, counts: Counts) -> int:
        return int(counts["words"].sum())

    def written(self, words: Sequence[str], tags: Tags) -> str:
        """Append its tag to each word.

        >>> WordAccuracy().written(["he", "left"], ["PRP", "VBD"])
        'he/PRP left/VBD'
        """
        return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))


def _spans(tags: Tags) -> set[tuple[str, int, int]]:
    """Return spans as (type, first word, last word)."""
    from seqeval.metrics.sequence_labeling import get_entities  # optional: only where spans are scored

    return set(get_entities(list(tags)))
