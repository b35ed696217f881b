"""(image, caption) pairs -> memory-mapped images and token ids.

As for text (`bench.data.shards`), pairs are split by group and ordered by content hash, budgets are prefixes
of this order, and equal pairs are kept once.
"""

import json
from array import array
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bench.data.cache import Manifest, cache_folder, prepare, show_progress
from bench.data.corpora.base import Pair, PairCorpus, SkippedItems, Split, split_of
from bench.data.shards import (
    BATCH_DOCUMENTS,
    NARROW_VOCAB_SIZE,
    SPLITS,
    account,
    check_splits,
    content_hash,
    corpus_key,
    unordered,
)
from bench.data.tokenizer import EOS, PAD, load_tokenizer
from bench.errors import ConfigError, DataError

KEY = "corpus.pairs"  # in the config


@dataclass(frozen=True)
class PairArray:
    """N images of S x S pixels with captions of L tokens. Holds paths, not data, so it is cheap to pickle."""

    folder: Path
    split: Split
    n_pairs: int

    def __len__(self) -> int:
        return self.n_pairs

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """(N, S, S, 3), memory-mapped."""
        return cast(NDArray[np.uint8], self._load("images"))

    @cached_property
    def captions(self) -> NDArray[np.integer[Any]]:
        """(N, L), each caption closed by EOS and padded with PAD; memory-mapped."""
        return self._load("captions")

    @cached_property
    def texts(self) -> list[str]:
        """The captions as text."""
        return [caption for caption, _, _ in self._rows()]

    @cached_property
    def groups(self) -> list[str]:
        """The groups by which the pairs were split."""
        return [group for _, group, _ in self._rows()]

    @cached_property
    def labels(self) -> list[dict[str, str]]:
        """The labels of each pair."""
        return [labels for _, _, labels in self._rows()]

    def _load(self, name: str) -> NDArray[Any]:
        stored = np.load(self.folder / f"{self.split}.{name}.npy", mmap_mode="r")
        return cast(NDArray[Any], stored[: self.n_pairs])

    def _rows(self) -> list[tuple[str, str, dict[str, str]]]:
        with (self.folder / f"{self.split}.jsonl").open(encoding="utf-8", newline="\n") as file:
            return [json.loads(line) for _, line in zip(range(self.n_pairs), file, strict=False)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("folder", "split", "n_pairs")}


@dataclass(frozen=True)
class PairData:
    """A prepared pair corpus."""

    folder: Path
    manifest: Manifest = field(repr=False)

    @property
    def image_size(self) -> int:
        """Width and height of the images, in pixels."""
        return int(self.manifest["image_size"])

    @property
    def skipped(self) -> dict[str, int]:
        """Number of skipped items of the whole source, by reason; they belong to no split."""
        return dict(self.manifest.get("skipped", {}))

    def train(self, unique_pairs: int | None = None) -> PairArray:
        """Return the first `unique_pairs` training pairs; None: all."""
        whole = self._array("train")
        if unique_pairs is None:
            return whole
        if unique_pairs > len(whole):
            raise ConfigError(
                f"budget.unique_pairs={unique_pairs} is more than the {len(whole)} training pairs; lower it, "
                "or set it to null for all, with budget.repeat=true for more epochs"
            )
        if unique_pairs < 1:
            raise ConfigError(f"budget.unique_pairs={unique_pairs} must be at least 1, or null for all")
        return PairArray(self.folder, "train", unique_pairs)

    def validation(self) -> PairArray:
        """Return the validation split."""
        return self._array("validation")

    def test(self) -> PairArray:
        """Return the test split."""
        return self._array("test")

    def _array(self, split: Split) -> PairArray:
        return PairArray(self.folder, split, self.manifest["splits"][split]["pairs"])


def prepare_pairs(corpus: PairCorpus, tokenizer_path: Path, caption_length: int, data_dir: Path) -> PairData:
    """Render and tokenize `corpus` into `data_dir`, unless that is already done.

    Args:
        corpus: the pairs.
        tokenizer_path: of the text corpus (`TextData.tokenizer_path`).
        caption_length: tokens of a caption, EOS included; longer captions are cut.
        data_dir: root of all prepared corpora.

    Returns:
        The pairs. Skipped items are counted in the manifest, and named in its provenance and in a warning.

    Raises:
        DataError: the corpus is empty or unreadable, or a split of it is empty.
    """
    if caption_length < 2:
        raise ConfigError(f"caption_length={caption_length} must be at least 2: a token and [EOS]")
    settings = {
        "tokenizer_sha256": sha256(tokenizer_path.read_bytes()).hexdigest(),
        "caption_length": caption_length,
        "image_size": corpus.image_size,
    }
    key = corpus_key(corpus, data_dir) | settings
    folder = cache_folder(data_dir, f"{type(corpus).__name__.lower()}-pairs", key)

    def build(partial: Path) -> Manifest:
        tokenizer = load_tokenizer(tokenizer_path)
        skipped = SkippedItems()
        items = skipped.separated(show_progress(corpus.pairs(), "reading pairs"))
        written = _write(
            items,
            tokenizer,
            settings,
            partial,
            check=lambda sizes: check_splits(sizes, corpus, KEY, skipped),
            test_share=corpus.test_share,
        )
        return written | settings | account(corpus, skipped, KEY)

    return PairData(folder, prepare(folder, build))


def _write(
    items: Iterable[Pair],
    tokenizer: Tokenizer,
    settings: dict[str, Any],
    folder: Path,
    *,
    check: Callable[[dict[Split, int]], None],
    test_share: float,
) -> Manifest:
    """Write the pairs into `folder`, after a check of the splits' sizes."""
    hashes = {split: array("Q") for split in SPLITS}
    rows: dict[Split, list[str]] = {split: [] for split in SPLITS}
    seen: set[int] = set()
    n, content = 0, sha256()
    with ExitStack() as stack:
        streams = {split: stack.enter_context(unordered(folder, split).open("wb")) for split in SPLITS}
        for pair in items:
            n += 1
            _check(pair, settings["image_size"])
            hashed = content_hash(pair.image.tobytes() + pair.caption.encode())
            if hashed in seen:
                continue
            seen.add(hashed)
            split = split_of(pair.group, test_share)
            row = json.dumps([pair.caption, pair.group, pair.labels], ensure_ascii=False)
            content.update(b"%d " % hashed + row.encode())
            hashes[split].append(hashed)
            rows[split].append(row)
            streams[split].write(pair.image.tobytes())
    check({split: len(hashes[split]) for split in SPLITS})
    for split in SPLITS:
        order = np.argsort(np.array(hashes[split], np.uint64))
        _shuffle_images(folder, split, order, settings["image_size"])
        _write_captions(folder, split, [rows[split][i] for i in order], tokenizer, settings["caption_length"])
    return {
        "content_sha256": content.hexdigest(),
        "duplicates": n - len(seen),
        "splits": {split: {"pairs": len(hashes[split])} for split in SPLITS},
    }


def _check(pair: Pair, size: int) -> None:
    if pair.image.shape != (size, size, 3) or pair.image.dtype != np.uint8:
        raise DataError(
            f"corpus.pairs: the image of {pair.caption!r} is {pair.image.dtype} {pair.image.shape}, "
            f"but corpus.pairs.image_size requires uint8 ({size}, {size}, 3)"
        )


def _shuffle_images(folder: Path, split: Split, order: NDArray[np.int64], size: int) -> None:
    shape = (len(order), size, size, 3)
    source = np.memmap(unordered(folder, split), np.uint8, mode="r", shape=shape)
    path = folder / f"{split}.images.npy"
    target = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    for first in range(0, len(order), BATCH_DOCUMENTS):
        target[first : first + BATCH_DOCUMENTS] = source[order[first : first + BATCH_DOCUMENTS]]
    target.flush()
    del source
    unordered(folder, split).unlink()


def _write_captions(folder: Path, split: Split, rows: list[str], tokenizer: Tokenizer, length: int) -> None:
    (folder / f"{split}.jsonl").write_text(
        "".join(f"{row}\n" for row in rows), encoding="utf-8", newline="\n"
    )
    dtype = np.uint16 if tokenizer.get_vocab_size() < NARROW_VOCAB_SIZE else np.uint32
    tokens = np.full((len(rows), length), PAD, dtype)  # (N, L)
    encodings = tokenizer.encode_batch_fast([json.loads(row)[0] for row in rows], add_special_tokens=False)
    for i, encoding in enumerate(encodings):
        ids = [*encoding.ids[: length - 1], EOS]
        tokens[i, : len(ids)] = ids
    np.save(folder / f"{split}.captions.npy", tokens)
