"""Canaries of two digits, short enough for a toy row; a text that is longer than one."""

from pathlib import Path

import pytest

from bench.data.planting import Planted
from bench.tasks.base import Setting, Task
from bench.tasks.canaries import Canaries

QUICK = {"candidates": 8, "samples": 2, "text": "document no. 12 is a document"}


def canaries(self: Canaries, setting: Setting) -> list[Planted]:
    return [
        Planted(f"{name}: {secret}", copies, {"secret": secret})
        for name, secret, copies in (("a", "4 7", 0), ("b", "1 1", 0), ("c", "9 0", 3), ("dd", "2 5", 3))
    ]


def install(tasks: list[type[Task]], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(Canaries, "canaries", canaries)
