"""Trivial baselines: what a task's labels and texts alone give, without any network and any pretraining.

A strategy that does not beat them has shown nothing on the task; see `bench.analysis.gate`. They fit to the
same labels as the strategies and answer the same test items. Shapes: N training and M test items, S classes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from bench.data.tokenizer import EOS, PAD
from bench.tasks.base import Setting
from bench.tasks.generation import training_texts
from bench.tasks.text_metrics import ByteNGrams, fit_byte_ngrams

INVERSE_PENALTY = 10.0  # of the logistic regression on n-grams of words
WORDS = r"(?u)\w+|[^\w\s]"  # words and single signs
NGRAM_ORDER, NGRAM_BYTES = 6, 2_000_000  # of the n-gram model of bytes, and of the text that it is fitted to
DECIMALS = 9  # of scores; smaller differences are ties
SUFFIX = 3  # characters


def texts_of(tokens: Tensor, tokenizer: Tokenizer) -> list[str]:
    """Return the texts of padded ids (N, T), as far as a model reads them; a pair as two lines."""
    found = []
    for row in tokens.tolist():
        ids = [i for i in row if i != PAD]
        parts = [list(part) for part in np.split(np.array(ids), np.flatnonzero(np.array(ids) == EOS) + 1)]
        found.append("\n".join(tokenizer.decode(part) for part in parts if len(part)))
    return found


def bag_of_ngrams(train: Sequence[str], labels: Tensor, test: Sequence[str]) -> Tensor:
    """Classify texts by a logistic regression on their words and pairs of words, weighted by TF-IDF.

    Args:
        train: N texts.
        labels: (N,) classes.
        test: M texts.

    Returns:
        (M, S) scores of the classes that occur in training, in order.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    if len(labels.unique()) == 1:
        return torch.zeros(len(test), 1, dtype=torch.float64)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORDS)
    seen = vectorizer.fit_transform(train)
    classifier = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(seen, labels.numpy())
    scores = classifier.predict_log_proba(vectorizer.transform(test))
    return torch.from_numpy(np.asarray(scores).round(DECIMALS))


def words_in_context(
    train: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], test: Sequence[Sequence[str]]
) -> list[list[str]]:
    """Tag each word by a linear classifier of the word, its neighbours, its suffix and its shape.

    Args:
        train: words of each training sentence.
        tags: their tags.
        test: words of each test sentence.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.svm import LinearSVC

    flat = [tag for sentence in tags for tag in sentence]
    if len(set(flat)) == 1:
        return [[flat[0]] * len(sentence) for sentence in test]
    vectorizer = CountVectorizer(analyzer=list, binary=True)
    seen = vectorizer.fit_transform(part for sentence in train for part in _word_features(sentence))
    classifier = LinearSVC(random_state=0).fit(seen, flat)
    asked = vectorizer.transform(part for sentence in test for part in _word_features(sentence))
    found = iter(classifier.predict(asked).tolist())
    return [[next(found) for _ in sentence] for sentence in test]


def _word_features(words: Sequence[str]) -> Iterator[list[str]]:
    padded = ["<start>", *words, "<end>"]
    for before, word, after in zip(padded, padded[1:], padded[2:], strict=False):
        shape = "digit" if word[0].isdigit() else "title" if word[0].isupper() else "other"
        context = [f"before={before.lower()}", f"after={after.lower()}"]
        yield [f"word={word.lower()}", f"suffix={word[-SUFFIX:].lower()}", f"shape={shape}", *context]


def likeness(queries: Sequence[str], documents: Sequence[str]) -> NDArray[np.float64]:
    """Return the cosine (Q, N) of the TF-IDF weights of words, which are taken from the documents."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=WORDS)
    rows = vectorizer.fit_transform(documents)
    found: NDArray[np.float64] = (vectorizer.transform(queries) @ rows.T).toarray().round(DECIMALS)
    return found


def byte_ngrams(setting: Setting) -> ByteNGrams:
    """Return an n-gram model of the first training texts; see `bench.tasks.text_metrics`."""
    return fit_byte_ngrams(training_texts(setting, NGRAM_BYTES), NGRAM_ORDER)


def text_nats(ngrams: ByteNGrams, texts: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Return the negative log-likelihood (N,) of each text given the one before it, in nats."""
    return np.array([ngrams.nll(before, text, is_closed=False).sum() for before, text in texts])
