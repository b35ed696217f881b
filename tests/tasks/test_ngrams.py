"""The judge of texts: Kneser-Ney as NLTK computes it, probabilities that sum to one, ends, orders."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.tasks.options import MAX_ORDER
from bench.tasks.text_metrics import END, N_BYTES, ByteNGrams, Level, fit_byte_ngrams, perplexity

TEXTS = ["abracadabra", "abra cad", "cadabra abra"]
DISCOUNT = 0.3


def fixed(model: ByteNGrams) -> ByteNGrams:
    """The same counts with one discount for all orders, as NLTK has it."""
    return ByteNGrams([replace(level, discount=DISCOUNT) for level in model.levels])


def nltk_model(texts: list[str], order: int) -> Any:
    """NLTK's, with the uniform distribution below the lowest order that it lacks."""
    from nltk.lm import KneserNeyInterpolated
    from nltk.util import everygrams

    stream = [chr(0), *"".join(text + chr(0) for text in texts)]
    model = KneserNeyInterpolated(order, discount=DISCOUNT)
    grams = [g for g in everygrams(stream, max_len=order) if len(g) == order]
    shorter = [[g[i:] for g in set(grams)] for i in range(1, order)]  # none without a byte before it
    model.fit([[*grams, *(g for part in shorter for g in part)]], vocabulary_text=stream)
    plain = model.estimator.unigram_score

    def unigram_score(word: str) -> float:
        _, total = model.estimator._continuation_counts(word)
        types = len(model.counts[1])
        kept = max(plain(word) * total - DISCOUNT, 0)
        return (kept + DISCOUNT * types / N_BYTES) / total

    model.estimator.unigram_score = unigram_score
    return model


@pytest.mark.parametrize("order", [2, 3, 4])
def test_probabilities_are_those_of_nltk(order: int):
    model, theirs = fixed(fit_byte_ngrams(TEXTS, order)), nltk_model(TEXTS, order)
    context = "\0" * order + "abra"
    text = "cadabra dab"
    found = model.nll("abra", text, is_closed=True)
    whole = context + text + "\0"
    expected = [
        theirs.unmasked_score(whole[i], tuple(whole[i - order + 1 : i]))
        for i in range(len(context), len(whole))
    ]
    np.testing.assert_allclose(np.exp(-found), expected, rtol=1e-12)


@pytest.mark.parametrize("before", ["abra", "dab", "", "xyz"])
def test_the_probabilities_of_all_next_bytes_sum_to_one(before: str):
    model = fit_byte_ngrams(TEXTS, 4)
    ascii_bytes = [chr(i) for i in range(1, 128)]
    seen = sum(float(np.exp(-model.nll(before, char, is_closed=False))[0]) for char in ascii_bytes)
    end = float(np.exp(-model.nll(before, "", is_closed=True))[0])
    unseen = model.nll(before, "é", is_closed=False)[0]  # its first byte occurs nowhere, like 127 others
    assert seen + end + 128 * np.exp(-unseen) == pytest.approx(1)


def test_one_byte_by_hand():
    # "0a0a0": five bytes, 0 three times. Order one: both bytes occur more than once, hence a discount of 1/2.
    model = fit_byte_ngrams(["a", "a"], 1)
    floor = 0.5 * 2 / 5 / N_BYTES
    assert np.exp(-model.nll("", "az", is_closed=True)) == pytest.approx(
        [1.5 / 5 + floor, floor, 2.5 / 5 + floor]
    )


def test_what_was_read_is_likelier_than_the_same_words_in_another_order():
    texts = [f"the {a} of the {b} is a {a}\n" for a in ("cat", "dog", "emu") for b in ("day", "sea", "sun")]
    for order in range(2, MAX_ORDER + 1):
        model = fit_byte_ngrams(texts, order)
        scored = [
            perplexity(np.array([model.nll("the", text, is_closed=True).mean()]))
            for text in (
                " cat of the sea is a cat\n",
                " cat cat sea of is a the\n",
                " zzz zzzz zz zzz zz zz\n",
            )
        ]
        assert scored == sorted(scored)


def test_only_the_last_bytes_before_a_text_matter():
    model = fit_byte_ngrams(TEXTS, 4)
    a, b = (model.nll(before, "cada", is_closed=True) for before in ("xxabra", "bra"))
    np.testing.assert_array_equal(a, b)
    assert (model.nll("cad", "cada", is_closed=True) != b).any()


def test_perplexity_is_the_geometric_mean_over_texts():
    assert perplexity(np.log([2.0, 8.0])) == pytest.approx(4.0)


def test_texts_have_their_ends_counted_and_long_orders_fit_into_a_key():
    model = fit_byte_ngrams(["\x7f" * 20], MAX_ORDER)
    top: Level = model.levels[-1]
    assert top.counts.sum() == 20 + 2 * len(END) - MAX_ORDER + 1
    assert [int(g) for g in top.grams] == sorted(int(g) for g in top.grams)
    assert max(int(g) for g in top.grams) == int.from_bytes(b"\x7f" * 8, "big")
