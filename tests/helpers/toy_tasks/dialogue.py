"""Conversations about numbers, of very different lengths, in the place of NLTK's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.tasks import dialogue
from bench.tasks.base import Task

QUICK = {"test_items": 6, "train_items": 20, "n_candidates": 4, "samples": 2}


def conversations() -> Iterator[list[str]]:
    for i in range(80):
        yield [f"how is {i}?", "fine " * (1 + i % 4) + f"{i % 7}", f"so {i}" + "!" * (i % 3)]


def install(tasks: list[type[Task]], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in dialogue.CORPORA:
        monkeypatch.setitem(dialogue.CORPORA, name, conversations)
