"""Text of a Hugging Face data set, from the hub or from local parquet, JSON or CSV files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from bench.config.bounds import Text
from bench.data.corpora.base import Document, Skipped, TextCorpus, TextCorpusOptions
from bench.data.corpora.hf import HfCorpus, HfOptions, class_names, labels_of

NO_TEXT = "row without a text"


@dataclass(frozen=True)
class HfTextOptions(TextCorpusOptions, HfOptions):
    """Which data set and which of its columns are read."""

    text_column: Text = MISSING


class HfText(HfCorpus, TextCorpus):
    """One document per row; rows without text are skipped and counted."""

    Options = HfTextOptions
    options: HfTextOptions
    key = "corpus.text"

    def __init__(self, options: HfTextOptions) -> None:
        super().__init__(options)
        self.labelled = bool(options.label_columns)

    def fingerprint(self) -> dict[str, Any]:
        """Return the data set's identity and the columns."""
        columns = {"text": self.options.text_column, "labels": list(self.options.label_columns)}
        return super().fingerprint() | columns

    def documents(self) -> Iterator[Document | Skipped]:
        """Yield the rows in their order."""
        rows = self.open_rows()
        names = class_names(rows, self.options.label_columns)
        for number, row in self.numbered_rows(rows, text_column=self.options.text_column):
            if text := self.text_of(row, "text_column", number):
                group = self.group_of(row, text.encode())
                yield Document(text=text, group=group, labels=labels_of(row, names))
            else:
                yield Skipped(NO_TEXT, f"row {number}")
