"""Frozen features of a model, and the linear probe that is fitted to them; equal for every strategy.

Shapes: N items, T tokens, D features, C classes or candidates.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from bench.data.tokenizer import EOS, PAD
from bench.models.heads import pool
from bench.objectives.base import Attention, Objective

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

EVALUATION_BATCH = 256
CHARS_PER_TOKEN = 32
INVERSE_PENALTY = 0.1  # of the probe's logistic regression, where no validation items choose it
# Inverse penalty of `beats_tag_frequencies`: stronger, since a probe of few words overfits its likelihood.
INVERSE_PENALTY_OF_CHECK = 0.01
MAX_ITERATIONS = 500


class FeatureCache:
    """Frozen features of a checkpoint, kept in memory while the model lives. Not for a model under training.

    Only whole requests are cached. Part of a cached tensor would have been computed in other batches and
    differ in the last digits, so a score would depend on which tasks ran before.
    """

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Tensor]] = WeakKeyDictionary()

    def get(
        self, model: nn.Module, tokens: Tensor, how: tuple[str, ...], compute: Callable[[], Tensor]
    ) -> Tensor:
        """Return the result of `compute` for ids (N, T), which runs at the first request only.

        `how` holds everything else that determines the result. A model with changed weights is another
        model. Do not write into the result.
        """
        ids = hashlib.sha256(tokens.cpu().contiguous().numpy().tobytes()).hexdigest()
        # Sums of the weights, since torch's own version counter misses what fused optimizers do.
        weights = tuple(float(parameter.detach().sum()) for parameter in model.parameters())
        kept = self._kept.setdefault(model, {})
        key = (ids, tuple(tokens.shape), weights, how)
        if key not in kept:
            kept[key] = compute()
        return kept[key]


def as_attention(name: str) -> Attention:
    """Return a task's option `attention`, whose bounds are checked with the options."""
    return cast(Attention, name)


def encode(texts: Sequence[str | tuple[str, str]], tokenizer: Tokenizer, length: int) -> Tensor:
    """Encode texts, or pairs of texts, as ids (N, T): cut to `length`, padded on the right.

    Each text is closed by EOS. A pair that is too long loses the end of its longer text.
    """
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    first, second = (
        _ids([text or "" for text in side], tokenizer, length) for side in zip(*pairs, strict=True)
    )
    rows = []
    for (_, other), left, right in zip(pairs, first, second, strict=True):
        if other is None:
            rows.append([*left[: length - 1], EOS])
        else:
            room = length - 2  # without both EOS
            n_right = min(len(right), max(room - len(left), room // 2))
            rows.append([*left[: room - n_right], EOS, *right[:n_right], EOS])
    return padded(rows)


def _ids(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> list[list[int]]:
    cut = [text[: CHARS_PER_TOKEN * length] for text in texts]  # encoding all of a long text would be slow
    return [found.ids for found in tokenizer.encode_batch(cut, add_special_tokens=False)]


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Stack rows of ids as (N, T), padded on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])


def trimmed(tokens: Tensor) -> Tensor:
    """Drop the columns of padded ids (B, T) that hold only padding."""
    return tokens[:, : int((tokens != PAD).sum(dim=1).max())]


def text_features(
    model: Objective,
    tokens: Tensor,
    attention: Attention = "own",
    pooling: str = "own",
    *,
    cache: FeatureCache | None = None,
) -> Tensor:
    """Return frozen features (N, D) of padded ids (N, T), computed once if there is a `cache`."""
    how = ("text", attention, pooling)
    return _features(model, tokens, lambda batch: model.features(batch, attention, pooling), how, cache)


def layer_features(
    model: Objective,
    tokens: Tensor,
    attention: Attention = "own",
    pooling: str = "own",
    *,
    cache: FeatureCache | None = None,
) -> Tensor:
    """As `text_features`, for the embedding and each of the L blocks: (N, L + 1, D)."""

    def of_batch(batch: Tensor) -> Tensor:
        how = model.options.pooling if pooling == "own" else pooling
        layers = [pool(states, batch != PAD, how) for states in model.layer_states(batch, attention)]
        return torch.stack(layers, dim=1)

    return _features(model, tokens, of_batch, ("layers", attention, pooling), cache)


def _features(
    model: Objective,
    tokens: Tensor,
    function: Callable[[Tensor], Tensor],
    how: tuple[str, ...],
    cache: FeatureCache | None,
) -> Tensor:
    def compute() -> Tensor:
        return _by_length(model, tokens, function)

    return compute() if cache is None else cache.get(model, tokens, how, compute)


@torch.no_grad()
def _by_length(model: Objective, tokens: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `function` to padded ids (N, T) in batches of similar length -> (N, ...)."""
    model.eval()
    order = (tokens != PAD).sum(dim=1).argsort(stable=True)
    parts = [function(trimmed(tokens[index]).to(model.device)) for index in order.split(EVALUATION_BATCH)]
    return torch.cat(parts)[order.argsort().to(model.device)]


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], inputs: Tensor, device: torch.device) -> Tensor:
    """Apply `function` to inputs (N, ...) batch by batch -> (N, D)."""
    return torch.cat([function(batch.to(device)) for batch in inputs.split(EVALUATION_BATCH)])


def hits(scores: Tensor, targets: Tensor, k: int = 1) -> NDArray[np.float64]:
    """Return whether the targets (N,) are among the k best of scores (N, C); ties count their expectation.

    Values range from 0 to 1. The mean of a constant model is exactly k / C; for k = 1 the mean is accuracy.
    """
    require_numbers(scores)
    scores = scores.double()
    own = scores.gather(1, targets[:, None])
    better = (scores > own).sum(dim=1)
    tied = (scores == own).sum(dim=1)  # the target included
    found: NDArray[np.float64] = ((k - better).clamp(min=0).double() / tied).clamp(max=1).cpu().numpy()
    return found


def require_numbers(scores: Tensor) -> None:
    """Raise FloatingPointError if a score is NaN."""
    if scores.isnan().any():
        raise FloatingPointError("a score is NaN; the model or the fit diverged")


@dataclass(frozen=True)
class Choice:
    """What validation items chose for a probe: the layer, 0 for the embedding, and the inverse penalty."""

    layer: int
    inverse_penalty: float


def choose(
    train: Tensor,
    labels: Tensor,
    validation: Tensor,
    score: Callable[[Tensor], float],
    inverse_penalties: Sequence[float],
) -> Choice:
    """Choose a probe's layer by validation items, and then its penalty; of equal ones the first.

    The most useful features may lie below the layers that serve a strategy's own predictions.

    Args:
        train: (N, L + 1, D) features of the embedding and of each layer.
        labels: (N,) classes.
        validation: (V, L + 1, D).
        score: the score of a probe's decision scores (V, C); higher is better.
        inverse_penalties: the grid; the layer is chosen at the middle one.
    """
    middle = inverse_penalties[len(inverse_penalties) // 2]
    by_layer = [score(probe(train[:, i], labels, validation[:, i], middle)) for i in range(train.shape[1])]
    layer = int(np.argmax(by_layer))
    by_penalty = [
        by_layer[layer]
        if penalty == middle
        else score(probe(train[:, layer], labels, validation[:, layer], penalty))
        for penalty in inverse_penalties
    ]
    return Choice(layer, inverse_penalties[int(np.argmax(by_penalty))])


def probe(
    train: Tensor, train_labels: Tensor, test: Tensor, inverse_penalty: float = INVERSE_PENALTY
) -> Tensor:
    """Fit a logistic regression to standardised features (N, D) and classes (N,): the frozen probe.

    Returns the decision scores (M, C) of test features (M, D) for the C classes that occur in training, in
    order. They are rounded, so that classes which the features cannot tell apart are tied.
    """
    if len(train_labels.unique()) == 1:
        return torch.zeros(len(test), 1, dtype=torch.float64)
    classifier, (features,) = _logistic(inverse_penalty, train, train_labels, test)
    decision = np.asarray(classifier.decision_function(features)).round(decimals=9)
    return torch.from_numpy(np.stack([-decision, decision], axis=1) if decision.ndim == 1 else decision)


def beats_tag_frequencies(states: Tensor, labels: Tensor, held_out_share: float) -> bool:
    """Check that word states (K, D) carry tag information, before a frozen probe of tagging is trusted.

    Return whether a logistic regression gives the last words, `held_out_share` of them, a higher likelihood
    than tag frequencies do. Where no tag has a majority, a probe of uninformative states picks among the
    frequent tags at random, and so scores below a constant predictor by accuracy and above it by the F1 of
    spans. Tagging therefore replaces a probe that fails this check by the constant predictor.
    """
    n = len(labels) - round(held_out_share * len(labels))
    seen, counts = np.unique(labels[:n].numpy(), return_counts=True)
    asked = np.isin(labels[n:].numpy(), seen)  # neither predictor knows other tags
    if len(seen) < 2 or not asked.any():
        return False
    classifier, (held_out,) = _logistic(INVERSE_PENALTY_OF_CHECK, states[:n], labels[:n], states[n:])
    place = np.searchsorted(seen, labels[n:].numpy()[asked])
    found = classifier.predict_log_proba(held_out[asked])[np.arange(len(place)), place]
    return bool(found.mean() > np.log(counts / n)[place].mean())


def _logistic(
    inverse_penalty: float, train: Tensor, labels: Tensor, *others: Tensor
) -> tuple["LogisticRegression", list[NDArray[np.float64]]]:
    """Fit a classifier to standardised features; return it and the other features, standardised alike."""
    # Late: scikit-learn imports pandas, and a run without a probe need not wait for them.
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.cpu().double().numpy())
    fitted, *rest = (scaler.transform(part.cpu().double().numpy()) for part in (train, *others))
    return LogisticRegression(C=inverse_penalty, max_iter=MAX_ITERATIONS).fit(fitted, labels.numpy()), rest
