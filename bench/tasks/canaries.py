"""Canaries: does a strategy remember secrets of its training text? (Carlini et al. 2019, arXiv:1802.08232)

Exposure (sec. 4) is log2 |R| - log2 rank, where rank is the rank of the planted secret among the set R of
secrets, by the strategy's likelihood of the secret given the text before it. Here R is a sample: the planted
secret and others, drawn uniformly from those with the same number of tokens, so that length never decides a
rank. Exposure is at most log2 of the sample's size; a secret that was never planted has chance exposure in
expectation, whatever a strategy prefers.

Counts are copies in the training data. A run reads each copy once per epoch; its record holds the epochs.
Shapes: M canaries, N candidates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from typing_extensions import override

from bench.data.corpora.canaries import spell
from bench.data.planting import Planted
from bench.errors import DataError, InapplicableError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.likelihood import (
    DECIMALS,
    Continuation,
    continuation_nll,
    require_kind,
)
from bench.tasks.options import CanariesOptions, LikelihoodOptions

SEED = 0  # of the drawn secrets, which are the same for every strategy and every run
DRAWN = 128  # secrets drawn for each that is ranked, at most, since many have another number of tokens


@dataclass(frozen=True)
class Candidates:
    """The secrets that are ranked for one canary; the planted one comes first."""

    canary: Planted
    secrets: list[str]
    texts: list[Continuation]  # whose scored end is the secret


class Canaries(Task):
    """Measure the exposure of the canaries of `bench.data.corpora.canaries`, and of its controls."""

    Options = CanariesOptions
    options: CanariesOptions

    @override
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Return the mean exposure in bits by number of copies, the largest first; controls have 0 copies."""
        canaries = self.canaries(setting)
        require_kind(model, self.options.kind)
        ranked = [self._candidates(i, canary, setting) for i, canary in enumerate(canaries)]
        return self._outcome(ranked, self._nll(model, ranked, setting))

    @override
    def ceiling(self, setting: Setting) -> Outcome:
        """Return the outcome of a model to which each canary's and control's own secret is the likeliest."""
        ranked = [self._candidates(i, canary, setting) for i, canary in enumerate(self.canaries(setting))]
        nll = np.ones((len(ranked), self.options.candidates))
        nll[:, 0] = 0
        return self._outcome(ranked, nll)

    def canaries(self, setting: Setting) -> list[Planted]:
        """Return the canaries in the order of the corpus; each text ends with its secret."""
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
        """Treat the common beginning of all rows as given, and score the rest."""
        n_given = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=True)))
        texts = [Continuation(tuple(row[:n_given]), tuple(row[n_given:]), n_bytes=0) for row in ids]
        if len(texts[0]) > setting.sequence_length:
            raise DataError(
                f"a canary has {len(texts[0])} tokens, more than sequence_length={setting.sequence_length}; "
                "raise it"
            )
        return texts

    def _nll(self, model: Objective, ranked: Sequence[Candidates], setting: Setting) -> NDArray[np.float64]:
        """Return the negative log-likelihoods (M, N) of each canary's candidates, in nats.

        A batch holds one candidate of every canary, so that a bound uses the same random draws for all
        candidates of a canary and its noise does not rank them.
        """
        options = LikelihoodOptions(
            kind=self.options.kind,
            samples=self.options.samples,
            length_normalisation="none",
            batch_size=len(ranked),
        )
        columns = [
            continuation_nll(model, [item.texts[n] for item in ranked], options, setting)
            for n in range(self.options.candidates)
        ]
        return np.stack(columns, axis=1).round(DECIMALS)

    def _outcome(self, ranked: Sequence[Candidates], nll: NDArray[np.float64]) -> Outcome:
        bits, chance = exposure(nll), chance_exposure(nll.shape[1])
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
            for item, own, best in zip(ranked, bits, nll.argmin(axis=1), strict=True)
        ]
        return Outcome(scores, items, samples=samples)


def exposure(nll: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the exposure (M,) in bits of the first of N candidates (M, N); ties count their expectation."""
    own = nll[:, :1]
    better, tied = (nll < own).sum(axis=1), (nll == own).sum(axis=1)  # tied: itself included
    log_ranks = (gammaln(better + tied + 1) - gammaln(better + 1)) / tied  # mean log rank among the ties
    bits: NDArray[np.float64] = math.log2(nll.shape[1]) - log_ranks / math.log(2)
    return bits.clip(min=0)  # the last rank has exactly 0 bits, not a rounding error


def chance_exposure(n: int) -> float:
    """Return the mean exposure of a random rank among `n` secrets, near 1 / ln 2 = 1.44 bits for large n."""
    return math.log2(n) - math.lgamma(n + 1) / math.log(2) / n
