"""Extractive question answering: SQuAD's rules, windows, spans, and the two sources of questions."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from torch import Tensor
from torchmetrics.functional.text import squad as torchmetrics_squad
from toy_data import assert_one_line, prepare
from toy_models import CONF, MODEL, OPTIM

from bench.audit import OPTIONS, Constant
from bench.build import build
from bench.corpora.base import Document, Split, split_of
from bench.errors import BenchError, ConfigError, DataError
from bench.objectives.base import Attention, Objective, Shapes
from bench.objectives.scratch import Scratch
from bench.shards import SPLITS
from bench.tasks.answer_windows import Windows, best_spans, cut, token_span
from bench.tasks.answers import Golds, Question, normalised
from bench.tasks.base import Outcome, Setting, Task
from bench.tasks.docstring_questions import DocstringQuestions, ask, parameters
from bench.tasks.squad import read_squad
from bench.vocabulary import EOS, PAD, train_tokenizer

SHAPES = Shapes(model=MODEL, vocab_size=300, sequence_length=24, caption_length=6, image_size=8)


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


def cut_toy(tokenizer: Tokenizer, questions: list[Question], length: int = 16) -> Windows:
    return cut(questions, tokenizer, length, max_question_tokens=4, step_share=0.5)


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
        assert all(windows.n_parted(torch.tensor([[i, i + size - 1]])) == 0 for i in range(n - size + 1))
    assert windows.n_parted(torch.tensor([[0, room]])) == 1
    assert windows.n_parted(torch.tensor([[-1, -1]])) == 0


def test_a_window_without_the_answer_points_to_its_end(tokenizer: Tokenizer):
    windows = cut_toy(tokenizer, [question("abcdefghijklmnopqrstuvwxyz", "c")])
    targets = windows.targets(torch.tensor([[2, 2]]))
    assert targets[0].tolist() == [2, 2]
    assert targets[-1].tolist() == [int(windows.length[-1])] * 2


# The best span


def two_windows() -> Windows:
    """A context of five tokens: 0 to 3 and 2 to 4."""
    return Windows(
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
    with pytest.raises(FloatingPointError, match="not numbers"):
        best([[float("nan")] * 5, NONE], [NONE, NONE])


# The task, on files in SQuAD's format

Entry = dict[str, Any]


def entry(context: str, *qas: tuple[str, str | None]) -> Entry:
    asked = []
    for text, answer in qas:
        answers = [] if answer is None else [{"text": answer, "answer_start": context.index(answer)}]
        asked.append({"id": text, "question": text, "answers": answers, "is_impossible": answer is None})
    return {"context": context, "qas": asked}


def write(path: Path, paragraphs: list[Entry]) -> Path:
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    return path


def paragraphs(split: str, n: int, *, with_impossible: bool = False) -> list[Entry]:
    """The answer is the one capital letter among small ones."""
    rng = random.Random(split)  # noqa: S311
    found = []
    for i in range(n):
        letters = rng.choices("abcdefgh", k=24)
        place = rng.randrange(24)
        is_impossible = with_impossible and i % 3 == 0
        if not is_impossible:
            letters[place] = "Z"
        found.append(entry(f"{' '.join(letters)} {i}", (f"q{i}?", None if is_impossible else "Z")))
    return found


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("qa")
    text = prepare(folder)
    pairs: Any = None
    return Setting(text.tokenizer(), SHAPES.sequence_length, text, pairs, folder, 0, lambda: None)


def make_task(name: str, **changes: Any) -> Task:
    node = OmegaConf.to_container(OmegaConf.load(CONF / "task" / f"{name}.yaml"))[name]  # type: ignore[index,call-overload]
    quick = {"max_labels": 60, "label_budgets": [60], "test_items": 100, "max_answer_tokens": 4}
    return build(node | quick | changes, Task, f"task.{name}")  # type: ignore[type-abstract]


def squad_task(folder: Path, train: list[Entry], test: list[Entry], **changes: Any) -> Task:
    files = {"train_path": train, "test_path": test}
    paths = {key: str(write(folder / f"{key}.json", part)) for key, part in files.items()}
    return make_task("squad_probe", **paths, **changes)


class Spelling(Scratch):
    """To it a state is which token stands there."""

    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        return torch.eye(300)[tokens]


class Place(Scratch):
    """To it a state is where it stands: from the question, and from the end."""

    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        columns = torch.arange(tokens.shape[1])
        after = (columns - (tokens == EOS).int().argmax(dim=1)[:, None]).clamp(min=0)
        before = ((tokens != PAD).sum(dim=1)[:, None] - columns).clamp(min=0)
        return torch.cat([torch.eye(64)[after], torch.eye(64)[before]], dim=2)


def model(cls: type[Objective], width: int = MODEL.d_model) -> Objective:
    """With states of this width; the backbone is of no use."""
    made = cls(OPTIONS, shapes=SHAPES, optimizer=OPTIM).eval()
    made.shapes = replace(SHAPES, model=replace(MODEL, d_model=width))
    return made


def values(outcome: Outcome) -> dict[str, float]:
    return {score.metric: score.value for score in outcome.scores}


def chances(outcome: Outcome) -> dict[str, float | None]:
    return {score.metric: score.chance for score in outcome.scores}


def within_binomial(value: float, chance: float, n: int) -> bool:
    return abs(value - chance) <= 4 * (max(chance * (1 - chance), 0.5 / n) / n) ** 0.5


@pytest.mark.parametrize("with_impossible", [False, True])
def test_one_who_knows_scores_1(tmp_path: Path, setting: Setting, with_impossible: bool):
    found = paragraphs("test", 30, with_impossible=with_impossible)
    ceiling = squad_task(tmp_path, found, found).ceiling(setting)
    assert ceiling is not None
    assert set(values(ceiling).values()) == {1.0}
    suffixes = ("", "_answerable", "_unanswerable") if with_impossible else ("",)
    assert set(values(ceiling)) == {f"{metric}{suffix}" for metric in ("em", "f1") for suffix in suffixes}


@pytest.mark.parametrize("with_impossible", [False, True])
def test_pointers_find_what_the_states_show(tmp_path: Path, setting: Setting, with_impossible: bool):
    parts = [paragraphs(split, 60, with_impossible=with_impossible) for split in ("train", "test")]
    outcome = squad_task(tmp_path, *parts).evaluate(model(Spelling, 300), setting)
    assert outcome.scores[0].metric == "em"
    assert set(values(outcome).values()) == {1.0}
    assert outcome.items[f"em@{outcome.scores[0].n_labels}"].shape == (60,)


def test_labels_of_other_questions_teach_nothing(tmp_path: Path, setting: Setting):
    task = squad_task(tmp_path, paragraphs("train", 90), paragraphs("test", 100))
    permuted = task.evaluate(model(Spelling, 300), replace(setting, permutes_labels=True))
    for score in permuted.scores:
        assert score.chance is not None
        assert within_binomial(score.value, score.chance, score.n_items), score


def test_without_knowledge_no_answer_is_as_likely_as_each_span(tmp_path: Path, setting: Setting):
    # two tokens, so three spans; one question has an answer, "x", and one has none
    test = [entry("xy", ("q", "x")), entry("zv", ("r", None))]
    task = squad_task(tmp_path, [*paragraphs("train", 20), *test], test)
    outcome = task.evaluate(model(Constant), setting)
    expected = {"em": 1 / 4, "em_answerable": 1 / 4, "em_unanswerable": 1 / 4}
    expected |= {key.replace("em", "f1"): value for key, value in expected.items()}
    assert values(outcome) == pytest.approx(expected, abs=1e-12)
    assert chances(outcome) == pytest.approx(expected, abs=1e-12)


def test_small_budgets_come_last_and_are_told_apart(tmp_path: Path, setting: Setting):
    task = squad_task(tmp_path, paragraphs("train", 40), paragraphs("test", 9), label_budgets=[4, 8, None])
    outcome = task.evaluate(model(Spelling, 300), setting)
    n_labels = [score.n_labels for score in outcome.scores]
    assert n_labels[0] is not None
    assert 8 < n_labels[0] <= 40
    assert n_labels[2:] == [8, 8, 4, 4]
    assert set(outcome.items) == {f"{metric}@{n}" for metric in ("em", "f1") for n in n_labels}


def test_a_budget_beyond_the_data_is_one_with_the_largest_and_counted(tmp_path: Path, setting: Setting):
    task = squad_task(tmp_path, paragraphs("train", 10), paragraphs("test", 9), label_budgets=[4, 50, None])
    outcome = task.evaluate(model(Spelling, 300), setting)
    assert len({score.n_labels for score in outcome.scores}) == 2
    assert outcome.counts["label budget beyond the data"] == 1


def test_fine_tuning_learns_what_the_probe_does(tmp_path: Path, setting: Setting):
    train, test = paragraphs("train", 90), paragraphs("test", 30)
    paths = {
        f"{name}_path": str(write(tmp_path / name, part)) for name, part in (("train", train), ("test", test))
    }
    how = {"steps": 60, "batch_size": 16, "lr_grid": [3e-2], "n_fits": 2, "n_validations": 1}
    task = make_task("squad_finetune", **paths, validation_items=10, attention="bidirectional", **how)
    outcome = task.evaluate(model(Scratch), setting)
    found = values(outcome)
    assert found["em"] > 0.9
    assert found["failed_fits"] == 0
    assert {"em_fit_sd", "f1_fit_sd"} <= set(found)
    assert next(iter(outcome.items.values())).shape == (2, 30)


def test_the_asked_attention_reaches_the_model(tmp_path: Path, setting: Setting):
    asked = []

    class Listening(Spelling):
        def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
            asked.append(attention)
            return super().states(tokens, attention)

    some = paragraphs("test", 20)
    squad_task(tmp_path, some, some, attention="causal").evaluate(model(Listening, 300), setting)
    assert set(asked) == {"causal"}


def test_what_cannot_count_is_counted(tmp_path: Path, setting: Setting):
    long = entry("x" * 70, ("how long?", "x" * 50))
    moved = entry("here or there", ("where?", "there"))
    moved["qas"][0]["answers"][0]["answer_start"] = 3
    inside = entry("preheat", ("what?", "heat"))
    outcome = squad_task(tmp_path, [*paragraphs("train", 30), moved, long], [moved, long, inside]).evaluate(
        model(Spelling, 300), setting
    )
    assert split_of(moved["context"]) == split_of(long["context"]) == "train"
    assert outcome.counts["training answer not where the data says"] == 1
    assert outcome.counts["training answer whole in no window"] == 1
    assert outcome.counts["test answer not where the data says"] == 1
    assert outcome.counts["test answer whole in no window"] == 1
    assert outcome.counts["test answer longer than max_answer_tokens"] >= 1
    assert len(outcome.samples) == 3


# Bad files


GONE = object()
PARAGRAPH: tuple[str | int, ...] = ("data", 0, "paragraphs", 0)
QAS = (*PARAGRAPH, "qas")
ANSWER = (*QAS, 0, "answers", 0)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("data",), GONE, "the file has no 'data'"),
        (("data",), {}, "data is not a list"),
        (("data", 0), 3, "data[0] is not an object"),
        ((*PARAGRAPH, "context"), GONE, "data[0].paragraphs[0] has no 'context'"),
        ((*PARAGRAPH, "context"), " ", "data[0].paragraphs[0].context is empty"),
        ((*QAS, 1, "answers"), GONE, "data[0].paragraphs[0].qas[1] has no 'answers'"),
        ((*QAS, 1, "question"), None, "qas[1].question is not a text"),
        ((*ANSWER, "answer_start"), GONE, "qas[0].answers[0] has no 'answer_start'"),
        ((*ANSWER, "answer_start"), "2", "answers[0].answer_start is not a whole number"),
        ((*ANSWER, "answer_start"), True, "answers[0].answer_start is not a whole number"),
        ((*QAS, 0, "is_impossible"), True, "qas[0] has answers and is_impossible"),
        ((*QAS, 1, "is_impossible"), GONE, "qas[1] has no answers, nor is_impossible"),
        ((*QAS, 1, "is_impossible"), 1, "qas[1].is_impossible is not true or false"),
    ],
)
def test_a_malformed_file_is_named_with_the_place(
    tmp_path: Path, place: tuple[str | int, ...], value: object, message: str
):
    whole: Any = {"data": [{"paragraphs": [entry("a b", ("q?", "b"), ("r?", None))]}]}
    node = whole
    for step in place[:-1]:
        node = node[step]
    if value is GONE:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(whole))
    with pytest.raises(DataError) as caught:
        list(read_squad(path))
    assert_one_line(caught.value, str(path), message)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'{"data": [\n1,\n]}', ":3: not JSON"),
        (b"", ":1: not JSON"),
        (b'{"\xff": 1}', "not UTF-8 text, at byte 2"),
    ],
)
def test_what_is_not_json_is_named_with_the_line(tmp_path: Path, content: bytes, part: str):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_squad(path))
    assert_one_line(caught.value, str(path), part)


@pytest.mark.parametrize("key", ["train_path", "test_path"])
def test_a_file_must_be_given_and_be_there(tmp_path: Path, setting: Setting, key: str):
    other = {"train_path": "test_path", "test_path": "train_path"}[key]
    there = str(write(tmp_path / "there.json", paragraphs("train", 20)))
    with pytest.raises(ConfigError) as unset:
        make_task("squad_probe", **{other: there})
    assert_one_line(unset.value, f"task.*.{key} is not set")
    task = make_task("squad_probe", **{other: there, key: "/no/such.json"})
    with pytest.raises(DataError) as missing:
        task.evaluate(model(Spelling, 300), setting)
    assert_one_line(missing.value, f"task.*.{key}", "/no/such.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "zero_shot"},
        {"attention": "sideways"},
        {"label_budgets": []},
        {"label_budgets": [0]},
        {"label_budgets": [61]},
        {"step_share": 0.0},
        {"max_answer_tokens": 0},
        {"max_answer_words": 17},
    ],
)
def test_an_option_that_cannot_work_is_named(changes: dict[str, Any]):
    with pytest.raises(BenchError) as caught:
        make_task("docstring_qa_probe", **changes)
    assert_one_line(caught.value, f"task.*.{next(iter(changes))}")


def test_a_file_without_questions_is_too_small(tmp_path: Path, setting: Setting):
    task = squad_task(tmp_path, [], paragraphs("test", 3))
    with pytest.raises(DataError, match="no training questions"):
        task.evaluate(model(Spelling, 300), setting)


# Docstrings

NUMPYDOC = """Fit.

Parameters
----------
x : {array-like, sparse}, optional (default=None)
    The data. May be
    sparse.
n_jobs: int
    How many jobs
    to run at once
untyped
    Nothing.

    y : not a parameter
z, w : float

Returns
-------
out : int
    No parameter.
"""
GOOGLE = """Fit.

Args:
    x (Tensor, optional): the data: a table.
        May be sparse.
    n_jobs (int): how many. Default: 1

Returns:
    out (int): no parameter.
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            NUMPYDOC,
            [
                ("x", "{array-like, sparse}", "The data"),
                ("n_jobs", "int", "How many jobs\n    to run at once"),
            ],
        ),
        (GOOGLE, [("x", "Tensor", "the data"), ("n_jobs", "int", "how many")]),
        ("Fit.\n\nx : int\n    No section.\n", []),
    ],
)
def test_parameters_of_a_docstring_by_hand(text: str, expected: list[tuple[str, str, str]]):
    found = [(p.name, text[slice(*p.type)], text[slice(*p.meaning)]) for p in parameters(text)]
    assert found == expected
    assert all(text[p.start :].startswith(p.name) for p in parameters(text))


def documents(n: int) -> Iterator[Document]:
    """Long docstrings of which no two parameters are alike."""
    rng = random.Random(0)  # noqa: S311

    def word() -> str:
        return "".join(rng.choices("bcdfghklmn", k=3))

    for i in range(n):
        entries = [
            f"{word()}{i}_{k} : {word()}\n    {word()} {word()}.\n    {word()} {word()}, {word()}."
            for k in range(12)
            for k in range(12)
        ]
        text = "\n".join([f"About {i}.", "", "Parameters", "----------", *entries])
        yield Document(text=text, group=f"file{i}", labels={"name": f"f{i}"})


ASKED = [q for document in documents(150) for q in ask(document, 24, 3)]


def test_an_answer_stands_where_the_question_says():
    assert {q.question.split()[1] for q in ASKED} == {"is", "does"}
    for q in ASKED:
        assert q.span is not None
        assert q.context[slice(*q.span)] == q.answers[0]
        assert len(q.context.split()) == 24
        name = q.question.split()[-1 if "type" in q.question else 3].rstrip("?")
        assert f"{name} : " in q.context
        assert q.context.count(" : ") > 1  # another parameter's type


def test_no_place_in_a_context_is_likelier_than_another():
    for kind, first in (("type", 2), ("mean", 3)):  # the words of an entry before the answer
        places = [len(q.context[: q.span[0]].split()) for q in ASKED if kind in q.question and q.span]
        n_places = 24 - first + (0 if kind == "type" else -1)
        counts = np.bincount(places, minlength=first + n_places)[first:]
        assert len(counts) == n_places
        expected = len(places) / n_places
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < n_places - 1 + 4 * (2 * (n_places - 1)) ** 0.5, (kind, counts)


def test_knowing_the_place_alone_is_of_no_use(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    def questions(self: DocstringQuestions, split: Split, setting: Setting) -> list[Question]:
        return [q for q in ASKED if int(q.group.removeprefix("file")) % 2 == (split == "test")]

    monkeypatch.setattr(DocstringQuestions, "questions", questions)
    how = {"label_budgets": [150], "max_labels": 150, "test_items": 150, "max_answer_tokens": 12}
    task = make_task("docstring_qa_probe", **how)
    wide = replace(setting, sequence_length=48)
    outcome = task.evaluate(model(Place, 128), wide)
    for score in outcome.scores:
        assert score.chance is not None
        assert within_binomial(score.value, score.chance, score.n_items), score


def test_no_question_of_one_split_has_its_answer_in_another(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "toy_qa"
    package.mkdir()
    (package / "__init__.py").touch()
    for document in documents(40):
        for copy in ("one", "two"):
            (package / f"{copy}_{document.group}.py").write_text(f'"""{copy}.\n\n{document.text}\n"""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    task = make_task("docstring_qa_probe", packages=["toy_qa"], context_words=24, max_answer_words=3)
    assert isinstance(task, DocstringQuestions)
    found = {split: task.questions(split, setting) for split in SPLITS}
    keys = [(q.question, q.answers) for questions in found.values() for q in questions]
    assert len(set(keys)) == len(keys) > 100
    for split, questions in found.items():
        assert questions
        assert {split_of(q.group) for q in questions} == {split}
