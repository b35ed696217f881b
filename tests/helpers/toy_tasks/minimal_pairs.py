"""Texts of a few bytes, since the toy model reads twelve tokens; one pair is longer than that."""

from pathlib import Path

import pytest

from bench.tasks.base import Setting, Task
from bench.tasks.minimal_pairs import MinimalPairs, Pair

QUICK = {"pairs_per_uid": 8, "samples": 2}


def pairs(self: MinimalPairs, setting: Setting) -> list[Pair]:
    short = [Pair(f"no. {i}", f"{i} .on" + "!" * (i % 3), f"kind_{i % 2}") for i in range(10)]
    return [*short, Pair("a text that is too long", "a text that are too long", None)]


def install(tasks: list[type[Task]], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for cls in tasks:
        if issubclass(cls, MinimalPairs):
            monkeypatch.setattr(cls, "pairs", pairs)
