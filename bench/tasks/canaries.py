"""Canaries: does a strategy remember secrets of its training text? (Carlini et al. 2019, arXiv:1802.08232).

Exposure (sec. 4) is log2 |R| - log2 rank: the bits by which the planted secret's rank among the set R, by
the strategy's own likelihood, is better than the last. R is a sample here: the planted secret and others,
drawn uniformly from those with as many tokens, so that no rank is a matter of length. Exposure is then at
most log2 of the sample's size; that of a secret never planted is chance in expectation, whatever a strategy
prefers.

An exact likelihood, an upper bound and a pseudo-likelihood are three different quantities: three tasks, whose
metrics bear the kind in their name. Counts are copies in the training data; how often a run has read each is
the count times the run's epochs, which its record holds.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import MISSING
from torch import Tensor

from bench.budget import head_flops
from bench.corpora.base import Planted
from bench.corpora.canaries import spell
from bench.errors import ConfigError, DataError, InapplicableError
from bench.objectives.base import Likelihood, Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.vocabulary import EOS

SEED = 0  # of the drawn secrets and of a bound's draws: the same for every strategy and every seed of it
DRAWN = 128  # secrets drawn for each that is ranked, at most: others have more tokens or fewer
NAMES = {"exact": "an exact likelihood", "bound": "a bound", "pseudo": "a pseudo-likelihood"}


class Canaries(Task):
    """The canaries that `bench.corpora.canaries` has planted, and its controls."""

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
        self._check(model)
        rows, secrets = self._rows(canaries, setting)
        return self._outcome(canaries, self._nats(model, rows, setting), secrets)

    def ceiling(self, setting: Setting) -> Outcome:
        """Each planted secret, and each control's, is likelier than all others."""
        canaries = self.canaries(setting)
        nats = torch.ones(len(canaries), self.options.candidates, dtype=torch.float64)
        nats[:, 0] = 0
        return self._outcome(canaries, nats, [[canary.labels["secret"]] for canary in canaries])

    def canaries(self, setting: Setting) -> list[Planted]:
        """In the order of the corpus; each text holds its secret."""
        planting = setting.text.manifest.get("planted")
        if planting is None:
            raise InapplicableError("no canaries in the corpus")
        return [Planted(**item) for item in planting["texts"]]

    def _check(self, model: Objective) -> None:
        if not model.has_weights:
            raise InapplicableError("gives no likelihoods of single texts")
        given = [NAMES[kind] for kind in NAMES if kind in model.likelihoods]
        if self.options.kind not in model.likelihoods:
            raise InapplicableError(" and ".join(given) + " only" if given else "no likelihood of a text")

    def _rows(self, canaries: list[Planted], setting: Setting) -> tuple[list[Tensor], list[list[str]]]:
        """For each canary: (N, T) ids of its candidates, the planted one first, and their secrets."""
        rows, secrets = [], []
        for i, canary in enumerate(canaries):
            setting.keep_going()
            ids, found = self._candidates(canary, np.random.default_rng([SEED, i]), setting)
            if len(ids[0]) > setting.sequence_length:
                raise DataError(
                    f"a canary has {len(ids[0])} tokens: no row of sequence_length={setting.sequence_length} "
                    "can hold one; raise it"
                )
            rows.append(torch.tensor(ids))
            secrets.append(found)
        return rows, secrets

    def _candidates(
        self, canary: Planted, rng: np.random.Generator, setting: Setting
    ) -> tuple[list[list[int]], list[str]]:
        """Ids as in training, between the EOS before a document and its own."""
        n, planted = self.options.candidates, canary.labels["secret"]
        before, _, after = canary.text.rpartition(planted)
        digits = len(planted.split())
        drawn = rng.choice(10**digits, min(10**digits, DRAWN * n), replace=False).tolist()
        numbers = [int("".join(planted.split()))]
        numbers += [number for number in drawn if number != numbers[0]]
        ids: list[list[int]] = []
        found: list[str] = []
        for start in range(0, len(numbers), n):
            batch = [spell(number, digits) for number in numbers[start : start + n]]
            texts = [before + secret + after for secret in batch]
            encodings = setting.tokenizer.encode_batch(texts, add_special_tokens=False)
            for secret, encoding in zip(batch, encodings, strict=True):
                row = [EOS, *encoding.ids, EOS]
                if not ids or len(row) == len(ids[0]):
                    ids.append(row)
                    found.append(secret)
            if len(ids) >= n:
                return ids[:n], found[:n]
        raise DataError(
            f"only {len(ids)} of {len(numbers)} secrets have as many tokens as the planted one; lower "
            f"task.canaries_{self.options.kind}.candidates={n} or raise corpus.text.digits={digits}"
        )

    @torch.no_grad()
    def _nats(self, model: Objective, rows: list[Tensor], setting: Setting) -> Tensor:
        """(M, N) nats of each canary's candidates.

        Canaries of one length are read together, a candidate of each at a time: a bound draws the same for
        all candidates of a canary, so that its noise does not rank them.
        """
        model.eval()
        kind, samples = cast(Likelihood, self.options.kind), self.options.samples
        nats = torch.empty(len(rows), self.options.candidates, dtype=torch.float64)
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, ids in enumerate(rows):
            by_length[ids.shape[1]].append(i)
        for length, indices in by_length.items():
            together = torch.stack([rows[i] for i in indices], dim=1).to(model.device)  # (N, B, T)
            for candidate, tokens in enumerate(together):
                setting.keep_going()
                generator = torch.Generator().manual_seed(SEED)
                found = model.nll(tokens, kind, samples, generator)  # (B,)
                nats[indices, candidate] = found.double().cpu()
            targets = (length - 1) * (samples / 2 if kind == "bound" else 1)  # that each text is predicted at
            shapes = model.shapes
            setting.meter.add(together[..., 0].numel() * head_flops(shapes.model, shapes.vocab_size, targets))
        if not nats.isfinite().all():
            raise FloatingPointError("the likelihood is not finite; the model diverged")
        return nats

    def _outcome(self, canaries: list[Planted], nats: Tensor, secrets: list[list[str]]) -> Outcome:
        exposures = exposure(nats)
        counts = np.array([canary.copies for canary in canaries])
        chance = chance_exposure(nats.shape[1])
        scores, items = [], {}
        for count in sorted(set(counts.tolist()), reverse=True):
            name, own = f"exposure_{self.options.kind}_at_{count}", exposures[counts == count]
            scores.append(Measured(name, float(own.mean()), chance, len(own), higher_is_better=False))
            items[name] = own
        samples = [
            {
                "canary": canary.text,
                "copies": str(canary.copies),
                "exposure in bits": f"{bits:.2f}",
                "likeliest secret": found[best],
            }
            for canary, bits, found, best in zip(
                canaries, exposures, secrets, nats.argmin(dim=1).tolist(), strict=True
            )
        ]
        return Outcome(scores, items, samples=samples)


def exposure(nats: Tensor) -> NDArray[np.float64]:
    """(M, N) nats of candidates, the planted one first -> (M,) bits; ties count their expectation."""
    own = nats[:, :1]
    better, tied = (nats < own).sum(dim=1).double(), (nats == own).sum(dim=1).double()  # itself included
    log_ranks = (torch.lgamma(better + tied + 1) - torch.lgamma(better + 1)) / tied  # mean of tied ranks
    bits: NDArray[np.float64] = (math.log2(nats.shape[1]) - log_ranks / math.log(2)).numpy()
    return bits.clip(min=0)  # of the last rank: 0, not what rounding leaves of it


def chance_exposure(n: int) -> float:
    """What a secret of random rank among `n` has on average; 1 / ln 2 bits where n is large."""
    return math.log2(n) - math.lgamma(n + 1) / math.log(2) / n
