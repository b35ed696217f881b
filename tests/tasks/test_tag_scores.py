"""Scores of taggings agree with seqeval and with CoNLL's conlleval, on valid and invalid tags."""

import random

import numpy as np
import pytest
import seqeval.metrics

from bench.tasks.tag_scores import SpanF1, WordAccuracy

KINDS = ("PER", "LOC", "MISC")
TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in KINDS)]


def random_taggings(seed: int, n: int = 200) -> tuple[list[list[str]], list[list[str]]]:
    """Tags in any order, so most are no valid BIO; half of the predicted ones are right."""
    rng = random.Random(seed)  # noqa: S311 - toy tags, no secret
    gold = [[rng.choice(TAGS) for _ in range(rng.randint(1, 9))] for _ in range(n)]
    return gold, [[tag if rng.random() < 0.5 else rng.choice(TAGS) for tag in tags] for tags in gold]


def conlleval(gold: list[list[str]], predicted: list[list[str]]) -> tuple[int, int, int]:
    """Right, found and real chunks, word by word as the official script counts them (conlleval.pl)."""

    def ends(before: tuple[str, str], now: tuple[str, str]) -> bool:
        return before[0] != "O" and (now[0] in "BO" or before[1] != now[1])

    def starts(before: tuple[str, str], now: tuple[str, str]) -> bool:
        return now[0] != "O" and (now[0] == "B" or before[0] == "O" or before[1] != now[1])

    def parts(tag: str) -> tuple[str, str]:
        return (tag[0], tag[2:])

    n_right, n_found, n_real, in_right = 0, 0, 0, False
    outside = ("O", "")
    for tags, guesses in zip(gold, predicted, strict=True):
        old, old_guess = outside, outside
        for tag, guess in [*zip(map(parts, tags), map(parts, guesses), strict=True), (outside, outside)]:
            if in_right:
                if ends(old, tag) and ends(old_guess, guess) and old[1] == old_guess[1]:
                    n_right, in_right = n_right + 1, False
                elif ends(old, tag) != ends(old_guess, guess) or tag[1] != guess[1]:
                    in_right = False
            if starts(old, tag) and starts(old_guess, guess) and tag[1] == guess[1]:
                in_right = True
            n_real += starts(old, tag)
            n_found += starts(old_guess, guess)
            old, old_guess = tag, guess
    return n_right, n_found, n_real


@pytest.mark.parametrize("seed", range(5))
def test_span_f1_is_that_of_seqeval(seed: int):
    gold, predicted = random_taggings(seed)
    ours = SpanF1().value(SpanF1().counts(gold, predicted))
    assert 0.1 < ours < 0.9
    assert ours == pytest.approx(seqeval.metrics.f1_score(gold, predicted), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_spans_are_counted_as_conlleval_does(seed: int):
    gold, predicted = random_taggings(seed)
    counts = SpanF1().counts(gold, predicted)
    assert tuple(int(rows.sum()) for rows in counts.values()) == conlleval(gold, predicted)


@pytest.mark.parametrize(
    ("gold", "predicted", "expected"),
    [
        ("B-A I-A O B-B", "B-A I-A O B-B", (2, 2, 2)),
        ("B-A I-A O B-B", "B-A O O B-B", (1, 2, 2)),  # half a span is none
        ("B-A I-A O B-B", "B-A I-A O B-A", (1, 2, 2)),  # the type counts
        ("B-A B-A", "B-A I-A", (0, 1, 2)),  # two spans are not one
        ("O B-A", "O I-A", (1, 1, 1)),  # an I- after O starts a span
        ("B-A B-B", "B-A I-B", (2, 2, 2)),  # and one after another type
        ("O O", "O O", (0, 0, 0)),
    ],
)
def test_spans_by_hand(gold: str, predicted: str, expected: tuple[int, int, int]):
    counts = SpanF1().counts([gold.split()], [predicted.split()])
    assert [rows.tolist() for rows in counts.values()] == [[n] for n in expected]
    right, found, real = expected
    assert SpanF1().value(counts) == (2 * right / (found + real) if found + real else 0.0)


def test_a_span_never_crosses_sentences():
    counts = SpanF1().counts([["B-A"], ["I-A"]], [["B-A"], ["I-A"]])
    np.testing.assert_equal(counts["gold"], [1, 1])


def test_accuracy_is_over_words_not_over_sentences():
    counts = WordAccuracy().counts([["N"], ["V", "N", "D"]], [["N"], ["N", "N", "N"]])
    np.testing.assert_equal(counts["correct"], [1, 1])
    assert WordAccuracy().value(counts) == 2 / 4
    assert WordAccuracy().n_items(counts) == 4


def test_a_tagged_sentence_reads_well():
    assert SpanF1().written(["A", "B", "c"], ["B-X", "I-X", "O"]) == "[A B]X c"
    assert SpanF1().written(["A", "B"], ["B-X", "B-Y"]) == "[A]X [B]Y"
