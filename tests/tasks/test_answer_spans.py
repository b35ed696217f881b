"""Answers by SQuAD's rules: scores by hand, windows, and the best span over them."""

import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torchmetrics.functional.text import squad as torchmetrics_squad

from bench.data.tokenizer import EOS, PAD, train_tokenizer
from bench.tasks.answer_spans import ContextWindows, best_spans, cut_windows, token_span
from bench.tasks.answers import Golds, Question, normalised

# Scores: cases worked by hand from the definitions in evaluate-v2.0.py


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat.", "cat"),
        ("  an   apple\n a day ", "apple day"),
        ("another theatre", "another theatre"),  # no article in a word
        ("U.S.A.", "usa"),
        ("don't", "dont"),
        ("the-end", "theend"),  # punctuation goes first
        ("A", ""),
        ("“the” 5%", "“ ” 5"),  # only ASCII punctuation
    ],
)
def test_normalisation_by_hand(text: str, expected: str):
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("answer", "golds", "em", "f1"),
    [
        ("Denver Broncos", ["the Denver Broncos!"], 1, 1),
        ("Broncos", ["Denver Broncos"], 0, 2 / 3),  # precision 1, recall 1/2
        ("the big Denver Broncos", ["Denver Broncos team"], 0, 2 / 3),  # 2 of 3, 2 of 3
        ("Broncos Denver", ["Denver Broncos"], 0, 1),  # a bag of words
        ("no no yes", ["no yes yes"], 0, 2 / 3),  # each word counts as often as in both
        ("Panthers", ["Denver Broncos"], 0, 0),
        ("Broncos", ["Denver Broncos", "Broncos"], 1, 1),  # the best of the golds
        ("yes", [], 0, 0),  # no answer in the context
        ("", [], 1, 1),
        ("the", [], 1, 1),  # nothing is left of it
        ("", ["yes"], 0, 0),
        ("the", ["a", "yes"], 0, 0),  # a gold of which nothing is left is passed over,
        ("the", ["a"], 1, 1),  # and if no other is left, nothing is right
    ],
)
def test_scores_by_hand(answer: str, golds: list[str], em: float, f1: float):
    assert Golds(golds).score(answer) == pytest.approx((em, f1), abs=1e-12)


def test_scores_agree_with_torchmetrics():
    rng = random.Random(0)  # noqa: S311
    words = ["the", "a", "cat", "Cat.", "mat", "on", "sat,", "U.S.", "it's"]
    draws = [" ".join(rng.choices(words, k=rng.randint(1, 5))) for _ in range(600)]
    for answer, *golds in zip(draws[::3], draws[1::3], draws[2::3], strict=True):
        if not all(map(normalised, golds)):
            continue  # version 1.1, which it has, gives no F1 for nothing
        prediction = [{"prediction_text": answer, "id": "1"}]
        target = [{"answers": {"answer_start": [0, 0], "text": golds}, "id": "1"}]
        theirs = torchmetrics_squad(prediction, target)
        mine = list(Golds(golds).score(answer))
        assert mine == pytest.approx([float(theirs[name]) / 100 for name in ("exact_match", "f1")], abs=1e-6)


def test_all_spans_of_a_text_score_as_each_by_itself():
    rng = random.Random(0)  # noqa: S311
    for _ in range(60):
        context = "".join(rng.choices("aAn theE.-“Σσß2xy\n\t ", k=rng.randint(1, 30)))
        places = [(i, j) for i in range(len(context)) for j in range(i, len(context) + 1)]
        golds = Golds([context[slice(*place)] for place in rng.sample(places, min(2, len(places)))])
        found = golds.score_spans(context, np.array(places))
        np.testing.assert_allclose(found, [golds.score(context[i:j]) for i, j in places], atol=1e-12)


# Tokens and windows


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat, naïve café"] * 3, 300)


def question(context: str, answer: str | None, asked: str = "who?") -> Question:
    if answer is None:
        return Question(asked, context, (), None, context)
    start = context.index(answer)
    return Question(asked, context, (answer,), (start, start + len(answer)), context)


@pytest.mark.parametrize(
    ("answer", "given"),
    [(a, a) for a in ("the", "cat", "cat sat", "naïve", "café 日", "日本", "mat", "日")] + [("é", "café")],
)
def test_tokens_give_an_answer_back_or_the_whole_token_that_it_is_in(
    tokenizer: Tokenizer, answer: str, given: str
):
    text = "the cat sat on a mat, naïve café 日本"
    encoded = tokenizer.encode(text, add_special_tokens=False)
    offsets = np.array(encoded.offsets)
    start = text.index(answer)
    first, last = token_span(offsets, (start, start + len(answer)))
    assert text[offsets[first, 0] : offsets[last, 1]].strip() == given


def test_a_span_that_no_token_holds_is_nowhere():
    assert token_span(np.array([[0, 2], [5, 7]]), (2, 5)) == (-1, -1)
    assert token_span(np.array([[0, 2], [5, 7]]), None) == (-1, -1)


def cut_toy(tokenizer: Tokenizer, questions: list[Question], length: int = 16) -> ContextWindows:
    return cut_windows(questions, tokenizer, length, max_question_tokens=4, step_share=0.5)


def test_a_window_is_a_question_and_a_part_of_its_context(tokenizer: Tokenizer):
    asked = [question("cat " * 12, None), question("cat", None, "w" * 9)]
    windows = cut_toy(tokenizer, asked)
    assert windows.n_cut_questions == 1
    seen: dict[int, set[int]] = {0: set(), 1: set()}
    for row, item, column, start, n in zip(
        windows.tokens.tolist(),
        *(part.tolist() for part in (windows.item, windows.column, windows.start, windows.length)),
        strict=True,
    ):
        ids = tokenizer.encode(asked[item].question).ids[:4]
        inside = tokenizer.encode(asked[item].context).ids[start : start + n]
        assert row[: column + n + 1] == [*ids, EOS, *inside, EOS]
        assert column == len(ids) + 1
        assert set(row[column + n + 1 :]) <= {PAD}
        seen[item] |= set(range(start, start + n))
    assert [seen[i] == set(range(len(windows.offsets[i]))) for i in (0, 1)] == [True, True]


def test_a_short_span_is_whole_in_some_window(tokenizer: Tokenizer):
    context = "abcdefghijklmnopqrstuvwxyz" * 2
    windows = cut_toy(tokenizer, [question(context, None)])
    room = int(windows.length.max())
    n = len(windows.offsets[0])
    for size in (1, 2, room - room // 2 + 1):
        assert all(windows.n_split(torch.tensor([[i, i + size - 1]])) == 0 for i in range(n - size + 1))
    assert windows.n_split(torch.tensor([[0, room]])) == 1
    assert windows.n_split(torch.tensor([[-1, -1]])) == 0


def test_a_window_without_the_answer_points_to_its_end(tokenizer: Tokenizer):
    windows = cut_toy(tokenizer, [question("abcdefghijklmnopqrstuvwxyz", "c")])
    targets = windows.targets(torch.tensor([[2, 2]]))
    assert targets[0].tolist() == [2, 2]
    assert targets[-1].tolist() == [int(windows.length[-1])] * 2


# The best span


def two_windows() -> ContextWindows:
    """A context of five tokens: 0 to 3 and 2 to 4."""
    return ContextWindows(
        tokens=torch.ones(2, 6, dtype=torch.long),
        item=torch.tensor([0, 0]),
        column=torch.tensor([1, 1]),
        start=torch.tensor([0, 2]),
        length=torch.tensor([4, 3]),
        offsets=[np.array([[i, i + 1] for i in range(5)])],
        n_cut_questions=0,
    )


Rows = list[list[float]]


def best(start: Rows, end: Rows, max_tokens: int = 3) -> tuple[float, list[list[int]]]:
    logits = torch.tensor([start, end]).permute(1, 2, 0)
    ((score, spans),) = best_spans(logits, two_windows(), max_tokens)
    return score, sorted(spans.tolist())


NONE = [0.0] * 5


def test_a_span_never_ends_before_it_starts():
    assert best([[0, 0, 0, 5, 0], NONE], [[5, 0, 0, 0, 0], NONE]) == (5.0, [[0, 0], [3, 3]])


def test_a_span_is_never_too_long():
    score, spans = best([[5, 0, 0, 0, 0], NONE], [[0, 0, 0, 5, 0], NONE], max_tokens=4)
    assert (score, spans) == (10.0, [[0, 3]])
    score, spans = best([[5, 0, 0, 0, 0], NONE], [[0, 0, 0, 5, 0], NONE], max_tokens=3)
    assert score == 5.0
    assert [0, 3] not in spans


def test_windows_are_compared_by_the_odds_against_their_end():
    sure = [[0, 9, 0, 0, 9], [2, 0, 0, 0, 9]]  # the first window's end is as likely as its best; padding last
    assert best(sure, sure)[1] == [[2, 2]]
    assert best(sure, sure)[0] == 4.0


def test_no_span_runs_from_one_window_into_another():
    assert best([NONE, NONE], [NONE, NONE], max_tokens=5)[1] == [
        *([0, 0], [0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [1, 3]),
        *([2, 2], [2, 3], [2, 4], [3, 3], [3, 4], [4, 4]),
    ]


def test_a_logit_that_is_no_number_is_an_error():
    with pytest.raises(FloatingPointError, match="NaN"):
        best([[float("nan")] * 5, NONE], [NONE, NONE])
