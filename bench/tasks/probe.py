"""The protocols of measurement: frozen probe, fine-tuning (`bench.tasks.finetune`), fitted vision tower.

Nothing here knows which strategy it measures. Shapes: N items, D features, C classes or candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer
from torch import Tensor, nn

from bench.data.tokenizer import EOS, PAD
from bench.errors import ConfigError
from bench.models.pooling import POOLINGS, pool
from bench.models.transformer import initialise
from bench.models.vision import VisionTower, to_float
from bench.objectives.base import Attention, Objective
from bench.objectives.contrastive import info_nce
from bench.tasks.descent import descend, scaled
from bench.tasks.feature_cache import FeatureCache
from bench.tasks.finetune import Tuned as Tuned
from bench.tasks.finetune import Tuning as Tuning
from bench.tasks.finetune import fine_tune as fine_tune

EVALUATION_BATCH = 256
CHARS_PER_TOKEN = 32
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Fit:
    """How a vision tower is fitted; the same for every strategy, `scratch` included."""

    steps: int
    batch_size: int
    lr_at_64: float  # at width 64; other widths in inverse proportion, as in pretraining


def as_attention(name: str) -> Attention:
    """A task's option `attention`: own (the strategy's), causal or bidirectional.

    Raises:
        ConfigError: another name.
    """
    for known in get_args(Attention):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"task.*.attention={name!r}: choose {', '.join(get_args(Attention))}")


def check_fit(options: Any) -> None:
    """Check a task's options of a fit by similarity: `steps`, `batch_size`, `lr_at_64`, `temperature`.

    Raises:
        ConfigError: names the first that is not above 0, or a rate below it.
    """
    for key in ("steps", "batch_size", "temperature"):
        if not getattr(options, key) > 0:
            raise ConfigError(f"task.*.{key}={getattr(options, key)}: use a number above 0")
    if options.lr_at_64 < 0:
        raise ConfigError(f"task.*.lr_at_64={options.lr_at_64}: use 0 or more")


def check_pooling(name: str) -> None:
    """A task's option `pooling`: own (the strategy's), mean, last or first.

    Raises:
        ConfigError: another name.
    """
    if name not in ("own", *POOLINGS):
        raise ConfigError(f"task.*.pooling={name!r}: choose own, {', '.join(POOLINGS)}")


def encode(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> Tensor:
    """Texts to ids (N, T): cut to `length` with a closing EOS, padded on the right to the longest."""
    cut = [text[: CHARS_PER_TOKEN * length] for text in texts]  # far more than can be kept; the rest is slow
    rows = [[*e.ids[: length - 1], EOS] for e in tokenizer.encode_batch(cut, add_special_tokens=False)]
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def text_features(
    model: Objective,
    tokens: Tensor,
    attention: Attention = "own",
    pooling: str = "own",
    *,
    cache: FeatureCache | None = None,
) -> Tensor:
    """Frozen features (N, D) of padded ids (N, T), in batches of similar length.

    With a `cache` they are computed once; not for a model under training.
    """

    def of_batch(batch: Tensor) -> Tensor:
        return model.features(batch, attention, pooling)

    how = ("text", attention, pooling)
    return _kept(model, tokens, of_batch, how, cache)


def layer_features(
    model: Objective,
    tokens: Tensor,
    attention: Attention = "own",
    pooling: str = "own",
    *,
    cache: FeatureCache | None = None,
) -> Tensor:
    """As `text_features`, of the embedding and of each of the L blocks: (N, L + 1, D)."""

    def of_batch(batch: Tensor) -> Tensor:
        how = model.options.pooling if pooling == "own" else pooling
        layers = [pool(states, batch != PAD, how) for states in model.layer_states(batch, attention)]
        return torch.stack(layers, dim=1)

    how = ("layers", attention, pooling)
    return _kept(model, tokens, of_batch, how, cache)


def _kept(
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
    """`function` over padded ids (N, T), in batches of similar length -> (N, ...)."""
    model.eval()
    lengths = (tokens != PAD).sum(dim=1)
    order = lengths.argsort(stable=True)
    parts = [
        function(tokens[index, : int(lengths[index].max())].to(model.device))
        for index in order.split(EVALUATION_BATCH)
    ]
    return torch.cat(parts)[order.argsort().to(model.device)]


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], inputs: Tensor, device: torch.device) -> Tensor:
    """`function` over (N, ...) inputs, a batch at a time -> (N, D)."""
    return torch.cat([function(batch.to(device)) for batch in inputs.split(EVALUATION_BATCH)])


def hits(scores: Tensor, targets: Tensor, k: int = 1) -> NDArray[np.float64]:
    """Is each item's target among the k best candidates? Ties count their expectation.

    The mean of a constant model is exactly k / C; with k = 1 the mean is accuracy.

    Args:
        scores: (N, C).
        targets: (N,) column of the right candidate.

    Returns:
        (N,) from 0 to 1.

    Raises:
        FloatingPointError: a score is not a number; no rank can be given to it.
    """
    if scores.isnan().any():
        raise FloatingPointError("scores are not numbers; the model or the fit diverged")
    scores = scores.double()
    own = scores.gather(1, targets[:, None])
    better = (scores > own).sum(dim=1)
    tied = (scores == own).sum(dim=1)  # itself included
    found: NDArray[np.float64] = ((k - better).clamp(min=0).double() / tied).clamp(max=1).cpu().numpy()
    return found


def probe(train: Tensor, train_labels: Tensor, test: Tensor) -> Tensor:
    """Frozen probe: logistic regression on standardised features.

    Args:
        train: (N, D) features; train_labels: (N,) classes; test: (M, D) features.

    Returns:
        (M, C) decision scores, C the classes that occur in training, in order. Rounded, so that classes that
        the features cannot tell apart are tied.
    """
    if len(train_labels.unique()) == 1:
        return torch.zeros(len(test), 1, dtype=torch.float64)
    scaler = StandardScaler().fit(train.cpu().double().numpy())
    classifier = LogisticRegression(C=0.1, max_iter=500)
    classifier.fit(scaler.transform(train.cpu().double().numpy()), train_labels.numpy())
    return torch.from_numpy(_class_scores(classifier, scaler.transform(test.cpu().double().numpy())))


def _class_scores(classifier: LogisticRegression, features: NDArray[np.float64]) -> NDArray[np.float64]:
    decision = np.asarray(classifier.decision_function(features)).round(decimals=9)
    return np.stack([-decision, decision], axis=1) if decision.ndim == 1 else decision


def fit_vision(
    texts: Tensor,
    images: Tensor,
    model: Objective,
    *,
    fit: Fit,
    temperature: float,
    generator: torch.Generator,
    keep_going: Callable[[], None],
) -> tuple[nn.Module, nn.Module]:
    """A new vision tower fitted to frozen text features (LiT, arXiv:2111.07991, with the sides swapped).

    Args:
        texts: (N, D) frozen features, standardised; images: (N, S, S, 3) uint8.

    Returns:
        The image embedder (B, S, S, 3) -> (B, D) and the text embedder (B, D) -> (B, D), unit rows.
    """
    size, device = model.shapes, model.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        project = nn.Linear(size.model.d_model, size.model.d_model, bias=False)
        initialise(project, n_layers=1)
        tower = VisionTower(size.model, size.image_size)
    image_side = nn.Sequential(_ToFloat(), tower, _Unit()).to(device)
    text_side = nn.Sequential(project, _Unit()).to(device)
    scale = torch.tensor(1 / temperature, device=device)

    def loss(index: Tensor) -> Tensor:
        rows = info_nce(image_side(images[index].to(device)), text_side(texts[index.to(device)]), scale)
        return rows / len(index)

    for _ in descend(
        loss,
        [*image_side.parameters(), *text_side.parameters()],
        n_items=len(images),
        steps=fit.steps,
        batch_size=fit.batch_size,
        lr_peak=scaled(fit.lr_at_64, size.model.d_model),
        generator=generator,
        keep_going=keep_going,
    ):
        pass
    return image_side.eval(), text_side.eval()


def trimmed(tokens: Tensor) -> Tensor:
    """Padded ids (B, T) without the columns that hold only padding."""
    return tokens[:, : int((tokens != PAD).sum(dim=1).max())]


class _ToFloat(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return to_float(images)


class _Unit(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1)
