"""Corpora of the Natural Language Toolkit, read from the user's NLTK data folder; none is shipped.

A document is a block between blank lines, cut at line ends if it is long (a film script has no blank lines).
A group is a number of consecutive blocks of a file, because a few long files would make uneven splits. Brown
is converted to running text, without its part-of-speech tags.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from bench.config.bounds import Count, Names
from bench.config.installation import check_installed
from bench.data.corpora.base import Document, TextCorpus, TextCorpusOptions
from bench.errors import ConfigError, DataError

TAG = re.compile(r"/[^/\s]+(?=\s|$)")  # Brown: The/at Fulton/np-tl
DOUBLED = re.compile(r"([?!;])\1")  # Brown doubles them
SPACED = re.compile(r"\s+([,.;:?!])(?=\s|$)")


@dataclass(frozen=True)
class NltkOptions(TextCorpusOptions):
    """Which corpora are read, and how long a document may be."""

    names: Names = field(default_factory=lambda: MISSING)  # as for `python -m nltk.downloader`
    min_chars: Count = MISSING
    max_chars: Count = MISSING
    blocks_per_group: Count = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.min_chars <= self.max_chars, "min_chars", f"use at most max_chars={self.max_chars}")


class Nltk(TextCorpus):
    """Plain-text and tagged corpora for which NLTK has a reader."""

    Options = NltkOptions
    options: NltkOptions
    labelled = True

    def fingerprint(self) -> dict[str, Any]:
        """Return names, sizes and modification times of the files or archives, and options."""
        files = [
            (name, *_stamp(reader, file)) for name, reader in self._readers() for file in reader.fileids()
        ]
        return asdict(self.options) | {"files": sha256(repr(files).encode()).hexdigest()}

    def provenance(self) -> dict[str, str]:
        """Return the names of the corpora; the README of each states its licence."""
        return {"source": "NLTK data: " + ", ".join(self.options.names), "licence": "see each corpus' README"}

    def documents(self) -> Iterator[Document]:
        """Yield all documents, corpus by corpus, file by file."""
        for name, reader in self._readers():
            for file in reader.fileids():
                labels = {"corpus": name}
                if hasattr(reader, "categories"):
                    labels["category"] = " ".join(reader.categories(file))
                text = _decoded(reader, name, file)
                for i, block in enumerate(blocks(text.splitlines(), self.options.max_chars)):
                    if len(block) >= self.options.min_chars:
                        group = f"{name}/{file}#{i // self.options.blocks_per_group}"
                        yield Document(text=block, group=group, labels=labels)

    def _readers(self) -> list[tuple[str, Any]]:
        return [(name, corpus_reader(name, "corpus.text.names")) for name in self.options.names]


def corpus_reader(name: str, key: str) -> Any:
    """Return NLTK's reader of a corpus in the user's NLTK data.

    Raises:
        ConfigError: NLTK is not installed, or has no such corpus.
        DataError: the corpus is not downloaded; names `key` and the command that downloads it.
    """
    check_installed("nltk", key)
    import nltk.corpus

    reader = getattr(nltk.corpus, name, None)
    if reader is None:
        raise ConfigError(f"{key}: NLTK has no corpus {name!r}; correct the name")
    try:
        reader.fileids()
    except LookupError as error:
        raise DataError(
            f"{key}: {name!r} is not in your NLTK data; run `python -m nltk.downloader {name}`, "
            f"or set NLTK_DATA to a folder with corpora/{name}"
        ) from error
    return reader


def blocks(lines: list[str], max_chars: int) -> Iterator[str]:
    """Yield blocks between blank lines, cut at line ends so that none exceeds `max_chars` or one line.

    >>> list(blocks(["ab", "cd", "", "ef"], max_chars=4))
    ['ab', 'cd', 'ef']
    """
    block = ""
    for line in (line.strip() for line in [*lines, ""]):
        if block and (not line or len(block) + 1 + len(line) > max_chars):
            yield block
            block = ""
        block = f"{block}\n{line}" if block else line


def untagged(text: str) -> str:
    """Convert Brown's `word/tag` lines to running text.

    >>> untagged("The/at jury/nn said/vbd ``/`` no/at ''/'' ./.")
    'The jury said "no".'
    """
    words = TAG.sub("", text).replace("`` ", '"').replace(" ''", '"')
    return DOUBLED.sub(r"\1", SPACED.sub(r"\1", words))


def _decoded(reader: Any, name: str, file: str) -> str:
    try:
        text = str(reader.raw(file))
    except UnicodeDecodeError as error:
        raise DataError(
            f"corpus.text.names: {name}/{file} is damaged at byte {error.start}; "
            f"run `python -m nltk.downloader --force {name}`"
        ) from error
    return untagged(text) if hasattr(reader, "tagged_words") else text


def _stamp(reader: Any, file: str) -> tuple[str, int, int]:
    pointer = reader.root.join(file)
    archive = getattr(pointer, "zipfile", None)
    container = Path(archive.filename if archive else pointer.path)
    return file, int(pointer.file_size()), container.stat().st_mtime_ns
