"""Text of a Hugging Face data set, from the hub or from local parquet, JSON or CSV files."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from omegaconf import MISSING

from bench.data.corpora.base import Document, TextCorpus
from bench.data.corpora.hf import HfOptions, describe, identify, open_rows, read_rows, text_of

KEY = "corpus.text"


@dataclass(frozen=True)
class HfTextOptions(HfOptions):
    """Which data set and which of its columns."""

    text_column: str = MISSING
    label_columns: list[str] = field(default_factory=lambda: MISSING)


class HfText(TextCorpus):
    """One document per row; rows without text are skipped."""

    Options = HfTextOptions

    def __init__(self, options: HfTextOptions) -> None:
        self.options = options
        self.labelled = bool(options.label_columns)

    def fingerprint(self) -> dict[str, Any]:
        """The data set's identity and the columns."""
        columns = {"text": self.options.text_column, "labels": list(self.options.label_columns)}
        return identify(self.options, KEY) | columns

    def provenance(self) -> dict[str, str]:
        """Name and revision."""
        return describe(self.options)

    def documents(self) -> Iterator[Document]:
        """All rows in their order."""
        names = {f"label_columns[{i}]": column for i, column in enumerate(self.options.label_columns)}
        columns = {
            "text_column": self.options.text_column,
            "group_column": self.options.group_column,
            **names,
        }
        rows = open_rows(self.options, KEY)
        for number, row in read_rows(rows, self.options, columns, KEY):
            text = text_of(row, self.options.text_column, number, key=f"{KEY}.text_column")
            if text:
                labels = {column: str(row[column]) for column in self.options.label_columns}
                by = self.options.group_column
                group = sha256(text.encode()).hexdigest() if by is None else str(row[by])
                yield Document(text=text, group=group, labels=labels)
