"""Sentence order (ALBERT, arXiv:1909.11942, sec. 3.1): held-out documents -> pairs of orders -> accuracy.

No classifier is fitted: of two neighbouring sentences of a held-out document, the model should find the true
order more likely than the reverse. Chance is 0.5.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING

from bench.config.bounds import Count
from bench.data.tokenizer import EOS
from bench.errors import DataError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.likelihood import (
    DECIMALS,
    Continuation,
    continuation_nll,
    normalised,
    whole_text,
)
from bench.tasks.minimal_pairs import sentences
from bench.tasks.options import LikelihoodOptions

MOST_TOKENS = 2**20  # of the test split that are searched for sentences


class SentenceOrder(Task):
    """Measure how often the true order of two sentences has the higher likelihood; a tie is a half."""

    @dataclass(frozen=True)
    class Options(LikelihoodOptions):
        """The number of test items, and how likelihoods are computed."""

        test_items: Count = MISSING  # at most

    options: Options

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Return the accuracy over all pairs of neighbouring sentences that the model can read."""
        orders, n_long = self._orders(setting)
        nll = continuation_nll(model, orders, self.options, setting)
        scores = -normalised(nll, orders, self.options.length_normalisation).reshape(-1, 2)  # (N, 2)
        return self._outcome(scores, n_long)

    def ceiling(self, setting: Setting) -> Outcome:
        """Return the outcome of a model that knows every order."""
        orders, n_long = self._orders(setting)
        return self._outcome(np.tile([1.0, 0.0], (len(orders) // 2, 1)), n_long)

    def _orders(self, setting: Setting) -> tuple[list[Continuation], int]:
        """Return the true and the reverse order of each pair in turn, and the number of pairs left out."""
        found = []
        for pair in _pairs(setting):
            # Each sentence is encoded by itself, so that both orders hold the same tokens.
            a, b = (whole_text(f" {sentence}", setting.tokenizer) for sentence in pair)
            found.append([_joined(a, b), _joined(b, a)])
        kept = [both for both in found if max(map(len, both)) <= setting.sequence_length]
        if not kept:
            raise DataError(
                f"no pair of sentences fits in sequence_length={setting.sequence_length} tokens; raise it"
            )
        chosen = kept[: self.options.test_items]
        return [order for both in chosen for order in both], len(found) - len(kept)

    def _outcome(self, scores: NDArray[np.float64], n_long: int) -> Outcome:
        margin = (scores[:, 0] - scores[:, 1]).round(DECIMALS)
        right = (np.sign(margin) + 1) / 2  # (N,)
        name = f"accuracy_{self.options.kind}"
        counts = {"pair longer than sequence_length": n_long} if n_long else {}
        return Outcome([Measured(name, float(right.mean()), 0.5, len(right))], {name: right}, counts)


def _joined(first: Continuation, second: Continuation) -> Continuation:
    return Continuation((), first.scored + second.scored, first.n_bytes + second.n_bytes)


def _pairs(setting: Setting) -> list[tuple[str, str]]:
    """Return neighbouring sentences of the test split, in the order of its documents."""
    split = setting.text.test()
    ids = split.read(0, min(split.n_tokens, MOST_TOKENS))
    documents = [part[part != EOS].tolist() for part in np.split(ids, np.flatnonzero(ids == EOS) + 1)]
    texts = setting.tokenizer.decode_batch(documents, skip_special_tokens=False)
    found = [pair for text in texts for pair in pairwise(sentences(text)) if pair[0] != pair[1]]
    if not found:
        raise DataError("no document of the test split has two sentences; use another text corpus")
    return found
