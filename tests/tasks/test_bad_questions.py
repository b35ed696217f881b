"""Files of questions that cannot be used, and options that cannot work: one line that names the place."""

import json
from pathlib import Path
from typing import Any

import pytest
from toy_data import assert_one_line
from toy_questions import Spelling, entry, make_task, model, paragraphs, squad_task, toy_setting, write

from bench.errors import BenchError, ConfigError, DataError
from bench.tasks.base import Setting
from bench.tasks.squad import read_squad

GONE = object()
PARAGRAPH: tuple[str | int, ...] = ("data", 0, "paragraphs", 0)
QAS = (*PARAGRAPH, "qas")
ANSWER = (*QAS, 0, "answers", 0)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return toy_setting(tmp_path_factory.mktemp("qa"))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("data",), GONE, "data: Field required"),
        (("data",), {}, "data: Input should be a valid list"),
        (("data", 0), 3, "data[0]: Input should be a valid dictionary"),
        ((*PARAGRAPH, "context"), GONE, "data[0].paragraphs[0].context: Field required"),
        ((*PARAGRAPH, "context"), " ", "data[0].paragraphs[0].context: String should match"),
        ((*QAS, 1, "answers"), GONE, "data[0].paragraphs[0].qas[1].answers: Field required"),
        ((*QAS, 1, "question"), None, "qas[1].question: Input should be a valid string"),
        ((*ANSWER, "answer_start"), GONE, "qas[0].answers[0].answer_start: Field required"),
        ((*ANSWER, "answer_start"), "2", "answers[0].answer_start: Input should be a valid integer"),
        ((*ANSWER, "answer_start"), True, "answers[0].answer_start: Input should be a valid integer"),
        ((*QAS, 0, "is_impossible"), True, "qas[0]: Give either answers or is_impossible"),
        ((*QAS, 1, "is_impossible"), GONE, "qas[1]: Give either answers or is_impossible"),
        ((*QAS, 1, "is_impossible"), 1, "qas[1].is_impossible: Input should be a valid boolean"),
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
        (b'{"data": "\\ud800"}', "a text with \\ud800, half of a surrogate pair"),
        (b"[" * 20_000, "nested too deeply"),
        (b"[" + b"7" * 5000 + b"]", "not usable JSON"),
        (b"\xef\xbb\xbf{}", "data: Field required"),  # a byte order mark is no mistake
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
    assert_one_line(unset.value, f"task.squad_probe.{key}=null: give the path")
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
    assert_one_line(caught.value, f"task.docstring_qa_probe.{next(iter(changes))}")


def test_a_file_without_questions_is_too_small(tmp_path: Path, setting: Setting):
    task = squad_task(tmp_path, [], paragraphs("test", 3))
    with pytest.raises(DataError, match="no training questions"):
        task.evaluate(model(Spelling, 300), setting)
