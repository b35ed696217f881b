"""Question answering on files in SQuAD's JSON format, version 1.1 or 2.0, which the user provides.

Rajpurkar et al. 2016 (arXiv:1606.05250) and 2018 (arXiv:1806.03822):

    {"data": [{"paragraphs": [{"context": TEXT, "qas": [
        {"question": TEXT, "is_impossible": false, "answers": [{"text": TEXT, "answer_start": 0}]}]}]}]}

`answer_start` counts characters of the context; version 1.1 has no `is_impossible`; other keys are ignored.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from pydantic_core import CoreSchema, SchemaValidator, ValidationError, core_schema
from typing_extensions import override

from bench.data.corpora.base import Split, split_of
from bench.data.json_text import JsonError, parse_json
from bench.errors import DataError
from bench.tasks.answers import Question
from bench.tasks.base import Setting
from bench.tasks.options import SquadOptions
from bench.tasks.question_answering import QuestionAnswering


class Squad(QuestionAnswering):
    """Questions of a training and a test file; a tenth of the training paragraphs is for validation."""

    Options = SquadOptions
    options: SquadOptions

    @override
    def questions(self, split: Split, setting: Setting) -> list[Question]:
        key = "test_path" if split == "test" else "train_path"
        path = Path(str(getattr(self.options, key))).expanduser()
        if not path.is_file():
            raise DataError(f"task.*.{key}={path} is not a file; correct the path")
        found = _read(path, path.stat().st_mtime_ns)
        if split == "test":
            return found
        return [q for q in found if (split_of(q.group) == "validation") == (split == "validation")]


@lru_cache(maxsize=4)  # shared by the runs of one worker
def _read(path: Path, modified_ns: int) -> list[Question]:
    return list(read_squad(path))


def read_squad(path: Path) -> Iterator[Question]:
    """Yield the questions of a file; a DataError names the line or the place in the JSON."""
    try:
        content = SQUAD.validate_python(parse_json(path.read_bytes()))
    except JsonError as error:
        raise DataError(f"{path}:{'' if error.line is None else f'{error.line}:'} {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _malformed(path, first["loc"], first["msg"]) from None
    for i, article in enumerate(content["data"]):
        for j, paragraph in enumerate(article["paragraphs"]):
            for k, asked in enumerate(paragraph["qas"]):
                if asked.get("is_impossible", False) == bool(asked["answers"]):
                    place = ("data", i, "paragraphs", j, "qas", k)
                    raise _malformed(path, place, "Give either answers or is_impossible")
                answers = [(answer["text"], answer["answer_start"]) for answer in asked["answers"]]
                yield question_of(asked["question"], paragraph["context"], answers)


def _malformed(path: Path, place: tuple[str | int, ...], problem: str) -> DataError:
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")
    return DataError(f"{path}: {where or 'the file'}: {problem}; see SQuAD's format")


def question_of(question: str, context: str, answers: Sequence[tuple[str, int]]) -> Question:
    """Return a question with its answers, each with the character where it begins in the context."""
    texts = tuple(text for text, _ in answers)
    spans = [(at, at + len(text)) for text, at in answers if at >= 0 and context[at:].startswith(text)]
    return Question(question, context, texts, spans[0] if spans else None, group=context)


def _objects(**schemas: CoreSchema) -> CoreSchema:
    """A list of JSON objects with these keys, all of them required except `is_impossible`."""
    keys = {
        name: core_schema.typed_dict_field(schema, required=name != "is_impossible")
        for name, schema in schemas.items()
    }
    return core_schema.list_schema(core_schema.typed_dict_schema(keys))


_TEXT = core_schema.str_schema(strict=True, pattern=r"\S")  # not blank
_ANSWERS = _objects(text=_TEXT, answer_start=core_schema.int_schema(strict=True))
_QUESTIONS = _objects(question=_TEXT, answers=_ANSWERS, is_impossible=core_schema.bool_schema(strict=True))
_ARTICLES = _objects(paragraphs=_objects(context=_TEXT, qas=_QUESTIONS))
SQUAD = SchemaValidator(
    core_schema.typed_dict_schema({"data": core_schema.typed_dict_field(_ARTICLES, required=True)})
)
