"""Sentences of a few words, most of them untagged, some longer than a window."""

from pathlib import Path
from typing import Any

import pytest

from bench.data.corpora.base import Split
from bench.tasks.base import Task
from bench.tasks.tagging import Sentence, Tagging

QUICK: dict[str, Any] = {}  # those of text classification do
TEXT = ["saw/O", "Ann/B-PER", "Lee/I-PER", "in/O", "Rome/B-LOC", "and/O", "left/O"]


def sentences(self: Tagging, split: Split) -> list[Sentence]:
    """One to six words of a text that goes round."""
    found = []
    for i in range(36):
        pairs = [TEXT[(i * 5 + j) % len(TEXT)].split("/") for j in range(1 + i % 6)]
        found.append(Sentence([word for word, _ in pairs], [tag for _, tag in pairs]))
    return found


def install(tasks: list[type[Task]], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for cls in tasks:
        if issubclass(cls, Tagging):
            monkeypatch.setattr(cls, "sentences", sentences)
