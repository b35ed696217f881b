"""Any file in SQuAD's JSON format, version 1.1 or 2.0, read from the user's disk; none is shipped.

Rajpurkar et al. 2016 (arXiv:1606.05250) and 2018 (arXiv:1806.03822):

    {"data": [{"paragraphs": [{"context": TEXT, "qas": [
        {"question": TEXT, "is_impossible": false, "answers": [{"text": TEXT, "answer_start": 0}]}]}]}]}

`answer_start` counts characters of the context; version 1.1 has no `is_impossible`; other keys are ignored.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from bench.data.corpora.base import Split, split_of
from bench.errors import ConfigError, DataError
from bench.tasks.answers import Question
from bench.tasks.base import Setting
from bench.tasks.question_answering import QuestionAnswering, QuestionAnsweringOptions

KINDS = {str: "a text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}


class Squad(QuestionAnswering):
    """Questions of two files. Validation items are those of a tenth of the training file's paragraphs."""

    @dataclass(frozen=True)
    class Options(QuestionAnsweringOptions):
        """The files."""

        train_path: str | None = MISSING
        test_path: str | None = MISSING

        def __post_init__(self) -> None:
            super().__post_init__()
            for key in ("train_path", "test_path"):
                if not getattr(self, key):
                    raise ConfigError(
                        f"task.*.{key} is not set; give the path of a file in SQuAD's JSON format"
                    )

    options: Options

    def questions(self, split: Split, setting: Setting) -> list[Question]:
        """In the order of the file."""
        key = "test_path" if split == "test" else "train_path"
        path = Path(str(getattr(self.options, key))).expanduser()
        if not path.is_file():
            raise DataError(f"task.*.{key}: there is no file {path}; correct the path")
        found = _read(path, path.stat().st_mtime_ns)
        if split == "test":
            return found
        return [q for q in found if (split_of(q.group) == "validation") == (split == "validation")]


@lru_cache(maxsize=4)  # the runs of one worker share it
def _read(path: Path, modified_ns: int) -> list[Question]:
    return list(read_squad(path))


def read_squad(path: Path) -> Iterator[Question]:
    """The questions of a file; a paragraph's text is its group.

    Raises:
        DataError: not JSON, or not in SQuAD's format; names the file and the line, or the place in the JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text, at byte {error.start}") from error
    for article in _Node(content, path).each("data"):
        for paragraph in article.each("paragraphs"):
            context = paragraph.text("context")
            for asked in paragraph.each("qas"):
                yield _question(asked, context)


@dataclass(frozen=True)
class _Node:
    """A value in the file, with its place; asks for what must be there."""

    value: Any
    path: Path
    place: str = ""

    def get(self, name: str, kind: type[Any]) -> Any:
        if not isinstance(self.value, dict):
            raise self.wrong("is not an object")
        if name not in self.value:
            raise self.wrong(f"has no {name!r}")
        found = self.value[name]
        if type(found) is not kind:
            raise self.wrong(f"is not {KINDS[kind]}", name)
        return found

    def each(self, name: str) -> list["_Node"]:
        return [_Node(v, self.path, f"{self._at(name)}[{i}]") for i, v in enumerate(self.get(name, list))]

    def text(self, name: str) -> str:
        found: str = self.get(name, str)
        if not found.strip():
            raise self.wrong("is empty", name)
        return found

    def wrong(self, what: str, name: str = "") -> DataError:
        return DataError(f"{self.path}: {self._at(name) or 'the file'} {what}; see SQuAD's format")

    def _at(self, name: str) -> str:
        return f"{self.place}.{name}".strip(".")


def _question(asked: _Node, context: str) -> Question:
    question = asked.text("question")
    answers = [(a.text("text"), a.get("answer_start", int)) for a in asked.each("answers")]
    is_impossible = "is_impossible" in asked.value and asked.get("is_impossible", bool)
    if is_impossible == bool(answers):
        raise asked.wrong("has answers and is_impossible" if answers else "has no answers, nor is_impossible")
    texts = tuple(text for text, _ in answers)
    spans = [(at, at + len(text)) for text, at in answers if at >= 0 and context[at:].startswith(text)]
    return Question(question, context, texts, spans[0] if spans else None, group=context)
