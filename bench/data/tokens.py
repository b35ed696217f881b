"""Tokenizer, memory-mapped shards, manifest: text corpus -> tokens -> batches.

Documents of a split lie in one fixed order, that of their content hash: random, spread over the whole
corpus, and the same for every seed. A data budget is a prefix of it, so a small budget lies inside a large
one. The tokenizer is trained on the first `train_bytes` of the same order. Equal documents are kept once,
so that none lies in two splits. The corpus is streamed twice and never held in memory.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bench.config import schema
from bench.data import shards
from bench.data.cache import Manifest, cache_folder, prepare
from bench.data.corpora.base import Corpus, Document, Split, TextCorpus, split_of
from bench.data.progress_bars import counted
from bench.data.tokenizer import MAX_VOCAB_SIZE, MIN_VOCAB_SIZE, load_tokenizer
from bench.errors import ConfigError

FORMAT = 1  # raise it when the prepared files change their meaning


@dataclass(frozen=True)
class TokenArray:
    """Documents one after another, each closed by EOS. Holds paths, not data: cheap to pickle."""

    folder: Path
    split: Split
    n_documents: int
    n_bytes: int  # of raw UTF-8
    n_tokens: int
    dtype: str
    shard_tokens: int

    def read(self, start: int, stop: int) -> NDArray[np.integer[Any]]:
        """Token ids start..stop as a new array; stop may not pass `n_tokens`."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start}..{stop} of {self.n_tokens}")
        parts = []
        while start < stop:
            shard, first = divmod(start, self.shard_tokens)
            last = min(self.shard_tokens, first + stop - start)
            parts.append(self._shards[shard][first:last])
            start += last - first
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where document i starts, (n_documents + 1,); the last one is `n_tokens`."""
        stored = np.load(self.folder / f"{self.split}.offsets.npy", mmap_mode="r")
        return cast(NDArray[np.int64], stored[: self.n_documents + 1])

    @cached_property
    def _shards(self) -> list[NDArray[np.integer[Any]]]:
        n_shards = -(-self.n_tokens // self.shard_tokens)
        paths = [shards.shard_path(self.folder, self.split, shard) for shard in range(n_shards)]
        return [np.memmap(path, self.dtype, mode="r") for path in paths]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("offsets", "_shards")}


@dataclass(frozen=True)
class TextData:
    """A prepared text corpus. `vocab_size` is the tokenizer's real size, never above the asked one."""

    folder: Path
    manifest: Manifest = field(repr=False)

    @property
    def vocab_size(self) -> int:
        """Size of the tokenizer, special tokens included."""
        return int(self.manifest["vocab_size"])

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's JSON file."""
        return self.folder / "tokenizer.json"

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded."""
        return load_tokenizer(self.tokenizer_path)

    def train(self, unique_bytes: int | None = None) -> TokenArray:
        """The longest prefix of the training documents that fits into `unique_bytes`; None: all."""
        whole = self._array("train")
        if unique_bytes is None:
            return whole
        if unique_bytes > whole.n_bytes:
            raise ConfigError(
                f"budget.unique_bytes={unique_bytes} is more than the {whole.n_bytes} bytes of training "
                "text; lower it, or set it to null for all, with budget.repeat=true for more epochs"
            )
        within_bytes = self.manifest.get("planted", {"within_bytes": 0})["within_bytes"]
        if unique_bytes < min(within_bytes, whole.n_bytes):
            raise ConfigError(
                f"budget.unique_bytes={unique_bytes} is less than corpus.text.within_bytes={within_bytes}, "
                "the bytes that hold what is planted as often as stated; raise the one or lower the other"
            )
        cumulative = np.load(self.folder / "train.bytes.npy", mmap_mode="r")
        n = int(np.searchsorted(cumulative, unique_bytes, side="right")) - 1
        if n == 0:
            raise ConfigError(
                f"budget.unique_bytes={unique_bytes} holds no document; use {cumulative[1]} or more"
            )
        return self._array("train", (n, int(cumulative[n]), int(whole.offsets[n])))

    def validation(self) -> TokenArray:
        """The validation split."""
        return self._array("validation")

    def test(self) -> TokenArray:
        """The test split."""
        return self._array("test")

    def _array(self, split: Split, size: tuple[int, int, int] | None = None) -> TokenArray:
        counts = self.manifest["splits"][split]
        n_documents, n_bytes, n_tokens = size or (counts[name] for name in ("documents", "bytes", "tokens"))
        dtype, shard_tokens = self.manifest["dtype"], self.manifest["shard_tokens"]
        return TokenArray(self.folder, split, n_documents, n_bytes, n_tokens, dtype, shard_tokens)


def prepare_text(
    corpus: TextCorpus, tokenizer: schema.Tokenizer, data_dir: Path, *, given: str | None = None
) -> TextData:
    """Tokenise `corpus` into `data_dir`, unless that is already there.

    Args:
        corpus: the documents.
        tokenizer: how one is trained on them.
        data_dir: root of all prepared corpora.
        given: JSON of a tokenizer with our special ids, in place of one that is trained.

    Raises:
        DataError: the corpus is empty or unreadable, or a split of it is empty.
        ConfigError: a tokenizer setting that cannot work.
    """
    if not MIN_VOCAB_SIZE <= tokenizer.vocab_size <= MAX_VOCAB_SIZE:
        raise ConfigError(
            f"tokenizer.vocab_size={tokenizer.vocab_size} must be at least {MIN_VOCAB_SIZE} and at most "
            f"{MAX_VOCAB_SIZE}"
        )
    if tokenizer.train_bytes < 1:
        raise ConfigError(f"tokenizer.train_bytes={tokenizer.train_bytes} must be at least 1")
    settings: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "train_bytes": tokenizer.train_bytes}
    if given is not None:
        settings = {"given_sha256": sha256(given.encode()).hexdigest()}
    key = corpus_key(corpus) | {"tokenizer": settings}
    folder = cache_folder(data_dir, f"{type(corpus).__name__.lower()}-tokens", key)

    def build(partial: Path) -> Manifest:
        written = shards.write(
            lambda: load_documents(corpus, data_dir), tokenizer, partial, given, corpus.planting()
        )
        return written | {"settings": settings, "provenance": corpus.provenance()}

    return TextData(folder, prepare(folder, build))


def load_documents(corpus: TextCorpus, data_dir: Path, split: Split | None = None) -> Iterator[Document]:
    """The documents of `corpus`, of one split or all; those of a labelled corpus are parsed only once.

    Equal texts of a labelled corpus are kept once.
    """
    documents = _cached_documents(corpus, data_dir) if corpus.labelled else corpus.documents()
    return (item for item in documents if split is None or split_of(item.group) == split)


def corpus_key(corpus: Corpus) -> dict[str, Any]:
    """What identifies the content of a corpus in the cache."""
    name = f"{type(corpus).__module__}.{type(corpus).__qualname__}"
    return {"class": name, "fingerprint": corpus.fingerprint(), "format": FORMAT}


def _cached_documents(corpus: TextCorpus, data_dir: Path) -> Iterator[Document]:
    def build(partial: Path) -> Manifest:
        seen: set[int] = set()
        with (partial / "documents.jsonl").open("w", encoding="utf-8") as file:
            for item in counted(corpus.documents(), "reading documents"):
                hashed = shards.content_hash(item.text.encode())
                if hashed not in seen:
                    seen.add(hashed)
                    file.write(json.dumps([item.text, item.group, item.labels], ensure_ascii=False) + "\n")
        return {"documents": len(seen), "provenance": corpus.provenance()}

    folder = cache_folder(data_dir, f"{type(corpus).__name__.lower()}-documents", corpus_key(corpus))
    prepare(folder, build)
    with (folder / "documents.jsonl").open(encoding="utf-8", newline="\n") as file:
        for line in file:
            text, group, labels = json.loads(line)
            yield Document(text=text, group=group, labels=labels)
