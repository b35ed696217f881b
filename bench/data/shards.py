"""Text corpus -> tokenizer and memory-mapped token shards.

Documents of a split are stored in the order of their content hash: random, spread over the whole corpus, and
the same for every seed. A data budget is a prefix of this order, so a small budget lies inside a large one.
The tokenizer is trained on the first `train_bytes` of the same order. Equal documents are kept once, so that
none lies in two splits.

The documents are read twice: the first pass hashes them and keeps the tokenizer's sample, the second encodes
them. Only a hash, a size and a split per document stay in memory.
"""

import heapq
import json
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bench.config import schema
from bench.config.bounds import check
from bench.data.cache import Manifest, cache_folder, prepare, show_progress
from bench.data.corpora.base import (
    CUT,
    MAX_TEXT_CHARS,
    Corpus,
    Document,
    Skipped,
    SkippedItems,
    Split,
    TextCorpus,
    split_of,
)
from bench.data.planting import Planted, place
from bench.data.tokenizer import EOS, load_tokenizer, train_tokenizer
from bench.errors import ConfigError, DataError

log = logging.getLogger(__name__)
FORMAT = 1  # increase it when the meaning of the prepared files changes
SPLITS: tuple[Split, ...] = get_args(Split)
SHARD_TOKENS = 2**27
NARROW_VOCAB_SIZE = 2**16  # below it, an id fits into 16 bits
BATCH_BYTES = 2**20  # of text, encoded at a time
BATCH_DOCUMENTS = 4096  # copied at a time
CHANGED = "corpus.text changed while it was being prepared; run again"


@dataclass(frozen=True)
class TokenArray:
    """Documents one after another, each closed by EOS. Holds paths, not data, so it is cheap to pickle."""

    folder: Path
    split: Split
    n_documents: int
    n_bytes: int  # of raw UTF-8
    n_tokens: int
    dtype: str
    shard_tokens: int

    def read(self, start: int, stop: int) -> NDArray[np.integer[Any]]:
        """Return token ids start..stop as a new array; `stop` may not exceed `n_tokens`."""
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
        """The token at which each document starts, (n_documents + 1,); the last entry is `n_tokens`."""
        stored = np.load(self.folder / f"{self.split}.offsets.npy", mmap_mode="r")
        return cast(NDArray[np.int64], stored[: self.n_documents + 1])

    @cached_property
    def _shards(self) -> list[NDArray[np.integer[Any]]]:
        n_shards = -(-self.n_tokens // self.shard_tokens)
        paths = [shard_path(self.folder, self.split, shard) for shard in range(n_shards)]
        return [np.memmap(path, self.dtype, mode="r") for path in paths]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("offsets", "_shards")}


@dataclass(frozen=True)
class TextData:
    """A prepared text corpus."""

    folder: Path
    manifest: Manifest = field(repr=False)

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the tokenizer has, special tokens included; at most the requested size."""
        return int(self.manifest["vocab_size"])

    @property
    def tokenizer_path(self) -> Path:
        """Path of the tokenizer's JSON file."""
        return self.folder / "tokenizer.json"

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer."""
        return load_tokenizer(self.tokenizer_path)

    def train(self, unique_bytes: int | None = None) -> TokenArray:
        """Return the longest prefix of the training documents that fits into `unique_bytes`; None: all."""
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
                "the bytes that hold every planted copy; raise the first or lower the second"
            )
        cumulative = np.load(self.folder / "train.bytes.npy", mmap_mode="r")
        n = int(np.searchsorted(cumulative, unique_bytes, side="right")) - 1
        if n == 0:
            raise ConfigError(
                f"budget.unique_bytes={unique_bytes} holds no document; use {cumulative[1]} or more"
            )
        return self._array("train", (n, int(cumulative[n]), int(whole.offsets[n])))

    def validation(self) -> TokenArray:
        """Return the validation split."""
        return self._array("validation")

    def test(self) -> TokenArray:
        """Return the test split."""
        return self._array("test")

    def _array(self, split: Split, size: tuple[int, int, int] | None = None) -> TokenArray:
        counts = self.manifest["splits"][split]
        n_documents, n_bytes, n_tokens = size or (counts[name] for name in ("documents", "bytes", "tokens"))
        dtype, shard_tokens = self.manifest["dtype"], self.manifest["shard_tokens"]
        return TokenArray(self.folder, split, n_documents, n_bytes, n_tokens, dtype, shard_tokens)


def prepare_text(
    corpus: TextCorpus, tokenizer: schema.Tokenizer, data_dir: Path, *, given: str | None = None
) -> TextData:
    """Tokenize `corpus` into `data_dir`, unless that is already done.

    Args:
        corpus: the documents.
        tokenizer: how a tokenizer is trained on them.
        data_dir: root of all prepared corpora.
        given: JSON of a tokenizer with our special ids; it is used instead of training one.

    Raises:
        DataError: the corpus is empty or unreadable, or a split of it is empty.
        ConfigError: a tokenizer setting is out of range.
    """
    check(tokenizer, "tokenizer")
    settings: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "train_bytes": tokenizer.train_bytes}
    if given is not None:
        settings = {"given_sha256": sha256(given.encode()).hexdigest()}
    key = corpus_key(corpus, data_dir) | {"tokenizer": settings}
    folder = cache_folder(data_dir, f"{type(corpus).__name__.lower()}-tokens", key)

    def build(partial: Path) -> Manifest:
        skipped = SkippedItems()
        written = write_shards(
            corpus, lambda: _items(corpus, data_dir), tokenizer, partial, given=given, skipped=skipped
        )
        return written | {"settings": settings} | account(corpus, skipped, "corpus.text")

    return TextData(folder, prepare(folder, build))


def load_documents(corpus: TextCorpus, data_dir: Path, split: Split | None = None) -> Iterator[Document]:
    """Yield the documents of one split, or of all.

    A labelled corpus is parsed only once, and its equal texts are kept once.
    """
    documents = SkippedItems().separated(_items(corpus, data_dir))
    return (item for item in documents if split is None or split_of(item.group) == split)


def _items(corpus: TextCorpus, data_dir: Path) -> Iterator[Document | Skipped]:
    corpus.keep_downloads_in(data_dir)
    return _cached_documents(corpus, data_dir) if corpus.labelled else corpus.documents()


def account(corpus: Corpus, skipped: SkippedItems, key: str) -> Manifest:
    """Return provenance and skipped items of a corpus, for its manifest; warn if there are any."""
    provenance = corpus.provenance()
    if not skipped.counts:
        return {"provenance": provenance}
    log.warning("%s: skipped %s", key, skipped.described())
    return {"provenance": provenance | {"skipped": skipped.described()}, "skipped": dict(skipped.counts)}


def corpus_key(corpus: Corpus, data_dir: Path) -> dict[str, Any]:
    """Return what identifies the content of a corpus in the cache."""
    corpus.keep_downloads_in(data_dir)
    name = f"{type(corpus).__module__}.{type(corpus).__qualname__}"
    return {"class": name, "fingerprint": corpus.fingerprint(), "format": FORMAT}


def _cached_documents(corpus: TextCorpus, data_dir: Path) -> Iterator[Document | Skipped]:
    def build(partial: Path) -> Manifest:
        seen: set[int] = set()
        with (partial / "documents.jsonl").open("w", encoding="utf-8") as file:
            for item in show_progress(corpus.documents(), "reading documents"):
                if isinstance(item, Skipped):
                    file.write(json.dumps([item.reason, item.place], ensure_ascii=False) + "\n")
                    continue
                hashed = content_hash(item.text.encode())
                if hashed not in seen:
                    seen.add(hashed)
                    file.write(json.dumps([item.text, item.group, item.labels], ensure_ascii=False) + "\n")
        return {"documents": len(seen), "provenance": corpus.provenance()}

    folder = cache_folder(
        data_dir, f"{type(corpus).__name__.lower()}-documents", corpus_key(corpus, data_dir)
    )
    prepare(folder, build)
    with (folder / "documents.jsonl").open(encoding="utf-8", newline="\n") as file:
        for line in file:
            row = json.loads(line)
            yield Skipped(*row) if len(row) == 2 else Document(*row)


@dataclass(frozen=True)
class Scan:
    """Result of the first pass; entry i of an array is document i of the corpus."""

    hashes: NDArray[np.uint64]
    sizes: NDArray[np.int64]  # raw UTF-8 bytes
    splits: NDArray[np.int8]  # index into SPLITS
    keep: NDArray[np.bool_]  # False: an equal document came before
    content_sha256: str
    sample: list[str]  # for the tokenizer

    def kept(self, split: Split) -> NDArray[np.int64]:
        """Return the indices of the split's documents, in the order of the corpus."""
        return np.flatnonzero(self.keep & (self.splits == SPLITS.index(split)))

    def followed_by(self, planted: Sequence[Planted]) -> "Scan":
        """Return a scan for the second pass, with planted texts as training documents after the corpus."""
        data = [item.text.encode() for item in planted]
        train = np.full(len(data), SPLITS.index("train"), np.int8)
        return replace(
            self,
            hashes=np.concatenate([self.hashes, np.array([content_hash(d) for d in data], np.uint64)]),
            sizes=np.concatenate([self.sizes, np.array([len(d) for d in data], np.int64)]),
            splits=np.concatenate([self.splits, train]),
            keep=np.concatenate([self.keep, np.ones(len(data), bool)]),
        )


def write_shards(
    corpus: TextCorpus,
    items: Callable[[], Iterable[Document | Skipped]],
    settings: schema.Tokenizer,
    folder: Path,
    *,
    given: str | None,
    skipped: SkippedItems,
) -> Manifest:
    """Write tokenizer, shards, offsets and sizes into `folder`; return their counts and hashes.

    What cannot be used is counted in `skipped`.

    Planted texts add training tokens and change nothing else: the splits, the order of the other documents
    and the tokenizer are those of the corpus without them.

    Raises:
        DataError: there are no documents, a split is empty, or documents change between the two passes.
    """
    planting = corpus.planting()
    documents = skipped.separated(_cut(show_progress(items(), "reading documents")))
    scan = scan_documents(documents, settings.train_bytes)
    check_splits({split: len(scan.kept(split)) for split in SPLITS}, corpus, "corpus.text", skipped)
    path = folder / "tokenizer.json"
    if given is None:
        train_tokenizer(scan.sample, settings.vocab_size).save(str(path))
    else:
        path.write_text(given, encoding="utf-8")
    tokenizer = load_tokenizer(path)
    vocab_size = tokenizer.get_vocab_size()
    dtype = np.dtype(np.uint16 if vocab_size < NARROW_VOCAB_SIZE else np.uint32)
    planted = [] if planting is None else planting.texts
    whole = scan.followed_by(planted)
    again = SkippedItems().separated(_cut(items()))
    stream = chain(again, (Document(item.text, group="") for item in planted))
    counts = _encode(show_progress(stream, "tokenizing"), whole, tokenizer, folder, dtype)
    manifest: Manifest = {
        "content_sha256": scan.content_sha256,
        "tokenizer_sha256": sha256(path.read_bytes()).hexdigest(),
        "vocab_size": vocab_size,
        "dtype": dtype.name,
        "shard_tokens": SHARD_TOKENS,
        "duplicates": int((~scan.keep).sum()),
        "splits": {},
    }
    for split in SPLITS:
        index = whole.kept(split)
        order = np.argsort(scan.hashes[scan.kept(split)])
        if planting is not None and split == "train":
            order = place(order, whole.sizes[index], planting)
        manifest["splits"][split] = _write_split(folder, split, whole, index, order, counts, dtype)
    if planting is None:
        return manifest
    text = scan.content_sha256 + json.dumps(asdict(planting), sort_keys=True)
    return manifest | {"planted": asdict(planting), "content_sha256": sha256(text.encode()).hexdigest()}


def _cut(items: Iterable[Document | Skipped]) -> Iterator[Document | Skipped]:
    """Cut very long documents into several of the same group, and count them."""
    for item in items:
        if isinstance(item, Skipped) or len(item.text) <= 2 * MAX_TEXT_CHARS:
            yield item
            continue
        yield Skipped(CUT, item.group)
        for start in range(0, len(item.text), MAX_TEXT_CHARS):
            yield replace(item, text=item.text[start : start + MAX_TEXT_CHARS])


def scan_documents(documents: Iterable[Document], sample_bytes: int) -> Scan:
    """Read all documents once and return what the second pass needs to know of them."""
    hashes, sizes, splits, content = array("Q"), array("q"), array("b"), sha256()
    sample = _Sample(sample_bytes)
    for item in documents:
        data = item.text.encode()
        hashes.append(content_hash(data))
        sizes.append(len(data))
        split = split_of(item.group)
        splits.append(SPLITS.index(split))
        content.update(b"%d %d " % (len(item.group), len(data)) + item.group.encode() + data)
        if split == "train":
            sample.offer(hashes[-1], item.text, len(data))
    hashed = np.array(hashes, np.uint64)
    keep = np.zeros(len(hashed), bool)
    keep[np.unique(hashed, return_index=True)[1]] = True  # the first of equal ones
    arrays = hashed, np.array(sizes, np.int64), np.array(splits, np.int8), keep
    return Scan(*arrays, content.hexdigest(), sample.texts())


class _Sample:
    """The documents of the lowest hashes, at most `limit` bytes of them but at least one document."""

    def __init__(self, limit: int) -> None:
        self.limit, self.total = limit, 0
        self.ceiling = 2**64  # the lowest hash that was dropped: no document above it can enter again
        self.heap: list[tuple[int, str, int]] = []  # the highest hash on top
        self.members: set[int] = set()

    def offer(self, hashed: int, text: str, size: int) -> None:
        if hashed in self.members or hashed >= self.ceiling:
            return
        heapq.heappush(self.heap, (-hashed, text, size))
        self.members.add(hashed)
        self.total += size
        while self.total > self.limit and len(self.heap) > 1:
            negated, _, freed = heapq.heappop(self.heap)
            self.ceiling = -negated
            self.members.discard(-negated)
            self.total -= freed

    def texts(self) -> list[str]:
        return [text for _, text, _ in sorted(self.heap, reverse=True)]


def content_hash(data: bytes) -> int:
    """Return 64 bits of SHA-256, by which documents are ordered at random and equal ones are found."""
    return int.from_bytes(sha256(data).digest()[:8], "big")


def check_splits(sizes: dict[Split, int], corpus: Corpus, key: str, skipped: SkippedItems) -> None:
    """Raise a DataError if a split of the corpus is empty."""
    empty = [split for split, size in sizes.items() if size == 0]
    if not any(sizes.values()):
        if skipped.counts:
            raise DataError(f"{key}: every row was skipped: {skipped.described()}; check the columns' names")
        raise DataError(f"{key}: the corpus has no documents; check its options")
    if empty:
        raise DataError(
            f"{key}: the split {' and '.join(empty)} is empty, because whole groups are held out, equal "
            f"items are kept once, and there are too few; {corpus.how_to_add_groups(key)}"
            + (f" (skipped {skipped.described()})" if skipped.counts else "")
        )


def shard_path(folder: Path, split: Split, shard: int) -> Path:
    """Return the path of the file that begins with token shard * SHARD_TOKENS."""
    return folder / f"{split}.{shard:05d}.bin"


def unordered(folder: Path, split: Split) -> Path:
    """Return the path of a split in the order of the corpus, which exists until it is shuffled."""
    return folder / f"{split}.unordered"


def _encode(
    documents: Iterable[Document], scan: Scan, tokenizer: Tokenizer, folder: Path, dtype: np.dtype[Any]
) -> NDArray[np.int64]:
    """Write the splits' tokens in the order of the corpus; return the number of tokens per document."""
    counts = np.zeros(len(scan.keep), np.int64)
    with ExitStack() as stack:
        streams = [stack.enter_context(unordered(folder, split).open("wb")) for split in SPLITS]
        for batch in _batches(documents, scan):
            encodings = tokenizer.encode_batch_fast([text for _, text in batch], add_special_tokens=False)
            for (index, _), encoding in zip(batch, encodings, strict=True):
                tokens = np.array([*encoding.ids, EOS], dtype)
                streams[scan.splits[index]].write(tokens.tobytes())
                counts[index] = len(tokens)
    return counts


def _batches(documents: Iterable[Document], scan: Scan) -> Iterator[list[tuple[int, str]]]:
    """Yield kept documents with their indices, about BATCH_BYTES at a time."""
    batch: list[tuple[int, str]] = []
    size, index = 0, -1
    for index, item in enumerate(documents):
        if index >= len(scan.keep) or content_hash(item.text.encode()) != scan.hashes[index]:
            raise DataError(CHANGED)
        if scan.keep[index]:
            batch.append((index, item.text))
            size += int(scan.sizes[index])
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if index + 1 != len(scan.keep):
        raise DataError(CHANGED)
    yield batch


def _write_split(
    folder: Path,
    split: Split,
    scan: Scan,
    index: NDArray[np.int64],
    order: NDArray[np.int64],
    counts: NDArray[np.int64],
    dtype: np.dtype[Any],
) -> dict[str, int]:
    """Copy a split's documents, `index[order]`, into shards, and write their offsets and sizes."""
    ends = np.cumsum(counts[index])
    offsets = np.concatenate([[0], np.cumsum(counts[index][order])])
    sizes = np.concatenate([[0], np.cumsum(scan.sizes[index][order])])
    np.save(folder / f"{split}.offsets.npy", offsets)
    np.save(folder / f"{split}.bytes.npy", sizes)
    source = np.memmap(unordered(folder, split), dtype, mode="r")
    for first in range(0, len(order), BATCH_DOCUMENTS):
        batch = order[first : first + BATCH_DOCUMENTS]
        spans = zip(ends[batch] - counts[index[batch]], ends[batch], strict=True)
        block = np.concatenate([source[start:end] for start, end in spans])
        _append(folder, split, int(offsets[first]), block)
    del source
    unordered(folder, split).unlink()
    return {"documents": len(order), "bytes": int(sizes[-1]), "tokens": int(offsets[-1])}


def _append(folder: Path, split: Split, position: int, block: NDArray[np.integer[Any]]) -> None:
    """Write `block` at token `position` of the split, into as many shards as necessary."""
    while len(block):
        shard, used = divmod(position, SHARD_TOKENS)
        part = block[: SHARD_TOKENS - used]
        with shard_path(folder, split, shard).open("ab") as file:
            file.write(part.tobytes())
        block, position = block[len(part) :], position + len(part)
