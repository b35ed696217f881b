"""Canaries: does a strategy remember secrets of its training text? (Carlini et al. 2019, arXiv:1802.08232).

Exposure (sec. 4) is log2 |R| - log2 rank: the bits by which the planted secret's rank among the set R, by
the strategy's own likelihood of it given the text before, is better than the last. R is a sample here: the
planted secret and others, drawn uniformly from those with as many tokens, so that no rank is a matter of
length. Exposure is then at most log2 of the sample's size; that of a secret never planted is chance in
expectation, whatever a strategy prefers.

Counts are copies in the training data; how often a run has read each is the count times the run's epochs,
which its record holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING
from scipy.special import gammaln

from bench.data.corpora.canaries import spell
from bench.data.planting import Planted
from bench.errors import ConfigError, DataError, InapplicableError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.likelihood_ranking import (
    DECIMALS,
    NAMES,
    Continuation,
    LikelihoodOptions,
    continuation_nats,
    require_kind,
)

SEED = 0  # of the drawn secrets: the same for every strategy and every seed of it
DRAWN = 128  # secrets drawn for each that is ranked, at most: others have more tokens or fewer


@dataclass(frozen=True)
class Candidates:
    """The secrets that are ranked for one canary, the planted one first."""

    canary: Planted
    secrets: list[str]
    texts: list[Continuation]  # of which the secret is scored


class Canaries(Task):
    """The canaries that `bench.data.corpora.canaries` has planted, and its controls."""

    @dataclass(frozen=True)
    class Options:
        """Which quantity ranks, and among how many."""

        kind: str = MISSING  # exact | bound | pseudo
        candidates: int = MISSING  # secrets that are ranked, the planted one among them
        samples: int = MISSING  # draws per text, for a bound

        def __post_init__(self) -> None:
            if self.kind not in NAMES:
                raise ConfigError(f"task.*.kind={self.kind!r}: choose one of {', '.join(NAMES)}")
            for key, least in (("candidates", 2), ("samples", 1)):
                if getattr(self, key) < least:
                    raise ConfigError(f"task.*.{key}={getattr(self, key)}: use {least} or more")

    options: Options

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Mean exposure in bits of the canaries of each count, the largest first; 0 are the controls."""
        canaries = self.canaries(setting)
        require_kind(model, self.options.kind)
        ranked = [self._candidates(i, canary, setting) for i, canary in enumerate(canaries)]
        return self._outcome(ranked, self._nats(model, ranked, setting))

    def ceiling(self, setting: Setting) -> Outcome:
        """Each planted secret, and each control's, is likelier than all others."""
        ranked = [self._candidates(i, canary, setting) for i, canary in enumerate(self.canaries(setting))]
        nats = np.ones((len(ranked), self.options.candidates))
        nats[:, 0] = 0
        return self._outcome(ranked, nats)

    def canaries(self, setting: Setting) -> list[Planted]:
        """In the order of the corpus; each text ends with its secret."""
        planting = setting.text.manifest.get("planted")
        if planting is None:
            raise InapplicableError("no canaries in the corpus")
        return [Planted(**item) for item in planting["texts"]]

    def _candidates(self, i: int, canary: Planted, setting: Setting) -> Candidates:
        n, planted = self.options.candidates, canary.labels["secret"]
        before, digits = canary.text.removesuffix(planted), len(planted.split())
        rng = np.random.default_rng([SEED, i])
        drawn = rng.choice(10**digits, min(10**digits, DRAWN * n), replace=False).tolist()
        own = int("".join(planted.split()))
        numbers = [own, *(number for number in drawn if number != own)]
        found: dict[str, list[int]] = {}
        for start in range(0, len(numbers), n):
            setting.keep_going()
            secrets = [spell(number, digits) for number in numbers[start : start + n]]
            encodings = setting.tokenizer.encode_batch(
                [before + s for s in secrets], add_special_tokens=False
            )
            rows = {secret: encoding.ids for secret, encoding in zip(secrets, encodings, strict=True)}
            length = len((found or rows)[planted])
            found |= {secret: ids for secret, ids in rows.items() if len(ids) == length}
            if len(found) >= n:
                secrets = list(found)[:n]
                return Candidates(canary, secrets, self._continuations([found[s] for s in secrets], setting))
        raise DataError(
            f"only {len(found)} of {len(numbers)} secrets have as many tokens as the planted one; lower "
            f"task.canaries_{self.options.kind}.candidates={n} or raise corpus.text.digits={digits}"
        )

    def _continuations(self, ids: list[list[int]], setting: Setting) -> list[Continuation]:
        """What all rows begin with is given, the rest is scored."""
        n_given = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=True)))
        texts = [Continuation(tuple(row[:n_given]), tuple(row[n_given:]), n_bytes=0) for row in ids]
        if len(texts[0]) > setting.sequence_length:
            raise DataError(
                f"a canary has {len(texts[0])} tokens: no row of sequence_length={setting.sequence_length} "
                "can hold one; raise it"
            )
        return texts

    def _nats(self, model: Objective, ranked: Sequence[Candidates], setting: Setting) -> NDArray[np.float64]:
        """(M, N) nats of each canary's candidates.

        One candidate of every canary is read at a time: a bound then draws the same for all candidates of a
        canary, so that its noise does not rank them.
        """
        options = LikelihoodOptions(self.options.kind, "none", self.options.samples, batch_size=len(ranked))
        columns = [
            continuation_nats(model, [item.texts[n] for item in ranked], options, setting)
            for n in range(self.options.candidates)
        ]
        return np.stack(columns, axis=1).round(DECIMALS)

    def _outcome(self, ranked: Sequence[Candidates], nats: NDArray[np.float64]) -> Outcome:
        bits, chance = exposure(nats), chance_exposure(nats.shape[1])
        counts = np.array([item.canary.copies for item in ranked])
        items = {
            f"exposure_{self.options.kind}_at_{count}": bits[counts == count]
            for count in sorted(set(counts.tolist()), reverse=True)
        }
        scores = [
            Measured(name, float(own.mean()), chance, len(own), higher_is_better=False)
            for name, own in items.items()
        ]
        samples = [
            {
                "canary": item.canary.text,
                "copies": str(item.canary.copies),
                "exposure in bits": f"{own:.2f}",
                "likeliest secret": item.secrets[best],
            }
            for item, own, best in zip(ranked, bits, nats.argmin(axis=1), strict=True)
        ]
        return Outcome(scores, items, samples=samples)


def exposure(nats: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M, N) nats of candidates, the planted one first -> (M,) bits; ties count their expectation."""
    own = nats[:, :1]
    better, tied = (nats < own).sum(axis=1), (nats == own).sum(axis=1)  # tied: itself included
    log_ranks = (gammaln(better + tied + 1) - gammaln(better + 1)) / tied  # the mean of the tied ranks' logs
    bits: NDArray[np.float64] = math.log2(nats.shape[1]) - log_ranks / math.log(2)
    return bits.clip(min=0)  # of the last rank: 0, not what rounding leaves of it


def chance_exposure(n: int) -> float:
    """What a secret of random rank among `n` has on average: near 1 / ln 2 = 1.44 bits where n is large."""
    return math.log2(n) - math.lgamma(n + 1) / math.log(2) / n
