"""Writes what `bench.data.tokens` reads: documents -> tokenizer, token shards, offsets, counts.

Two passes over the documents: the first hashes them and keeps the tokenizer's sample, the second encodes.
Per document, only a hash, a size and a split stay in memory.
"""

import heapq
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bench.config import schema
from bench.data.cache import Manifest
from bench.data.corpora.base import Document, Planted, Planting, Split, split_of
from bench.data.planting import place
from bench.data.progress_bars import counted
from bench.data.tokenizer import EOS, load_tokenizer, train_tokenizer
from bench.errors import DataError

SPLITS: tuple[Split, ...] = get_args(Split)
SHARD_TOKENS = 2**27
NARROW_VOCAB_SIZE = 2**16  # below it, an id fits into 16 bits
BATCH_BYTES = 2**20  # of text encoded at a time
BATCH_DOCUMENTS = 4096  # copied at a time


@dataclass(frozen=True)
class Scan:
    """What the first pass keeps; entry i of an array is document i of the corpus."""

    hashes: NDArray[np.uint64]
    sizes: NDArray[np.int64]  # raw UTF-8 bytes
    splits: NDArray[np.int8]  # index into SPLITS
    keep: NDArray[np.bool_]  # False: an equal document came before
    content_sha256: str
    sample: list[str]  # for the tokenizer

    def kept(self, split: Split) -> NDArray[np.int64]:
        """Indices of the split's documents, in the order of the corpus."""
        return np.flatnonzero(self.keep & (self.splits == SPLITS.index(split)))

    def followed_by(self, planted: Sequence[Planted]) -> "Scan":
        """With what is planted as training documents behind those of the corpus; for the second pass only."""
        data = [item.text.encode() for item in planted]
        train = np.full(len(data), SPLITS.index("train"), np.int8)
        return replace(
            self,
            hashes=np.concatenate([self.hashes, np.array([content_hash(d) for d in data], np.uint64)]),
            sizes=np.concatenate([self.sizes, np.array([len(d) for d in data], np.int64)]),
            splits=np.concatenate([self.splits, train]),
            keep=np.concatenate([self.keep, np.ones(len(data), bool)]),
        )


def write(
    documents: Callable[[], Iterator[Document]],
    settings: schema.Tokenizer,
    folder: Path,
    given: str | None = None,
    planting: Planting | None = None,
) -> Manifest:
    """Fill `folder`; returns counts and hashes. `given`: a tokenizer's JSON, so that none is trained.

    What is planted adds to the training tokens and changes nothing else: splits, the order of the other
    documents and the tokenizer are those of the corpus without it.

    Raises:
        DataError: no documents, an empty split, or documents that change between the two passes.
    """
    scan = scan_documents(counted(documents(), "reading documents"), settings.train_bytes)
    check_splits({split: len(scan.kept(split)) for split in SPLITS}, "corpus.text")
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
    stream = chain(documents(), (Document(item.text, group="") for item in planted))
    counts = _encode(counted(stream, "tokenising"), whole, tokenizer, folder, dtype)
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
    return manifest if planting is None else manifest | _described(planting, scan.content_sha256)


def _described(planting: Planting, content_sha256: str) -> Manifest:
    planted = asdict(planting)
    text = content_sha256 + json.dumps(planted, sort_keys=True)
    return {"planted": planted, "content_sha256": sha256(text.encode()).hexdigest()}


def scan_documents(documents: Iterable[Document], sample_bytes: int) -> Scan:
    """The first pass."""
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
    return Scan(
        hashed,
        np.array(sizes, np.int64),
        np.array(splits, np.int8),
        keep,
        content.hexdigest(),
        sample.texts(),
    )


class _Sample:
    """The documents of the lowest hashes, at most `limit` bytes of them but at least one."""

    def __init__(self, limit: int) -> None:
        self.limit, self.total = limit, 0
        self.ceiling = 2**64  # the lowest hash that was dropped: what follows it stays out too
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
    """64 bits of SHA-256: orders documents at random, and tells equal ones."""
    return int.from_bytes(sha256(data).digest()[:8], "big")


def check_splits(sizes: dict[Split, int], key: str) -> None:
    """Refuse a corpus of which a split is empty."""
    empty = [split for split, size in sizes.items() if size == 0]
    if not any(sizes.values()):
        raise DataError(f"{key}: the corpus has no documents; check its options")
    if empty:
        raise DataError(
            f"{key}: nothing falls into the split {' and '.join(empty)}, since whole groups (files) are held "
            f"out and there are too few; add some, or set {key}.split_by=document where the corpus has it"
        )


def shard_path(folder: Path, split: Split, shard: int) -> Path:
    """The file of tokens shard * SHARD_TOKENS and following."""
    return folder / f"{split}.{shard:05d}.bin"


def _encode(
    documents: Iterable[Document], scan: Scan, tokenizer: Tokenizer, folder: Path, dtype: np.dtype[Any]
) -> NDArray[np.int64]:
    """Write the splits' tokens in the order of the corpus; returns the number of tokens per document."""
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
    """Kept documents with their indices, about BATCH_BYTES at a time."""
    batch: list[tuple[int, str]] = []
    size, index = 0, -1
    for index, item in enumerate(documents):
        if index >= len(scan.keep) or content_hash(item.text.encode()) != scan.hashes[index]:
            raise DataError("corpus.text changed while it was being prepared; run again")
        if scan.keep[index]:
            batch.append((index, item.text))
            size += int(scan.sizes[index])
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if index + 1 != len(scan.keep):
        raise DataError("corpus.text changed while it was being prepared; run again")
    yield batch


def unordered(folder: Path, split: Split) -> Path:
    """Where a split lies in the order of the corpus, until it is shuffled."""
    return folder / f"{split}.unordered"


def _write_split(
    folder: Path,
    split: Split,
    scan: Scan,
    index: NDArray[np.int64],
    order: NDArray[np.int64],
    counts: NDArray[np.int64],
    dtype: np.dtype[Any],
) -> dict[str, int]:
    """Copy a split's documents into shards in `order`, places in `index`, with offsets and sizes."""
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
    """Write `block` at token `position` of the split, into as many shards as it takes."""
    while len(block):
        shard, used = divmod(position, SHARD_TOKENS)
        part = block[: SHARD_TOKENS - used]
        with shard_path(folder, split, shard).open("ab") as file:
            file.write(part.tobytes())
        block, position = block[len(part) :], position + len(part)
