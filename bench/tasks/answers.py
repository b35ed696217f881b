"""Questions about a text, and the scores of answers: exact match and F1 by SQuAD's official rules.

The rules are those of `evaluate-v2.0.py` (Rajpurkar et al. 2016, arXiv:1606.05250, sec. 6.1; 2018,
arXiv:1806.03822): texts are compared in lower case, without ASCII punctuation and articles, as words that
white space separates, and with the best of the gold answers; if the context gives no answer, only the empty
answer is right. The script for version 1.1 differs if a gold answer consists of articles and punctuation
only: there its F1 is 0, here it is 1 for an answer of the same kind.
Shapes: K spans, G distinct words of the gold answers.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\S+")
ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Question:
    """One question, its context and its right answers.

    `span` is the place in the context, in characters, of the first answer that occurs in it; None if none
    does. A `group` lies in one split.
    """

    question: str
    context: str
    answers: tuple[str, ...]  # empty: the context gives no answer
    span: tuple[int, int] | None
    group: str

    @property
    def is_misplaced(self) -> bool:
        """Whether there is an answer, but not where the data say."""
        return bool(self.answers) and self.span is None


class Golds:
    """The right answers of a question, prepared for comparison with others."""

    def __init__(self, answers: Iterable[str]) -> None:
        texts = [text for answer in answers if (text := normalised(answer))] or [""]
        self.bags = {text: Counter(text.split()) for text in texts}  # without gold answers "" is right
        self.words = sorted({word for bag in self.bags.values() for word in bag})

    def score(self, answer: str) -> tuple[float, float]:
        """Return exact match and F1 of an answer, each from 0 to 1, with the best gold answer."""
        bare = answer.lower().translate(NO_PUNCTUATION)
        if self.words and not any(word in bare for word in self.words):
            return 0.0, 0.0  # a shortcut for most spans of a context
        given = normalised(answer)
        bag = self._bag(given.split())[None]
        return float(given in self.bags), float(self._f1(bag)[0])

    def score_spans(self, context: str, spans: NDArray[np.int64]) -> NDArray[np.float64]:
        """As `score`, for many spans (K, 2) of characters of one text: exact match and F1 (K, 2).

        There are thousands of spans if a model ties them all. Normalisation treats each word between white
        space separately, so the words of a span are the whole words in it, which are counted once for all
        spans, and a partial word at either end.
        """
        words = np.array([match.span() for match in WORD.finditer(context)], dtype=np.int64).reshape(-1, 2)
        whole = [self._bag(normalised(context[slice(*word)]).split()) for word in words]
        so_far = np.cumsum([self._bag([]), *whole], axis=0)  # counts of the words before each
        start, stop = spans.T
        first = np.searchsorted(words[:, 1], start, side="right")  # the word in which the span starts
        last = np.searchsorted(words[:, 0], stop, side="left") - 1
        found = np.empty((len(spans), 2))
        for k in np.flatnonzero(last <= first):
            found[k] = self.score(context[start[k] : stop[k]])
        long = np.flatnonzero(last > first)
        left, right, first, last = start[long], stop[long], first[long], last[long]
        bags = so_far[last] - so_far[first + 1]
        bags = bags + self._pieces(context, left, words[first, 1])
        bags = bags + self._pieces(context, words[last, 0], right)
        f1 = self._f1(bags)
        found[long] = np.stack([np.zeros(len(long)), f1], axis=1)
        for k in long[f1 == 1]:  # the words are equal, but their order may differ
            found[k] = self.score(context[start[k] : stop[k]])
        return found

    def _pieces(self, context: str, start: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the bags (K, G + 1) of parts of the text, of which few are distinct."""
        distinct, which = np.unique(np.stack([start, stop], axis=1), axis=0, return_inverse=True)
        bags = [self._bag(normalised(context[slice(*piece)]).split()) for piece in distinct]
        return np.array(bags, dtype=np.int64).reshape(-1, len(self.words) + 1)[which.reshape(-1)]

    def _bag(self, words: list[str]) -> NDArray[np.int64]:
        """Count the occurrences of each gold word, and all words: (G + 1,)."""
        return np.array([*map(words.count, self.words), len(words)], dtype=np.int64)

    def _f1(self, bags: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the F1 (K,) of bags (K, G + 1) with the best gold answer; that of two empty answers is 1."""
        best = np.zeros(len(bags))
        given = bags[:, -1]
        for bag in self.bags.values():
            gold = np.array([bag[word] for word in self.words], dtype=np.int64)
            common, n_gold = np.minimum(bags[:, :-1], gold).sum(axis=1), gold.sum()
            # 2 P R / (P + R) with P = common / given, R = common / gold
            f1 = np.where(given + n_gold > 0, 2 * common / np.maximum(given + n_gold, 1), 1.0)
            best = np.maximum(best, f1)
        return best


def normalised(text: str) -> str:
    """Return a text in lower case, without punctuation and articles, with single spaces.

    >>> normalised("The  Eiffel-Tower, a tower.")
    'eiffeltower tower'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())
