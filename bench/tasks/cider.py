"""CIDEr-D: how well a caption agrees with those that people gave (Vedantam et al. 2015, arXiv:1411.5726).

Written out here since the packages that carry it bring Java and 100 MB (pycocoevalcap 1.2) or models of audio
(aac-metrics 0.6.0); it agrees with both (tests/tasks/test_cider.py).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_N = 4  # n-grams of one to four words
SIGMA = 6.0  # of the penalty on a difference in length
SCALE = 10.0

Text = Sequence[str]  # words
Gram = tuple[str, ...]
Vectors = list[dict[Gram, float]]  # tf-idf weights of the n-grams, for each n


def words(text: str) -> list[str]:
    """In lower case, without punctuation: nearly what the Penn Treebank tokenizer of the COCO server leaves.

    >>> words("A cat's medium-light eye!")
    ['a', "cat's", 'medium-light', 'eye']
    """
    return re.findall(r"\w+(?:['’-]\w+)*", text.lower())


def cider_d(candidates: Sequence[Text], references: Sequence[Sequence[Text]]) -> NDArray[np.float64]:
    """CIDEr-D of each candidate; the score of a system is the mean.

    Args:
        candidates: words of the caption of each of N images.
        references: of each image, words of each of its references; n-grams that occur with few images weigh
            more.

    Returns:
        (N,) from 0 to 10. A text equal to its only reference scores 10 only if it has four words or more: of
        shorter ones, the n-grams that they do not have count as not found.
    """
    of_references = [[_grams(text) for text in texts] for texts in references]
    n_images_with = Counter(gram for texts in of_references for gram in set().union(*texts))
    log_n = math.log(len(references))

    def weighted(grams: Counter[Gram]) -> Vectors:
        vectors: Vectors = [{} for _ in range(MAX_N)]
        for gram, n in grams.items():
            vectors[len(gram) - 1][gram] = n * (log_n - math.log(max(1, n_images_with[gram])))
        return vectors

    scores = []
    for candidate, texts, grams in zip(candidates, references, of_references, strict=True):
        vectors = weighted(_grams(candidate))
        likeness = [
            _likeness(vectors, weighted(own), len(candidate) - len(text))
            for text, own in zip(texts, grams, strict=True)
        ]
        scores.append(SCALE * sum(likeness) / len(likeness))
    return np.array(scores)


def _grams(text: Text) -> Counter[Gram]:
    return Counter(tuple(text[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(text) - n + 1))


def _likeness(candidate: Vectors, reference: Vectors, difference: int) -> float:
    """Mean over n of the cosine, the candidate's weights clipped to the reference's."""
    total = 0.0
    for a, b in zip(candidate, reference, strict=True):
        length = math.sqrt(sum(w * w for w in a.values()) * sum(w * w for w in b.values()))
        if length:
            total += sum(min(w, b[gram]) * b[gram] for gram, w in a.items() if gram in b) / length
    return total / MAX_N * math.exp(-(difference**2) / (2 * SIGMA**2))
