"""CoNLL's shared tasks in their official splits, through NLTK: a word a line, a blank line after a sentence.

Chunks: Tjong Kim Sang & Buchholz 2000 (arXiv:cs/0009008). Entities in Spanish and Dutch: Tjong Kim Sang 2002
(arXiv:cs/0209010). Tags are BIO, in the last column.
"""

import re
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from bench.data.corpora.base import Split
from bench.data.corpora.nltk import corpus_reader
from bench.errors import ConfigError, DataError
from bench.tasks.tagged import Sentence
from bench.tasks.tagging import Tagging, TaggingOptions

BIO = re.compile(r"O|[BI]-\S+")
DOCUMENT = "-DOCSTART-"  # a line of its own before each document of the Dutch files, not a word
FILES_2002 = {"es": "esp", "nl": "ned"}
VALIDATION_SHARE_2000 = 0.1  # the last part of the training file, since there is no official split


class Conll2000(Tagging):
    """Chunks of English newspaper text: noun, verb, prepositional phrases, ..."""

    nltk_corpora = ("conll2000",)

    @dataclass(frozen=True)
    class Options(TaggingOptions):
        """Nothing beyond what all taggings declare."""

    def sentences(self, split: Split) -> list[Sentence]:
        """The training file without its last tenth, that tenth, or the test file."""
        reader = corpus_reader("conll2000", "task.chunking_*")
        if split == "test":
            return read_columns(reader, "conll2000", "test.txt")
        found = read_columns(reader, "conll2000", "train.txt")
        n = round(len(found) * (1 - VALIDATION_SHARE_2000))
        return found[:n] if split == "train" else found[n:]


class Conll2002(Tagging):
    """Persons, places, organisations and other names in newspaper text; `testb` is the test split."""

    nltk_corpora = ("conll2002",)

    @dataclass(frozen=True)
    class Options(TaggingOptions):
        """Which language."""

        language: str = MISSING  # es | nl

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.language not in FILES_2002:
                raise ConfigError(f"task.*.language={self.language!r}: choose {' or '.join(FILES_2002)}")

    options: Options

    def sentences(self, split: Split) -> list[Sentence]:
        """Those of one official file."""
        part = {"train": "train", "validation": "testa", "test": "testb"}[split]
        reader = corpus_reader("conll2002", "task.ner_conll2002_*")
        return read_columns(reader, "conll2002", f"{FILES_2002[self.options.language]}.{part}")


def read_columns(reader: Any, corpus: str, file: str) -> list[Sentence]:
    """First and last column of a file of NLTK's data, by sentence.

    Raises:
        DataError: no such file, or a line without a BIO tag; names file, line and fix.
    """
    again = f"run `python -m nltk.downloader --force {corpus}`"
    try:
        lines = reader.raw(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{corpus}/{file} cannot be read; {again}") from error
    found: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        columns = line.split()
        if not columns:
            if words:
                found.append(Sentence(words, tags))
            words, tags = [], []
        elif columns[0] != DOCUMENT:
            if len(columns) < 2 or not BIO.fullmatch(columns[-1]):
                seen = f"{corpus}/{file} line {number}: {line.strip()!r}"
                raise DataError(f"{seen} is no word with a BIO tag; {again}")
            words.append(columns[0])
            tags.append(columns[-1])
    return found
