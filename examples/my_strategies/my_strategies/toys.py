"""Toy data with which the contract tests of `bench` test the task of this package in a second."""

from pathlib import Path
from typing import Any

from my_strategies import sentence_order

QUICK: dict[str, Any] = {}  # options of a task that make it quick


def install(classes: list[type], monkeypatch: Any, folder: Path) -> None:
    """Put pairs of made-up sentences in the place of the real ones."""
    pairs = [(f"no {i}", f"yes {i}") for i in range(20)]
    monkeypatch.setattr(sentence_order, "_pairs", lambda setting: pairs)
