"""Tiny choices, judged pairs and a collection in the place of data sets of the hub."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.tasks.base import Task
from bench.tasks.hub_classification import HubClassification
from bench.tasks.multiple_choice import Item, MultipleChoice
from bench.tasks.sentence_similarity import SentenceSimilarity
from bench.tasks.text_retrieval import Collection, TextRetrieval

QUICK: dict[str, Any] = {"max_documents": 30}


def items(self: MultipleChoice) -> list[Item]:
    """Three choices each; the last item has two, one of which is longer than a toy model reads."""
    short = [Item((f"{i}",) * 3, (" a", f" {i}", " b" + "!" * (i % 3)), i % 3) for i in range(12)]
    return [*short, Item(("x",) * 2, (" y", " a text that is too long"), 0)]


def pairs(self: SentenceSimilarity) -> tuple[list[tuple[str, str]], NDArray[np.float64], dict[str, int]]:
    texts = [(f"no {i}", f"{'no' if i % 2 else 'yes'} {i}") for i in range(20)]
    return texts, np.array([i % 2 + i / 40 for i in range(20)]), {}


def collection(self: TextRetrieval) -> Collection:
    documents = {f"d{i}": f"thing {i}" for i in range(30)}
    queries = {f"q{i}": f"{i} of them" for i in range(10)}
    return Collection(documents, queries, {f"q{i}": {f"d{i}": 1, f"d{i + 10}": 2} for i in range(10)})


def install(tasks: list[type[Task]], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(HubClassification, "positive_class", lambda self: "two")  # see classification.py
    monkeypatch.setattr(MultipleChoice, "items", items)
    monkeypatch.setattr(SentenceSimilarity, "_pairs", pairs)
    monkeypatch.setattr(TextRetrieval, "_collection", collection)
