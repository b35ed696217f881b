"""Multiple choice by likelihood: which of a context's continuations does the model find likeliest?

HellaSwag (arXiv:1905.07830), ARC (arXiv:1803.05457), PIQA (arXiv:1911.11641) and WinoGrande
(arXiv:1907.10641), scored as lm-evaluation-harness does: the log-likelihood of each choice given the context,
as it is or divided by its length. Tied choices share the point.
Shapes: N items, C choices at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from typing_extensions import override

from bench.data.corpora.hf import Row, label_text
from bench.errors import DataError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.baselines import byte_ngrams, text_nats
from bench.tasks.hub import open_split, require_columns, row_texts
from bench.tasks.likelihood import Continuation, continuation_nll, normalised
from bench.tasks.options import MultipleChoiceOptions
from bench.tasks.probe import hits

BLANK = "_"  # in a context: the place of the choice, with which the text behind it is scored


@dataclass(frozen=True)
class Item:
    """A question: what is given and what is scored, for each choice; `right` is the number of a choice."""

    given: tuple[str, ...]
    scored: tuple[str, ...]
    right: int


class MultipleChoice(Task):
    """Choose among continuations of a context; items that do not fit into a sequence are counted.

    A context that is too long loses its beginning. A context with a blank `_` (WinoGrande) is filled by each
    choice, and the text behind the blank is scored, since the choices themselves differ in frequency (partial
    scoring, Trinh and Le 2018, arXiv:1806.02847).
    """

    Options = MultipleChoiceOptions
    options: MultipleChoiceOptions
    packages = ("datasets",)

    @override
    def check(self, key: str) -> None:
        super().check(key)
        self._open()

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Return the accuracy; chance is the mean of one over the number of choices."""
        items, encoded, counts = self._encoded(setting)
        flat = [choice for choices in encoded for choice in choices]
        nll = normalised(
            continuation_nll(model, flat, self.options, setting), flat, self.options.length_normalisation
        )
        return self._outcome(items, torch.from_numpy(-nll), counts)

    @override
    def baseline(self, setting: Setting) -> Outcome:
        """Return the outcome of an n-gram model of the training text."""
        items, encoded, counts = self._encoded(setting)
        flat = [choice for choices in encoded for choice in choices]
        texts = [pair for item in items for pair in zip(item.given, item.scored, strict=True)]
        nll = normalised(text_nats(byte_ngrams(setting), texts), flat, self.options.length_normalisation)
        return self._outcome(items, torch.from_numpy(-nll), counts)

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        items, _, counts = self._encoded(setting)
        right = [float(i == item.right) for item in items for i in range(len(item.scored))]
        return self._outcome(items, torch.tensor(right, dtype=torch.float64), counts)

    def items(self) -> list[Item]:
        """Return all items of the split, in its order."""
        rows = self._open()
        return [self._item(row, number) for number, row in enumerate(rows)]

    def _open(self) -> Any:
        rows = open_split(self.options, "split")
        columns = {"label_column": self.options.label_column}
        if self.options.choices_column is not None:
            columns["choices_column"] = self.options.choices_column.partition(".")[0]
        require_columns(rows, **columns)
        return rows

    def _item(self, row: Row, number: int) -> Item:
        try:
            texts = row_texts(row)
            context = self.options.context.format_map(texts)
            choices = self._choices(row, texts)
        except KeyError as error:
            raise DataError(
                f"row {number} of the data set has no text in column {error}; correct task.*.context or "
                ".choices"
            ) from None
        right = self._right(row, number, len(choices))
        before, blank, after = context.partition(BLANK)
        if blank:
            return Item(tuple(before + choice for choice in choices), (after,) * len(choices), right)
        return Item((context,) * len(choices), tuple(f" {choice}" for choice in choices), right)

    def _choices(self, row: Row, texts: dict[str, str]) -> list[str]:
        if self.options.choices is not None:
            return [template.format_map(texts).strip() for template in self.options.choices]
        return [str(choice).strip() for choice in _within(row, str(self.options.choices_column))]

    def _right(self, row: Row, number: int, n: int) -> int:
        label = label_text(row[self.options.label_column])
        names = self.options.names_column
        if names is not None and label in _within(row, names):
            return list(_within(row, names)).index(label)
        right = int(label) - self.options.first_label if label is not None and label.isdigit() else -1
        if names is not None or not 0 <= right < n:
            raise DataError(
                f"row {number} of the data set has {self.options.label_column}={label!r}, which is none of "
                f"its {n} choices; choose a split with labels, or correct task.*.first_label"
            )
        return right

    def _encoded(self, setting: Setting) -> tuple[list[Item], list[list[Continuation]], dict[str, int]]:
        found = self.items()
        n = min(self.options.test_items, len(found))
        drawn = [found[i * len(found) // n] for i in range(n)]
        kept, encoded = [], []
        for item in drawn:
            pairs = zip(item.given, item.scored, strict=True)
            choices = [_continuation(given, end, setting) for given, end in pairs]
            if all(choice is not None for choice in choices):
                kept.append(item)
                encoded.append([choice for choice in choices if choice is not None])
        if not kept:
            raise DataError(f"no item fits in sequence_length={setting.sequence_length} tokens; raise it")
        counts = {"choice longer than sequence_length": n - len(kept)} if n > len(kept) else {}
        return kept, encoded, counts

    def _outcome(self, items: Sequence[Item], flat: Tensor, counts: dict[str, int]) -> Outcome:
        sizes = [len(item.scored) for item in items]
        scores = torch.full((len(items), max(sizes)), -torch.inf, dtype=torch.float64)  # (N, C)
        for row, own in zip(scores, flat.split(sizes), strict=True):
            row[: len(own)] = own
        correct = hits(scores, torch.tensor([item.right for item in items]))
        name = f"accuracy_{self.options.kind}"
        chance = float(np.mean([1 / size for size in sizes]))
        return Outcome([Measured(name, float(correct.mean()), chance, len(items))], {name: correct}, counts)


def _within(row: Row, path: str) -> Sequence[Any]:
    """Return the list in a column, or in a field of it: `choices.text`."""
    value: Any = row
    for step in path.split("."):
        value = value[step]
    return value


def _continuation(given: str, scored: str, setting: Setting) -> Continuation | None:
    """Encode a context and its end; None if the end alone is longer than the model reads."""
    before, end = (_ids(text, setting.tokenizer) for text in (given.rstrip(), scored))
    room = setting.sequence_length - 2 - len(end)  # without the EOS on both sides
    if room < 1 or not end:
        return None
    return Continuation(tuple(before[-room:]), tuple(end), len(scored.encode()))


def _ids(text: str, tokenizer: Tokenizer) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
