"""Questions about letters and numbers, of which some contexts need two windows and some fit into one."""

from pathlib import Path

import pytest

from bench.data.corpora.base import Split
from bench.tasks.answers import Question
from bench.tasks.base import Setting, Task
from bench.tasks.question_answering import QuestionAnswering

QUICK = {"max_answer_tokens": 4, "train_path": "toy.json", "test_path": "toy.json"}


def questions(self: QuestionAnswering, split: Split, setting: Setting) -> list[Question]:
    found = []
    for i in range(10):
        context = " ".join(f"{'abcdefghij'[k]}{i}" for k in range(2 + i % 4))
        answer = context.split()[i % 2]
        start = context.index(answer)
        span = (start, start + len(answer))
        found.append(Question(f"{answer[0]}? {split}", context, (answer,), span, group=context))
    return found


def install(tasks: list[type[Task]], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for cls in tasks:
        if issubclass(cls, QuestionAnswering):
            monkeypatch.setattr(cls, "questions", questions)
