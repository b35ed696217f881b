"""The zero-shot protocol: what a strategy says the likelihood of a text's end is, given its beginning.

An exact likelihood, a bound and a pseudo-likelihood are three different quantities; a task asks for one of
them, its metrics bear the kind in their name, and they are never compared with each other. Every text is
shown as a document of its own, between the EOS that ends the one before it and its own, as in pretraining;
both are given and never scored, as [CLS] and [SEP] are by Salazar et al. (2020, arXiv:1910.14659).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import MISSING
from torch import Tensor

from bench.data.tokenizer import EOS, PAD
from bench.errors import ConfigError, InapplicableError
from bench.models.flops import head_flops
from bench.objectives.base import Likelihood, Objective
from bench.tasks.base import Setting

SEED = 0  # of a bound's draws: every strategy and every seed of it is measured by the same ones
NAMES = {"exact": "an exact likelihood", "bound": "a bound", "pseudo": "a pseudo-likelihood"}
NORMALISATIONS = ("none", "tokens", "bytes")
DECIMALS = 5  # of nats: float32 tells no more, and what it cannot tell apart is a tie


@dataclass(frozen=True)
class LikelihoodOptions:
    """What every task by likelihood declares."""

    kind: str = MISSING  # exact | bound | pseudo
    length_normalisation: str = MISSING  # none | tokens | bytes: what nats are divided by
    samples: int = MISSING  # draws per text, for a bound
    batch_size: int = MISSING  # texts at a time

    def __post_init__(self) -> None:
        choices = {"kind": tuple(NAMES), "length_normalisation": NORMALISATIONS}
        for key, known in choices.items():
            if getattr(self, key) not in known:
                raise ConfigError(f"task.*.{key}={getattr(self, key)!r}: choose one of {', '.join(known)}")
        require_positive(self, "samples", "batch_size")


@dataclass(frozen=True)
class Continuation:
    """Ids of a text of which the first are given."""

    given: tuple[int, ...]
    scored: tuple[int, ...]
    n_bytes: int  # UTF-8 bytes of what is scored

    @property
    def ids(self) -> list[int]:
        """As a model reads it."""
        return [EOS, *self.given, *self.scored, EOS]

    def __len__(self) -> int:
        return len(self.given) + len(self.scored) + 2


def require_positive(options: Any, *keys: str) -> None:
    """Check that the options of these keys are 1 or more.

    Raises:
        ConfigError: names the first that is not.
    """
    for key in keys:
        if getattr(options, key) < 1:
            raise ConfigError(f"task.*.{key}={getattr(options, key)}: use 1 or more")


def require_kind(model: Objective, kind: str) -> Likelihood:
    """The kind of likelihood, if the strategy has it.

    Raises:
        InapplicableError: says what it has, if anything.
    """
    given = model.likelihoods if model.has_weights else frozenset({"exact"})
    if kind not in given:
        names = [NAMES[name] for name in NAMES if name in given]
        raise InapplicableError(" and ".join(names) + " only" if names else "no likelihood of a text")
    return cast(Likelihood, kind)


def by_length(texts: Sequence[Continuation]) -> list[int]:
    """An order in which neighbours are of similar length, so that little padding is read."""
    return sorted(range(len(texts)), key=lambda i: len(texts[i]))


@torch.no_grad()
def continuation_nats(
    model: Objective,
    texts: Sequence[Continuation],
    options: LikelihoodOptions,
    setting: Setting,
    *,
    order: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """Nats of what is scored in each text, given the rest of it; see `Objective.token_nats`.

    Args:
        model: with weights and likelihoods.
        texts: no longer than the model reads.
        options: kind, samples and batch size.
        setting: whose meter counts the passes.
        order: in which texts are read; under one order, texts of equal lengths have equal draws. None: by
            length.

    Returns:
        (N,) float64, in the order of `texts`.

    Raises:
        InapplicableError: the strategy has no such likelihood, or takes whole texts only.
        FloatingPointError: a likelihood is not finite.
    """
    kind = require_kind(model, options.kind)
    if not model.has_weights:
        raise InapplicableError("a model elsewhere; whole texts only")
    model.eval()
    order = by_length(texts) if order is None else order
    generator = torch.Generator().manual_seed(SEED)
    nats = np.zeros(len(texts))
    for start in range(0, len(order), options.batch_size):
        setting.keep_going()
        chosen = list(order[start : start + options.batch_size])
        tokens, scored = (part.to(model.device) for part in _padded([texts[i] for i in chosen]))
        found = model.token_nats(
            tokens, kind, samples=options.samples, generator=generator, scored=scored
        )  # (B, T - 1)
        nats[chosen] = found.double().sum(dim=1).cpu().numpy()
    setting.meter.add(prediction_flops(model, [len(text.scored) for text in texts], kind, options.samples))
    if not np.isfinite(nats).all():
        raise FloatingPointError("the likelihood is not finite; the model diverged")
    return nats


def normalised(
    nats: NDArray[np.float64], texts: Sequence[Continuation], length_normalisation: str
) -> NDArray[np.float64]:
    """(N,) nats, by the tokens or bytes that they are of, or as they are; to DECIMALS."""
    lengths = {
        "none": [1] * len(texts),
        "tokens": [len(text.scored) for text in texts],
        "bytes": [text.n_bytes for text in texts],
    }[length_normalisation]
    return (nats / np.maximum(lengths, 1)).round(DECIMALS)


def _padded(texts: Sequence[Continuation]) -> tuple[Tensor, Tensor]:
    """Ids (B, T), padded on the right, and which are scored (B, T) bool."""
    width = max(map(len, texts))
    tokens = torch.tensor([text.ids + [PAD] * (width - len(text)) for text in texts])
    first = torch.tensor([1 + len(text.given) for text in texts])[:, None]
    past = first + torch.tensor([len(text.scored) for text in texts])[:, None]
    positions = torch.arange(width)
    return tokens, (positions >= first) & (positions < past)


def prediction_flops(model: Objective, lengths: Sequence[int], kind: Likelihood, samples: int) -> float:
    """Of the head, which the meter does not see, on texts with so many scored tokens.

    A bound predicts (L + 1) / 2 of L tokens a draw.
    """
    targets = samples * sum((n + 1) / 2 for n in lengths) if kind == "bound" else sum(lengths)
    return head_flops(model.shapes.model, model.backbone.embedding.num_embeddings, targets)
