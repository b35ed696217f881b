"""Prompts of two tokens: the toy corpus of all contract tests has short documents."""

from pathlib import Path

import pytest

from bench.tasks.base import Task

QUICK = {"prompts": 8, "prompt_tokens": 2, "new_tokens": 3, "ngram_order": 3, "ngram_bytes": 1000}


def install(tasks: list[type[Task]], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The text corpus is there already."""
