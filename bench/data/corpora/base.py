"""What a corpus is: a stream of documents or of (image, caption) pairs. corpus -> tokens -> batches.

A corpus says where its content comes from and nothing else: splitting, shuffling, tokenising and
budgeting are the same for all (`bench.data.tokens`).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]
HELD_OUT_SHARE = 0.1  # of the groups, for validation and for test each


@dataclass(frozen=True)
class Document:
    """One text. `group` is what must not straddle a split (a source file, say); labels are free tags."""

    text: str
    group: str
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """One image with its caption. image: (S, S, 3) uint8, S = the corpus' `image_size`."""

    image: NDArray[np.uint8]
    caption: str
    group: str
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """An item of a source that is no pair: counted by its reason, never silently dropped."""

    reason: str  # "image does not decode": the same for all items of a kind
    place: str  # "row 7": where a user finds it


@dataclass(frozen=True)
class Planted:
    """A text that is put among the training documents `copies` times; 0: a control, never put there."""

    text: str
    copies: int
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Planting:
    """Texts to plant. Every data budget of `within_bytes` or more holds each exactly `copies` times."""

    texts: list[Planted]
    within_bytes: int


def split_of(group: str) -> Split:
    """The split of a group: a pure function of its name, so no seed or budget can move it."""
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if share < HELD_OUT_SHARE:
        return "test"
    return "validation" if share < 2 * HELD_OUT_SHARE else "train"


class Corpus(ABC):
    """Base of text and pair corpora.

    Subclasses carry their own frozen `Options` dataclass, filled from the YAML of the same name.
    """

    Options: ClassVar[type[Any]]

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """A cheap, JSON-able description that changes whenever the content may have changed.

        Package versions, or (path, size, mtime) of files; never the content itself. It keys the cache
        and must not depend on the machine's paths more than the content does.
        """

    @abstractmethod
    def provenance(self) -> dict[str, str]:
        """Sources with versions and the licence, as recorded beside every result."""


class TextCorpus(Corpus):
    """A corpus of documents.

    `labelled` corpora feed tasks too: their documents are cached once parsed (`bench.data.tokens`). They are
    small; an unlabelled corpus may be larger than memory and is never copied.
    """

    labelled: bool = False

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """All documents, in a fixed order, one at a time (never the whole corpus in memory).

        Raises:
            DataError: nothing to read, or a file that is not UTF-8 text; names file and config key.
        """

    def planting(self) -> Planting | None:
        """What is planted among the documents, beside them: they keep splits, order and tokenizer."""
        return None


class PairCorpus(Corpus):
    """A corpus of (image, caption) pairs with square images of `image_size` pixels."""

    image_size: int

    @abstractmethod
    def pairs(self) -> Iterator[Pair | Skipped]:
        """All pairs, in a fixed order, one at a time, and what of the source is none.

        Raises:
            DataError: nothing to read; names the config key.
        """
