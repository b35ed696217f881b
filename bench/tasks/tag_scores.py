"""How taggings are scored: spans by F1 as seqeval reads them, words by accuracy. tags -> counts -> score.

Spans are read by `seqeval` (https://github.com/chakki-works/seqeval) in its default mode, which follows
CoNLL's conlleval: a span counts when its type and both its ends are right; tags that are no valid BIO
sequence are read leniently (an I- that follows O, or another type, starts a span) and never repaired.
Scores are made of counts by sentence, so that they can be bootstrapped by sentence.
Shapes: N sentences; a tag list holds a tag per word.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from seqeval.metrics.sequence_labeling import get_entities

Tags = Sequence[str]
Counts = Mapping[str, NDArray[np.int64]]  # name -> (N,)


class TagScore(ABC):
    """A metric of taggings."""

    metric: ClassVar[str]
    untagged: ClassVar[str]  # what a word counts as to which no tag can be given

    @abstractmethod
    def counts(self, gold: Iterable[Tags], predicted: Iterable[Tags]) -> Counts:
        """What the metric is made of, by sentence."""

    @abstractmethod
    def value(self, counts: Counts) -> float:
        """The metric, from 0 to 1, over all sentences."""

    @abstractmethod
    def n_items(self, counts: Counts) -> int:
        """How many things there were to find."""

    @abstractmethod
    def written(self, words: Sequence[str], tags: Tags) -> str:
        """A tagged sentence for a reader."""


class SpanF1(TagScore):
    """Micro-averaged F1 of typed spans; 0 where none is found."""

    metric = "f1"
    untagged = "O"

    def counts(self, gold: Iterable[Tags], predicted: Iterable[Tags]) -> Counts:
        """Spans found rightly, spans found, and spans there are."""
        rows = [(_spans(g), _spans(p)) for g, p in zip(gold, predicted, strict=True)]
        table = np.array([(len(g & p), len(p), len(g)) for g, p in rows], np.int64).reshape(-1, 3)
        return dict(zip(("true_positives", "predicted", "gold"), table.T, strict=True))

    def value(self, counts: Counts) -> float:
        """2 TP / (predicted + gold)."""
        total = counts["predicted"].sum() + counts["gold"].sum()
        return float(2 * counts["true_positives"].sum() / total) if total else 0.0

    def n_items(self, counts: Counts) -> int:
        """Gold spans."""
        return int(counts["gold"].sum())

    def written(self, words: Sequence[str], tags: Tags) -> str:
        """Spans in brackets.

        >>> SpanF1().written(["in", "New", "York", "now"], ["O", "B-LOC", "I-LOC", "O"])
        'in [New York]LOC now'
        """
        marked = list(words)
        for kind, first, last in _spans(tags):
            marked[first] = "[" + marked[first]
            marked[last] += f"]{kind}"
        return " ".join(marked)


class WordAccuracy(TagScore):
    """Share of words with the right tag."""

    metric = "accuracy"
    untagged = ""  # wrong

    def counts(self, gold: Iterable[Tags], predicted: Iterable[Tags]) -> Counts:
        """Words tagged rightly, and words."""
        pairs = list(zip(gold, predicted, strict=True))
        correct = [sum(a == b for a, b in zip(g, p, strict=True)) for g, p in pairs]
        return {"correct": np.array(correct, np.int64), "words": np.array([len(g) for g, _ in pairs])}

    def value(self, counts: Counts) -> float:
        """Over words, not over sentences."""
        return float(counts["correct"].sum() / counts["words"].sum())

    def n_items(self, counts: Counts) -> int:
        """Words."""
        return int(counts["words"].sum())

    def written(self, words: Sequence[str], tags: Tags) -> str:
        """Each word with its tag.

        >>> WordAccuracy().written(["he", "left"], ["PRP", "VBD"])
        'he/PRP left/VBD'
        """
        return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))


def _spans(tags: Tags) -> set[tuple[str, int, int]]:
    """(type, first word, last word)."""
    return set(get_entities(list(tags)))
