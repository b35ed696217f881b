"""Three classes of numbers, of very different lengths."""

from pathlib import Path

import pytest

from bench.data.corpora.base import Split
from bench.tasks.base import Setting, Task
from bench.tasks.text_classification import TextClassification

QUICK = {
    "label_budgets": [6, 13, 100],
    "max_labels": 100,
    "validation_items": 6,
    "test_items": 20,
    "steps": 3,
    "batch_size": 8,
    "lr_at_64": 1e-3,
    "lr_grid": [1e-3],
    "n_fits": 2,
    "validate_every": 3,
    "patience": 1,
}


def examples(self: TextClassification, split: Split, setting: Setting) -> dict[str, list[str]]:
    return {
        name: [f"{name} {split} " + f"{i} " * (1 + i % 5) for i in range(10)]
        for name in ("one", "two", "six")
    }


def install(tasks: list[type[Task]], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for cls in tasks:
        if issubclass(cls, TextClassification):
            monkeypatch.setattr(cls, "examples", examples)
