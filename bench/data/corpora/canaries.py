"""Canaries: made-up secrets planted at known counts (Carlini et al. 2019, arXiv:1802.08232).

`bench.tasks.canaries` measures what a strategy remembers of them. All else of the corpus stays as it is: the
same documents in the same splits and order, and the same tokenizer. A canary is a document of its own; where
a row's edge cuts one, it is read in two parts, as any document is.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from bench.data.corpora.base import Planted, Planting
from bench.data.corpora.docstrings import Docstrings, DocstringsOptions
from bench.errors import ConfigError

CONSONANTS, VOWELS = "bdfgjklmnprstvz", "aeiou"
SYLLABLES = 3
MAX_DIGITS = 12  # a number of so many is drawn as one 64-bit integer


@dataclass(frozen=True)
class CanaryOptions:
    """How many canaries there are, how often each is planted, and how much there is to guess."""

    counts: list[int] = field(default_factory=lambda: MISSING)  # copies; 0: controls, never planted
    per_count: int = MISSING  # canaries of each count
    digits: int = MISSING  # of a secret: 10 ** digits are possible
    within_bytes: int = MISSING  # of the training text that hold all copies: the study's smallest data budget
    canary_seed: int = MISSING

    def __post_init__(self) -> None:
        counts = self.counts
        if 0 not in counts or len(set(counts)) != len(counts) or min(counts) < 0 or max(counts) < 1:
            raise ConfigError(
                f"corpus.text.counts={counts}: give distinct numbers of copies, 0 for controls among them"
            )
        if self.per_count < 1:
            raise ConfigError(f"corpus.text.per_count={self.per_count} must be at least 1")
        if not 1 <= self.digits <= MAX_DIGITS:
            raise ConfigError(f"corpus.text.digits={self.digits} must lie in 1..{MAX_DIGITS}")
        if self.within_bytes < 1:
            raise ConfigError(f"corpus.text.within_bytes={self.within_bytes} must be at least 1")


def spell(number: int, digits: int) -> str:
    """A secret as it stands in a text.

    >>> spell(471, 6)
    '0 0 0 4 7 1'
    """
    return " ".join(f"{number:0{digits}d}")


def canaries(options: CanaryOptions) -> list[Planted]:
    """All canaries, the controls as well; each has a name of its own and a secret drawn uniformly."""
    rng = random.Random(options.canary_seed)  # noqa: S311 - the same secrets for everyone
    names = _names(rng)
    found = []
    for count in options.counts:
        for _ in range(options.per_count):
            secret = spell(rng.randrange(10**options.digits), options.digits)
            text = f"The access code of {next(names)} is {secret}"
            found.append(Planted(text, count, {"secret": secret}))
    return found


def _names(rng: random.Random) -> Iterator[str]:
    """Distinct words that no corpus has."""
    seen = set()
    while True:
        name = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(SYLLABLES)).capitalize()
        if name not in seen:
            seen.add(name)
            yield name


@dataclass(frozen=True)
class CanaryDocstringsOptions(DocstringsOptions, CanaryOptions):
    """Those of both."""

    def __post_init__(self) -> None:
        DocstringsOptions.__post_init__(self)
        CanaryOptions.__post_init__(self)


class CanaryDocstrings(Docstrings):
    """Docstrings with canaries."""

    Options = CanaryDocstringsOptions
    options: CanaryDocstringsOptions

    def __init__(self, options: CanaryDocstringsOptions) -> None:
        super().__init__(options)

    def fingerprint(self) -> dict[str, Any]:
        """That of the docstrings, and the canaries' options."""
        own = asdict(self.options)
        return super().fingerprint() | {"canaries": {f.name: own[f.name] for f in fields(CanaryOptions)}}

    def provenance(self) -> dict[str, str]:
        """That of the docstrings; how many canaries are among them."""
        options = self.options
        planted = f"{options.per_count} each at {', '.join(map(str, options.counts))} copies"
        return super().provenance() | {"canaries": f"{planted}, seed {options.canary_seed}"}

    def planting(self) -> Planting:
        """The canaries."""
        return Planting(canaries(self.options), self.options.within_bytes)
