"""Similarity of sentences: does the cosine of two frozen features rank pairs as people do?

As in SentEval and SimCSE (Gao et al. 2021, arXiv:2104.08821, sec. 6): Spearman's correlation over all pairs,
without any fit. Shapes: N pairs, D features.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from bench.errors import DataError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.baselines import likeness
from bench.tasks.hub import open_labelled_texts, texts_in
from bench.tasks.options import SentenceSimilarityOptions
from bench.tasks.probe import as_attention, encode, text_features

DECIMALS = 6  # of a cosine: smaller differences are rounding, and count as ties


class SentenceSimilarity(Task):
    """Correlate the cosine similarity of a model's features with human judgements (STS-B)."""

    Options = SentenceSimilarityOptions
    options: SentenceSimilarityOptions
    packages = ("datasets",)

    @override
    def check(self, key: str) -> None:
        super().check(key)
        open_labelled_texts(self.options, "split")

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Return Spearman's and Pearson's correlations; chance is 0, also for equal features."""
        pairs, gold, counts = self._pairs()
        how = as_attention(self.options.attention), self.options.pooling
        sides = []
        for side in zip(*pairs, strict=True):
            setting.keep_going()
            tokens = encode(side, setting.tokenizer, setting.sequence_length)
            sides.append(F.normalize(text_features(model, tokens, *how, cache=setting.cache).double(), dim=1))
        cosine = (sides[0] * sides[1]).sum(dim=1)
        return _outcome(cosine, gold, counts)

    @override
    def baseline(self, setting: Setting) -> Outcome:
        """Return the outcome of the words that both sentences share, weighted by TF-IDF."""
        pairs, gold, counts = self._pairs()
        left, right = zip(*pairs, strict=True)
        cosine = likeness(left, [*right, *left])[:, : len(right)].diagonal()
        return _outcome(torch.from_numpy(cosine.copy()), gold, counts)

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        _, gold, counts = self._pairs()
        return _outcome(torch.from_numpy(gold), gold, counts)

    def _pairs(self) -> tuple[list[tuple[str, str]], NDArray[np.float64], dict[str, int]]:
        """Return pairs of texts, their judgements (N,), and the number of rows without either."""
        rows = open_labelled_texts(self.options, "split")
        texts = [texts_in(rows, name) for name in self.options.text_columns]
        labels = rows[self.options.label_column]
        whole = [
            (left, right, float(label))
            for left, right, label in zip(*texts, labels, strict=True)
            if left and right and label is not None and label >= 0  # GLUE's hidden test labels are -1
        ]
        n = min(self.options.test_items, len(whole))
        drawn = [whole[i * len(whole) // n] for i in range(n)]
        if len({label for *_, label in drawn}) < 2:
            raise DataError(
                f"task.*.split={self.options.split}: {n} judged pairs with different labels are too few; "
                "choose a split with labels"
            )
        skipped = len(labels) - len(whole)
        counts = {"pair without a text or a judgement": skipped} if skipped else {}
        pairs = [(left, right) for left, right, _ in drawn]
        return pairs, np.array([label for *_, label in drawn]), counts


def _outcome(predicted: Tensor, gold: NDArray[np.float64], counts: dict[str, int]) -> Outcome:
    from scipy.stats import pearsonr, spearmanr  # late: they take a second

    values = predicted.cpu().numpy().round(DECIMALS)
    if not np.isfinite(values).all():
        raise FloatingPointError("a feature is not finite; the model diverged")
    found = {"spearman": spearmanr, "pearson": pearsonr}
    is_constant = bool(np.ptp(values) == 0)  # has no correlation, and knows nothing
    scores = [
        Measured(name, 0.0 if is_constant else float(correlate(values, gold).statistic), 0.0, len(gold))
        for name, correlate in found.items()
    ]
    return Outcome(scores, {"predicted": values, "gold": gold}, counts)
