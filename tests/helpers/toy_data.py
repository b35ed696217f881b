"""Toy corpora, and what the laws of prepared corpora share."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.config import schema
from bench.data.corpora.base import Document, Pair, PairCorpus, TextCorpus
from bench.data.shards import TextData, TokenArray, prepare_text
from bench.data.tokenizer import EOS
from bench.errors import BenchError

SETTINGS = schema.Tokenizer(vocab_size=300, train_bytes=2000)


@dataclass
class ToyText(TextCorpus):
    """Documents as given; counts how often it is read."""

    items: list[Document]
    version: int = 1
    labelled: bool = False
    reads: int = 0

    def fingerprint(self) -> dict[str, Any]:
        return {"version": self.version}

    def provenance(self) -> dict[str, str]:
        return {"source": "toy", "licence": "none"}

    def documents(self) -> Iterator[Document]:
        self.reads += 1
        yield from self.items


@dataclass
class ToyPairs(PairCorpus):
    """Pairs as given; counts how often it is read."""

    items: list[Pair]
    image_size: int = 4
    reads: int = 0

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def provenance(self) -> dict[str, str]:
        return {"source": "toy", "licence": "none"}

    def pairs(self) -> Iterator[Pair]:
        self.reads += 1
        yield from self.items


def toy_documents(n: int = 200) -> list[Document]:
    """Two documents per group; texts of 14 to 17 bytes."""
    return [Document(text=f"document no. {i}", group=f"g{i // 2}", labels={"i": str(i)}) for i in range(n)]


def toy_pairs(n: int = 100) -> list[Pair]:
    return [
        Pair(image=np.full((4, 4, 3), i, np.uint8), caption=f"thing {i}", group=f"g{i}") for i in range(n)
    ]


def prepare(folder: Path, items: list[Document] | None = None, **changes: Any) -> TextData:
    corpus = ToyText(toy_documents() if items is None else items, **changes)
    return prepare_text(corpus, SETTINGS, folder)


def texts_of(data: TextData, array: TokenArray) -> list[str]:
    """The documents of an array, in its order."""
    ids = array.read(0, array.n_tokens)
    pieces = [ids[start:stop] for start, stop in zip(array.offsets, array.offsets[1:], strict=False)]
    assert all(piece[-1] == EOS for piece in pieces)
    return [data.tokenizer().decode(piece[:-1].tolist(), skip_special_tokens=False) for piece in pieces]


def assert_one_line(error: BenchError, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)
