"""CIDEr-D is what the packages that carry it compute."""

import pytest

from bench.tasks.captioning import cider_d, words

CANDIDATES = [
    "a cat sits on the mat",
    "two dogs run",
    "a red bus",
    "the the the cat",
    "",
    "people ride bikes down a busy street",
]
REFERENCES = [
    ["a cat is on the mat", "the cat sat on a mat", "there is a cat"],
    ["two dogs are running in the park", "dogs run on grass"],
    ["red double decker bus"],
    ["a black cat"],
    ["an empty room", "room"],
    ["people ride bikes down a busy street"],
]
# Computed by pycocoevalcap 1.2 (`Cider`) and by aac-metrics 0.6.0 (`cider_d`), which agree in every digit.
EXPECTED = [2.2140321106818748, 2.0246584751343777, 1.681604065775437, 0.38703647352408216, 0.0, 10.0]


def test_cider_d_agrees_with_pycocoevalcap_and_aac_metrics() -> None:
    found = cider_d([text.split() for text in CANDIDATES], [[r.split() for r in own] for own in REFERENCES])
    assert found == pytest.approx(EXPECTED, abs=1e-12)


def test_a_short_caption_that_is_its_reference_scores_the_share_of_ngrams_that_it_has() -> None:
    texts = [["red"], ["blue", "car"], ["one", "more", "word"], ["a", "caption", "of", "four"]]
    assert cider_d(texts, [[text] for text in texts]) == pytest.approx([2.5, 5.0, 7.5, 10.0])


def test_a_word_that_every_image_has_counts_nothing() -> None:
    assert cider_d([["same"], ["same"]], [[["same"]], [["same"]]]) == pytest.approx([0.0, 0.0])


def test_words_have_no_case_and_no_punctuation() -> None:
    assert words("Woman: medium-light, the cat's (1st) place!") == [
        "woman", "medium-light", "the", "cat's", "1st", "place",
    ]  # fmt: skip
