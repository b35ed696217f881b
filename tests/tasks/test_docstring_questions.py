"""Questions about docstrings: answers stand where they say, and no place gives them away."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_questions import Place, make_task, model, toy_setting, within_binomial

from bench.data.corpora.base import Document, Split, split_of
from bench.data.shards import SPLITS
from bench.tasks.answers import Question
from bench.tasks.base import Setting
from bench.tasks.docstring_questions import DocstringQuestions, ask, parameters

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


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return toy_setting(tmp_path_factory.mktemp("qa"))


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


@pytest.mark.slow
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
