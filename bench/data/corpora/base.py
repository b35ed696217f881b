"""Base classes of corpora: a corpus yields documents or (image, caption) pairs.

A corpus only states where its content comes from. Splitting, shuffling, tokenizing and budgets are the same
for all corpora (`bench.data.shards`, `bench.data.pairs`).
"""

import hashlib
import importlib.util
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray
from omegaconf import MISSING
from typing_extensions import override

from bench.config.bounds import Checked, OptionError
from bench.config.schema import Config
from bench.data.planting import Planting

T = TypeVar("T")
Split = Literal["train", "validation", "test"]
HELD_OUT_SHARE = 0.1  # of the groups, for validation and for test each
ImageSize = Annotated[int, Interval(ge=8, le=512)]  # pixels per side
MAX_NAMED_PLACES = 5  # of skipped items
MAX_TEXT_CHARS = 2**20  # of a document; a longer one is cut into several, so that memory is bounded
CUT = f"text of more than {MAX_TEXT_CHARS:,} characters, cut into several"


@dataclass(frozen=True)
class Document:
    """One text. A `group` (a source file, for example) lies in one split as a whole; labels are free tags."""

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
    """A source item that cannot be used, or a text that was cut: counted, never silently dropped."""

    reason: str  # the same for all items of a kind, such as "image that does not decode"
    place: str  # where a user finds it, such as "row 7"


@dataclass
class SkippedItems:
    """The skipped items of a source: their number and the first places, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, item: Skipped) -> None:
        """Count an item."""
        self.counts[item.reason] += 1
        first = self.places.setdefault(item.reason, [])
        if len(first) < MAX_NAMED_PLACES:
            first.append(item.place)

    def described(self) -> str:
        """Return the counts and places as one line, for the log and for every result."""
        parts = []
        for reason, n in self.counts.items():
            more = ", ..." if n > MAX_NAMED_PLACES else ""
            parts.append(f"{reason}: {n} ({', '.join(self.places[reason])}{more})")
        return "; ".join(parts)

    def separated(self, items: Iterable[T | "Skipped"]) -> Iterator[T]:
        """Yield the items that can be used, and count the others."""
        for item in items:
            if isinstance(item, Skipped):
                self.add(item)
            else:
                yield item


def split_of(group: str, test_share: float = HELD_OUT_SHARE) -> Split:
    """Return the split of a group. It depends on the group's name only, not on seeds or budgets."""
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if share < test_share:
        return "test"
    return "validation" if share < test_share + HELD_OUT_SHARE else "train"


@dataclass(frozen=True)
class TextCorpusOptions(Checked):
    """Base of the options of text corpora."""

    usual_key: ClassVar[str] = "corpus.text"


@dataclass(frozen=True)
class PairCorpusOptions(Checked):
    """Base of the options of pair corpora."""

    usual_key: ClassVar[str] = "corpus.pairs"

    image_size: ImageSize = MISSING

    @override
    def check_run(self, config: Config) -> None:
        if self.image_size % config.model.patch_size:
            advice = f"it does not divide corpus.pairs.image_size={self.image_size}; choose a divisor"
            raise OptionError("model.patch_size", config.model.patch_size, advice)


class Corpus(ABC):
    """Base of text and pair corpora.

    Subclasses have a frozen dataclass `Options`, filled from the YAML of the same name.
    """

    Options: ClassVar[type[Any]]
    data_dir = Path("data")  # for downloads; set by `keep_downloads_in`

    def __init__(self, options: Any) -> None:
        self.options = options

    def keep_downloads_in(self, data_dir: Path) -> None:
        """Set the folder of downloads. It is called before a corpus is read or fingerprinted."""
        self.data_dir = data_dir

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Return a cheap, JSON-able description that changes whenever the content may have changed.

        It is the key of the cache: package versions, or (path, size, mtime) of files, but not the content
        itself. It must not depend on the machine's paths more than the content does.
        """

    @abstractmethod
    def provenance(self) -> dict[str, str]:
        """Return the sources with their versions and the licence, as recorded with every result."""

    def how_to_add_groups(self, key: str) -> str:
        """Return what a user can do if there are too few groups; `key` is that of the corpus."""
        return f"give {key} more content"


class TextCorpus(Corpus):
    """A corpus of documents.

    `labelled` corpora also provide tasks, so their parsed documents are cached. They are small; an unlabelled
    corpus may be larger than memory and is never copied.

    Example: a file with one document per line, as `corpus/text=lines` with the option `path`::

        class Lines(TextCorpus):
            @dataclass(frozen=True)
            class Options:
                path: str = MISSING

            def documents(self):
                with open(self.options.path, encoding="utf-8") as file:
                    for i, line in enumerate(file):
                        yield Document(line.rstrip("\\n"), group=f"line {i}")

            def fingerprint(self):
                return {"sha256": hashlib.sha256(Path(self.options.path).read_bytes()).hexdigest()}

            def provenance(self):
                return {"source": Path(self.options.path).name, "licence": "unknown"}
    """

    labelled: bool = False

    @abstractmethod
    def documents(self) -> Iterator[Document | Skipped]:
        """Yield all documents in a fixed order, and the source items that cannot be used as documents.

        The corpus may be larger than memory.

        Raises:
            DataError: there is nothing to read, or a file is not UTF-8 text; names the file and the key.
        """

    def planting(self) -> Planting | None:
        """Return the texts to plant; they change neither splits nor order nor tokenizer."""
        return None


class PairCorpus(Corpus):
    """A corpus of (image, caption) pairs with square images of `image_size` pixels.

    Example: pairs of an array file, as `corpus/pairs=arrays` (the other methods as in `TextCorpus`)::

        class Arrays(PairCorpus):
            @dataclass(frozen=True)
            class Options:
                path: str = MISSING
                image_size: int = MISSING

            def pairs(self):
                found = np.load(self.options.path)  # images (N, S, S, 3) uint8, captions (N,)
                for i, (image, caption) in enumerate(zip(found["images"], found["captions"])):
                    yield Pair(image, str(caption), group=f"pair {i}")
    """

    image_size: int
    test_share: float = HELD_OUT_SHARE  # of the groups; validation has HELD_OUT_SHARE

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.image_size = options.image_size

    @abstractmethod
    def pairs(self) -> Iterator[Pair | Skipped]:
        """Yield all pairs in a fixed order, and the source items that cannot be used as pairs.

        Raises:
            DataError: there is nothing to read; names the config key.
        """


def universal_lines(text: str) -> list[str]:
    """Split a text at CR, LF and CR LF, and nowhere else: `str.splitlines` splits at U+0085 and others too.

    >>> universal_lines("a\\x85b\\rc\\r\\nd")
    ['a\\x85b', 'c', 'd']
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    return lines.split("\n") if lines else []


@cache
def package_folder(name: str) -> Path | None:
    """Return the folder of an installed package, without importing it; None if there is none."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which escapes can produce and UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")
