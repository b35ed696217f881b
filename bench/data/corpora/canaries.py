"""Canaries: made-up secrets planted at known counts (Carlini et al. 2019, arXiv:1802.08232).

`bench.tasks.canaries` measures how much a strategy memorizes them. The rest of the corpus does not change:
the same documents in the same splits and order, and the same tokenizer. A canary is a document of its own;
like any document, it is read in two parts where a row ends inside it.
"""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

from annotated_types import Interval
from omegaconf import MISSING

from bench.config.schema import Amount, Seed
from bench.data.corpora.base import TextCorpusOptions
from bench.data.corpora.docstrings import Docstrings, DocstringsOptions
from bench.data.planting import Planted, Planting

CONSONANTS, VOWELS = "bdfgjklmnprstvz", "aeiou"
SYLLABLES = 3
MAX_DIGITS = 12  # a number of this many digits is drawn as one 64-bit integer


@dataclass(frozen=True)
class CanaryOptions(TextCorpusOptions):
    """How many canaries there are, how often each is planted, and how long its secret is."""

    # Copies; 0: controls, never planted.
    counts: list[Annotated[int, Interval(ge=0, le=10**6)]] = field(default_factory=lambda: MISSING)
    per_count: Annotated[int, Interval(ge=1, le=10**4)] = MISSING  # canaries of each count
    digits: Annotated[int, Interval(ge=1, le=MAX_DIGITS)] = MISSING  # of a secret: 10 ** digits are possible
    within_bytes: Amount = MISSING  # of training text that hold all copies: the study's smallest data budget
    canary_seed: Seed = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = self.counts
        is_usable = 0 in counts and len(set(counts)) == len(counts) > 1
        self.require(is_usable, "counts", "give distinct numbers of copies, including 0 for the controls")


def spell(number: int, digits: int) -> str:
    """Write a secret as it appears in a text.

    >>> spell(471, 6)
    '0 0 0 4 7 1'
    """
    return " ".join(f"{number:0{digits}d}")


def canaries(options: CanaryOptions) -> list[Planted]:
    """Return all canaries, controls included; each has a unique name and a secret drawn uniformly."""
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
    """Yield distinct made-up names, which no corpus contains."""
    seen = set()
    while True:
        name = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(SYLLABLES)).capitalize()
        if name not in seen:
            seen.add(name)
            yield name


@dataclass(frozen=True)
class CanaryDocstringsOptions(DocstringsOptions, CanaryOptions):
    """Options of the docstrings and of the canaries."""


class CanaryDocstrings(Docstrings):
    """Docstrings with planted canaries."""

    Options = CanaryDocstringsOptions
    options: CanaryDocstringsOptions

    def fingerprint(self) -> dict[str, Any]:
        """Return the fingerprint of the docstrings and the canaries' options."""
        own = asdict(self.options)
        return super().fingerprint() | {"canaries": {f.name: own[f.name] for f in fields(CanaryOptions)}}

    def provenance(self) -> dict[str, str]:
        """Return the provenance of the docstrings and the number of canaries."""
        options = self.options
        planted = f"{options.per_count} each at {', '.join(map(str, options.counts))} copies"
        return super().provenance() | {"canaries": f"{planted}, seed {options.canary_seed}"}

    def planting(self) -> Planting:
        """Return the canaries."""
        return Planting(canaries(self.options), self.options.within_bytes)
