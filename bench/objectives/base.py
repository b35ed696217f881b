"""What an objective is: it corrupts a batch, computes a loss, exposes features. batches -> loss.

Corruption runs in the data path, on the whole step's rows and with that step's own generator, so it is
the same on any device and for any number of ranks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from omegaconf import MISSING
from pytorch_lightning import LightningModule
from torch import Tensor

from bench.config.schema import Config, Model, Optim
from bench.data.batches import Batch
from bench.data.tokenizer import PAD
from bench.errors import ConfigError, DivergedError, InapplicableError
from bench.models.flops import StepCost
from bench.models.heads import Head, PredictionHead
from bench.models.pooling import POOLINGS, pool
from bench.models.transformer import Transformer
from bench.objectives import optim
from bench.objectives.precision import FP16
from bench.objectives.sampling import Sampling, by_length

Modality = Literal["text", "pairs", "none"]
Likelihood = Literal["exact", "bound", "pseudo"]
Attention = Literal["own", "causal", "bidirectional"]
StockClass = Literal[
    "ModernBertModel",
    "ModernBertDecoderModel",
    "ModernBertForMaskedLM",
    "ModernBertDecoderForCausalLM",
    "ModernBertForTokenClassification",
]


@dataclass(frozen=True)
class Loss:
    """A sum over targets and their number; divided once, after reduction over ranks.

    A loss of K terms has (K,) sums, already weighted, and (K,) counts: each divided on its own, then added.
    """

    sum: Tensor
    count: int | Tensor


@dataclass(frozen=True)
class TextNLL:
    """Of texts as a model reads them, whatever its tokens: nats, and the bytes that they are of."""

    nats: float
    n_bytes: int


@dataclass(frozen=True)
class Core:
    """The weights that text objectives share when they train together, or that a checkpoint brings."""

    backbone: Transformer  # or what is called as one
    head: Head


@dataclass(frozen=True)
class Shapes:
    """All that sizes a model and its batches."""

    model: Model
    vocab_size: int
    sequence_length: int
    caption_length: int
    image_size: int

    @staticmethod
    def of(config: Config, *, vocab_size: int, image_size: int) -> "Shapes":
        """Those of a run, whose data decide the vocabulary and the images."""
        return Shapes(config.model, vocab_size, config.sequence_length, config.caption_length, image_size)


@dataclass(frozen=True)
class ObjectiveOptions:
    """What every strategy declares."""

    modality: str = MISSING  # text | pairs | none: the data that it trains on
    attention: str = MISSING  # causal | bidirectional, wherever features are computed
    pooling: str = MISSING  # mean | last | first: hidden states to one feature vector

    def __post_init__(self) -> None:
        if self.attention not in ("causal", "bidirectional"):
            raise ConfigError(f"strategy.attention={self.attention!r}: choose causal or bidirectional")
        if self.pooling not in POOLINGS:
            raise ConfigError(f"strategy.pooling={self.pooling!r}: choose one of {', '.join(POOLINGS)}")


class Objective(LightningModule):
    """Base of all strategies.

    A subclass sets `modality` and `Options`, and implements `corrupt`, `loss` and `step_cost`.
    """

    modality: ClassVar[Modality]
    Options: ClassVar[type[Any]]
    likelihoods: frozenset[Likelihood] = frozenset()  # what `token_nats` can give
    has_idle_weights = False  # some steps train only a part of the weights
    couples_rows = False  # its loss holds the rows of a step against each other
    has_weights = True  # False: they lie elsewhere; texts go to `text_nll`, and there are no features
    mask_shift: int = 0  # a hidden token is predicted this many positions to its left
    writes: str | None = None  # how it continues a text; None: it does not
    trunk_share: float | None = None  # of the run, that runs which differ in `shares` alone may share

    def __init__(
        self, options: ObjectiveOptions, *, shapes: Shapes, optimizer: Optim, core: Core | None = None
    ) -> None:
        super().__init__()
        if options.modality != self.modality:
            raise ConfigError(f"strategy.modality={options.modality!r}: it needs {self.modality!r}")
        self.options = options
        self.shapes = shapes
        self.optimizer = optimizer
        n_extra = self.n_extra_tokens(options, shapes)
        if core and n_extra and n_extra > core.backbone.embedding.num_embeddings - shapes.vocab_size:
            raise ConfigError(f"{type(self).__name__} needs {n_extra} ids of its own; use a model of our own")
        self.backbone = core.backbone if core else Transformer(shapes.model, shapes.vocab_size, n_extra)
        self.last_finite: tuple[int, float] | None = None

    # What a strategy defines

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Model inputs and targets from clean rows, on CPU; never writes into `rows`.

        Args:
            rows: text: {"tokens": (B, T)}; pairs: {"images": (B, S, S, 3) uint8, "captions": (B, L)}.
            generator: the only source of randomness.
        """
        raise TypeError(f"{type(self).__name__} is not trained")

    def loss(self, batch: Batch) -> Loss:
        """The summed loss in nats over this rank's targets, and their number."""
        raise TypeError(f"{type(self).__name__} is not trained")

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Rows, tokens and FLOPs of one optimizer step; see `bench.models.flops`."""
        raise TypeError(f"{type(self).__name__} is not trained")

    @classmethod
    def n_extra_tokens(cls, options: Any, shapes: Shapes) -> int:
        """Ids that the strategy needs behind the tokenizer's own, such as sentinels."""
        return 0

    def corrupt_at(self, rows: Batch, generator: torch.Generator, progress: float) -> Batch:
        """`corrupt` at a point of the run, `progress` from 0 to 1; only phases differ by it."""
        return self.corrupt(rows, generator)

    def token_nats(
        self,
        tokens: Tensor,
        kind: Likelihood,
        *,
        samples: int,
        generator: torch.Generator,
        scored: Tensor | None = None,
    ) -> Tensor:
        """Negative log-likelihood of each token that is scored, in nats. No gradient.

        Args:
            tokens: (B, T) ids, padded with PAD on the right; padding changes no other value.
            kind: one of `likelihoods`. Their sum over a text's scored tokens is
                exact: -log p(scored | given), each token given all on its left; a prefix LM reads what is
                before the first scored token in both directions, as it was trained to;
                bound: an estimate of an upper bound of -log p(scored | given), the mean over orders in which
                the scored tokens appear, what is given being shown from the start, on either side of them;
                pseudo: the sum of -log p(token | all others of the text), no likelihood of anything.
            samples: draws per text, for a bound.
            generator: on CPU, for a bound; what is drawn does not depend on how far texts are padded.
            scored: (B, T) bool; None: all of the text. Token 0 is always given. What is not scored is given,
                never hidden, and costs no pass of its own.

        Returns:
            (B, T - 1) nats of tokens 1..T-1; 0 where not scored and at padding.
        """
        raise TypeError(f"{type(self).__name__} has no {kind} likelihood")

    def generate(self, prompts: Tensor, n_new: int, sampling: Sampling, generator: torch.Generator) -> Tensor:
        """Continue each prompt in the strategy's own way; see `bench.objectives.sampling.by_length`.

        Args:
            prompts: (B, P) ids, one or more a row, padded with PAD on the right.
            n_new: N, tokens at most.
            sampling: how tokens are chosen.
            generator: on CPU.

        Returns:
            (B, N) ids: words; EOS where a text ends, PAD behind it.
        """
        return by_length(self.write, prompts, n_new, sampling, generator)

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """As `generate`, for prompts of one length; see `bench.objectives.sampling.Write`."""
        raise InapplicableError("writes no text")

    def text_nll(self, texts: Sequence[str], data_dir: Path) -> TextNLL:
        """Exact, summed over texts, each after its first token; where the weights lie elsewhere.

        Args:
            texts: of two tokens or more, whatever a token is there.
            data_dir: where answers are kept.
        """
        raise TypeError(f"{type(self).__name__} is given tokens, not texts")

    def provenance(self) -> dict[str, Any]:
        """What a record keeps, beside its data, of a model that comes from elsewhere."""
        return {}

    @property
    def stock_class(self) -> StockClass:
        """The class of transformers that the backbone, with the head if it has one, is exported to."""
        return "ModernBertDecoderModel" if self.options.attention == "causal" else "ModernBertModel"

    # What they share

    def nll(self, tokens: Tensor, kind: Likelihood, samples: int, generator: torch.Generator) -> Tensor:
        """Negative log-likelihood of each text after its first token: (B, T) ids -> (B,) nats."""
        return self.token_nats(tokens, kind, samples=samples, generator=generator).sum(dim=1)

    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        """One vector per token: (B, T) ids, padded with PAD on the right -> (B, T, D).

        Values at padding mean nothing. `attention` is the strategy's own, or set by a protocol as a factor.
        """
        return self.backbone(tokens, tokens != PAD, causal=self._is_causal(attention))

    def layer_states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        """As `states`, of the embedding and of each of the L blocks: (L + 1, B, T, D), `states` the last."""
        return self.backbone(tokens, tokens != PAD, causal=self._is_causal(attention), every_layer=True)

    def features(self, tokens: Tensor, attention: Attention = "own", pooling: str = "own") -> Tensor:
        """One vector per text: (B, T) ids, padded with PAD on the right -> (B, D).

        `attention` and `pooling` are the strategy's own, or set by a protocol as factors.
        """
        how = self.options.pooling if pooling == "own" else pooling
        return pool(self.states(tokens, attention), tokens != PAD, how)

    def _is_causal(self, attention: Attention) -> bool:
        return (self.options.attention if attention == "own" else attention) == "causal"

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss over the targets of all ranks, scaled so that DDP's mean of gradients is exact."""
        loss = self.loss(batch)
        mean, counts, world = mean_over_ranks(loss)
        if not math.isfinite(value := float(mean)):  # read once: a GPU is waited for
            raise DivergedError(*(self.last_finite or (0, None)))
        self.last_finite = (self.global_step, value)
        return (loss.sum * (world / counts).to(loss.sum)).sum()

    def configure_optimizers(self) -> Any:
        """AdamW and its schedule over the trainer's `max_steps`."""
        fused = self.trainer.precision != FP16  # which scales gradients
        optimizer = optim.adamw(self, self.optimizer, self.shapes.model.d_model, fused=fused)
        scheduler = optim.schedule(optimizer, self.optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class TextObjective(Objective):
    """Base of strategies that predict tokens: the backbone with ModernBERT's prediction head."""

    modality: ClassVar[Modality] = "text"

    def __init__(
        self, options: ObjectiveOptions, *, shapes: Shapes, optimizer: Optim, core: Core | None = None
    ) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer, core=core)
        self.head: Head = core.head if core else PredictionHead(self.backbone.embedding)

    @property
    def stock_class(self) -> StockClass:
        """A language model that reads as the strategy's features do."""
        is_causal = self.options.attention == "causal"
        return "ModernBertDecoderForCausalLM" if is_causal else "ModernBertForMaskedLM"


def mean_over_ranks(loss: Loss) -> tuple[Tensor, Tensor, int]:
    """The loss over all ranks, in float64 and without gradient.

    Returns:
        The mean over targets, terms added: a scalar; the counts, of the loss' own shape; the number of ranks.
    """
    sums = loss.sum.detach().double()
    total = torch.stack([sums, torch.as_tensor(loss.count).to(sums).expand_as(sums)])
    world = 1
    if dist.is_available() and dist.is_initialized():
        world = dist.get_world_size()
        dist.all_reduce(total)
    return (total[0] / total[1]).sum(), total[1], world
