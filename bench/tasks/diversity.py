"""How much texts repeat: within a text, over a set of them, and of one another. texts -> numbers, no torch.

Words are those of sacrebleu's 13a tokenisation, the same for all of them and for every strategy.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

Floats = NDArray[np.float64]
Words = list[str]


def words(texts: Sequence[str]) -> list[Words]:
    """Texts to words and punctuation."""
    tokenise = Tokenizer13a()
    return [tokenise(text).split() for text in texts]


def distinct(texts: Sequence[Words], n: int) -> float:
    """Distinct-n (Li et al. 2016, arXiv:1510.03055, sec. 5.2): distinct n-grams by all n-grams of the set.

    It falls with the number of words, hence compares sets of one size. 0 where there are no n-grams.
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / max(1, len(grams))


def repetition(texts: Sequence[Words], n: int) -> Floats:
    """seq-rep-n (Welleck et al. 2020, arXiv:1908.04319, sec. 6): the share of a text's n-grams that recur.

    Returns:
        (N,) 1 - distinct n-grams by n-grams of each text; 0 for a text without any.
    """
    return np.array([1 - distinct([text], n) if len(text) >= n else 0.0 for text in texts])


def self_bleu(texts: Sequence[str]) -> Floats:
    """Self-BLEU (Zhu et al. 2018, arXiv:1802.01886, sec. 3.2): each text with all others as its references.

    Sentence BLEU of sacrebleu with its defaults (4-grams, exponential smoothing), of the orders that a text
    is long enough for.

    Returns:
        (N,) from 0 to 1, for two texts or more.
    """
    bleu = BLEU(effective_order=True)
    others = [[*texts[:i], *texts[i + 1 :]] for i in range(len(texts))]
    scores = [bleu.sentence_score(text, rest).score for text, rest in zip(texts, others, strict=True)]
    return np.array(scores) / 100


def ngrams(text: Words, n: int) -> list[tuple[str, ...]]:
    """All n-grams of a text, in order."""
    return list(zip(*(text[i:] for i in range(n)), strict=False))
