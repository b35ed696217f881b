"""Corpora made of others: all of their content, or as much as has given shares.

With `shares`, one part is used whole and the others are thinned, so that each has its share of the bytes (of
text) or of the items (of pairs). Items are chosen by a hash of their content that is independent of the one
by which budgets order them, so every data budget, small or large, has these shares in expectation, and a
small budget lies inside a large one. An item's split is that of its group in its own corpus; of equal items
in several parts the first is kept.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING
from typing_extensions import override

from bench.config.bounds import OptionError, Positive, ShareBelowOne
from bench.config.build import build
from bench.data.corpora.base import (
    Document,
    Pair,
    PairCorpus,
    PairCorpusOptions,
    Skipped,
    TextCorpus,
    TextCorpusOptions,
)
from bench.data.planting import Planting
from bench.errors import ConfigError

T = TypeVar("T", Document, Pair)


@dataclass(frozen=True)
class TextMixtureOptions(TextCorpusOptions):
    """The parts and their shares of the bytes."""

    parts: dict[str, Any] = field(default_factory=lambda: MISSING)  # name -> a corpus, from `defaults`
    shares: dict[str, Positive] | None = field(default_factory=lambda: MISSING)  # null: all of each part

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shares(self.parts, self.shares, self.usual_key)


@dataclass(frozen=True)
class PairMixtureOptions(PairCorpusOptions):
    """The parts, their shares of the pairs, and the split."""

    parts: dict[str, Any] = field(default_factory=lambda: MISSING)  # name -> a corpus, from `defaults`
    shares: dict[str, Positive] | None = field(default_factory=lambda: MISSING)  # null: all of each part
    test_share: ShareBelowOne = MISSING  # of the groups, in place of the parts' own

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shares(self.parts, self.shares, self.usual_key)


def _check_shares(parts: Mapping[str, Any], shares: Mapping[str, float] | None, key: str) -> None:
    if len(parts) < 2:
        raise OptionError("parts", list(parts), "name two corpora or more", key)
    if shares is None:
        return
    if set(shares) != set(parts):
        raise OptionError(
            "shares", dict(shares), f"name the same parts as {key}.parts: {', '.join(parts)}", key
        )
    if not math.isclose(total := sum(shares.values()), 1, abs_tol=1e-6):
        raise OptionError("shares", dict(shares), f"they sum to {total:g}; use shares that sum to 1", key)


class _Parts:
    """What mixtures of text and of pairs have in common."""

    options: Any
    parts: dict[str, Any]

    def keep_downloads_in(self, data_dir: Path) -> None:
        """Set the folder of the parts' downloads."""
        for part in self.parts.values():
            part.keep_downloads_in(data_dir)

    def fingerprint(self) -> dict[str, Any]:
        """Return the fingerprints of the parts, and the shares."""
        shares = self.options.shares and {name: self.options.shares[name] for name in self.parts}
        return {"parts": {name: part.fingerprint() for name, part in self.parts.items()}, "shares": shares}

    def provenance(self) -> dict[str, str]:
        """Return the parts' provenance, each entry beginning with the part's name."""
        found = {name: part.provenance() for name, part in self.parts.items()}
        keys = dict.fromkeys(key for entries in found.values() for key in entries)
        joined = {
            key: "; ".join(f"{name}: {entries[key]}" for name, entries in found.items() if key in entries)
            for key in keys
        }
        if (shares := self.options.shares) is None:
            return joined
        return joined | {"shares": ", ".join(f"{name} {shares[name]:g}" for name in self.parts)}

    def how_to_add_groups(self, key: str) -> str:
        """Return what a user can do for one of the parts."""
        name, part = next(iter(self.parts.items()))
        return str(part.how_to_add_groups(f"{key}.parts.{name}"))

    def mixed(
        self,
        read: Callable[[Any], Iterator[T | Skipped]],
        content: Callable[[T], bytes],
        size: Callable[[T], int],
    ) -> Iterator[T | Skipped]:
        """Yield the items of all parts, thinned to the shares.

        Args:
            read: reads a part; called twice if there are shares.
            content: what an item is chosen by.
            size: what shares are shares of.
        """
        rates = self._rates(read, size)
        for name, part in self.parts.items():
            for item in read(part):
                if isinstance(item, Skipped) or _draw(content(item)) < rates[name]:
                    yield item

    def _rates(
        self, read: Callable[[Any], Iterator[T | Skipped]], size: Callable[[T], int]
    ) -> dict[str, float]:
        """Return the rate at which items of each part are kept; 1 for the scarcest part."""
        shares = self.options.shares
        if shares is None:
            return dict.fromkeys(self.parts, 1.0)
        sizes = {
            name: sum(size(item) for item in read(part) if not isinstance(item, Skipped))
            for name, part in self.parts.items()
        }
        whole = min(sizes[name] / shares[name] for name in self.parts)  # size of the mixture
        return {name: whole * shares[name] / sizes[name] if sizes[name] else 1.0 for name in self.parts}


def _draw(content: bytes) -> float:
    """Return a number from 0 to 1 that is uniform over items and independent of `shards.content_hash`."""
    return int.from_bytes(sha256(content).digest()[8:16], "big") / 2**64


def _built(parts: Mapping[str, Any], base: type[Any], key: str) -> dict[str, Any]:
    """Build the parts in the order of their names; the order of keys in a file then changes nothing."""
    return {name: build(parts[name], base, f"{key}.parts.{name}") for name in sorted(parts)}


class TextMixture(_Parts, TextCorpus):
    """Documents of several corpora."""

    Options = TextMixtureOptions
    options: TextMixtureOptions

    def __init__(self, options: TextMixtureOptions) -> None:
        super().__init__(options)
        self.parts: dict[str, TextCorpus] = _built(options.parts, TextCorpus, "corpus.text")
        self.labelled = all(part.labelled for part in self.parts.values())

    def documents(self) -> Iterator[Document | Skipped]:
        """Yield the documents, part by part, in the order of the parts' names."""
        return self.mixed(
            lambda part: part.documents(), lambda d: d.text.encode(), lambda d: len(d.text.encode())
        )

    @override
    def planting(self) -> Planting | None:
        found = {name: planted for name, part in self.parts.items() if (planted := part.planting())}
        if len(found) > 1:
            raise ConfigError(f"corpus.text.parts: {' and '.join(found)} plant texts; use one of them")
        return next(iter(found.values()), None)


class PairMixture(_Parts, PairCorpus):
    """Pairs of several corpora with images of one size."""

    Options = PairMixtureOptions
    options: PairMixtureOptions

    def __init__(self, options: PairMixtureOptions) -> None:
        super().__init__(options)
        self.test_share = options.test_share
        self.parts: dict[str, PairCorpus] = _built(options.parts, PairCorpus, "corpus.pairs")
        for name, part in self.parts.items():
            if part.image_size != self.image_size:
                advice = f"set it to corpus.pairs.image_size={self.image_size}"
                raise OptionError("image_size", part.image_size, advice, f"corpus.pairs.parts.{name}")

    @override
    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"test_share": self.test_share}

    def pairs(self) -> Iterator[Pair | Skipped]:
        """Yield the pairs, part by part, in the order of the parts' names."""
        return self.mixed(
            lambda part: part.pairs(), lambda p: p.image.tobytes() + p.caption.encode(), lambda p: 1
        )
