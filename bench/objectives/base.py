"""Base classes of pretraining objectives; `Objective` says how to write one. batches -> loss, features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from torch import Tensor
from typing_extensions import override

from bench.config.schema import Config, Model, Optim
from bench.data.batches import Batch
from bench.data.tokenizer import PAD
from bench.errors import ConfigError, DivergedError, InapplicableError
from bench.models.flops import StepCost, blocks_flops, head_flops, rows_per_step
from bench.models.heads import Head, PredictionHead, pool
from bench.models.transformer import Transformer
from bench.objectives import optim
from bench.objectives.options import ObjectiveOptions as ObjectiveOptions
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
    """A sum over targets in nats and their number; divided once, after reduction over ranks.

    A loss of K terms has (K,) sums, already weighted, and (K,) counts: each sum is divided by its own count,
    then they are added.
    """

    sum: Tensor
    count: int | Tensor


@dataclass(frozen=True)
class TextNLL:
    """Negative log-likelihood of texts, and the bytes that were scored; independent of the tokenizer."""

    nll_nats: float
    n_bytes: int


@dataclass(frozen=True)
class Core:
    """Weights that text objectives share when they are trained together, or that a checkpoint provides."""

    backbone: Transformer  # or an adapter with the same interface
    head: Head


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model and of its batches."""

    model: Model
    vocab_size: int
    sequence_length: int
    caption_length: int
    image_size: int

    @staticmethod
    def of(config: Config, *, vocab_size: int, image_size: int) -> "Shapes":
        """Return the sizes of a run; its data determine the vocabulary and the image size."""
        return Shapes(config.model, vocab_size, config.sequence_length, config.caption_length, image_size)


class Objective(LightningModule):
    """Base class of all strategies: one file in `bench/objectives/` and one YAML in `conf/strategy/`.

    A subclass of `Objective`, or of `TextObjective` if it predicts tokens, sets `modality` and `Options` (a
    frozen dataclass whose values the YAML gives) and implements three methods:

    - `corrupt(rows, generator)` turns clean rows into model inputs and targets. A batch is a dictionary of
      tensors whose first dimension is the rows: text has "tokens" (B, T), ids without padding; pairs have
      "images" (B, S, S, 3) uint8 and "captions" (B, L), padded with PAD on the right. It runs on the CPU, on
      all rows of a step, before they are divided among ranks, and draws from `generator` only, so that every
      device and every number of ranks trains on the same batch.
    - `loss(batch)` returns a `Loss`: the sum over the targets of this rank, in nats, and their number. Do
      not divide: ranks may hold different numbers of targets, so the mean is taken once, over all of them.
    - `step_cost(tokens_per_step)` returns a `StepCost`: rows, tokens, predicted tokens and FLOPs of one
      optimizer step. Budgets of compute are turned into steps by it.

    For example, an objective that predicts every token from those on its left:

        class NextToken(TextObjective):
            Options = ObjectiveOptions
            def corrupt(self, rows, generator): return rows
            def loss(self, batch):
                states, targets = self.backbone(batch["tokens"], causal=True), batch["tokens"][:, 1:]
                return Loss(self.head.summed_nll(states[:, :-1], targets), targets.numel())
            def step_cost(self, tokens_per_step):
                return self.text_step_cost(tokens_per_step, self.shapes.sequence_length - 1)

    Tasks read `features`: hidden states under the attention of the YAML (`attention`: causal or
    bidirectional), reduced to one vector per text by `pooling` (mean, last or first). A strategy that can
    score or write text also sets `likelihoods` and implements `token_nll`, or sets `writes` and implements
    `write`. `examples/my_strategies/` contains a complete objective outside of
    this package.
    """

    modality: ClassVar[Modality]
    Options: ClassVar[type[Any]]
    likelihoods: frozenset[Likelihood] = frozenset()  # kinds that `token_nll` supports
    has_idle_weights = False  # some steps train only a part of the weights
    couples_rows = False  # the loss compares the rows of a step with each other
    has_weights = True  # False: there is a server with them, which implements `text_nll`, or none at all
    is_trivial = False  # no model at all: tasks answer by their trivial baselines
    run_folder: Path | None = None  # for what a strategy keeps beside its run; set before its tasks
    isolates_documents = False  # `corrupt` keeps the batch key `DOCUMENTS`, and `loss` attends by it
    measures_checkpoint = False  # evaluates a Hugging Face checkpoint as it is, without training
    mask_shift: int = 0  # a masked token is predicted this many tokens to its left
    writes: str | None = None  # how it continues a text; None: it does not
    trunk_share: float | None = None  # share of the run that runs which differ only in `shares` can share

    def __init__(
        self, options: ObjectiveOptions, *, shapes: Shapes, optimizer: Optim, core: Core | None = None
    ) -> None:
        super().__init__()
        if options.modality != self.modality:
            raise ConfigError(
                f"strategy.modality={options.modality!r}: {type(self).__name__} needs {self.modality!r}"
            )
        self.options = options
        self.shapes = shapes
        self.optimizer = optimizer
        n_extra = self.n_extra_tokens(options, shapes)
        if core and n_extra and n_extra > core.backbone.embedding.num_embeddings - shapes.vocab_size:
            raise ConfigError(
                f"model.name: {type(self).__name__} needs {n_extra} extra ids, which a checkpoint does not "
                "have; use a model preset"
            )
        self.backbone = core.backbone if core else Transformer(shapes.model, shapes.vocab_size, n_extra)
        self.last_finite: tuple[int, float] | None = None  # step and loss

    # Implemented by strategies

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Return model inputs and targets of clean rows, on the CPU, without writing into `rows`.

        Args:
            rows: text: {"tokens": (B, T)}; pairs: {"images": (B, S, S, 3) uint8, "captions": (B, L)}.
            generator: the only source of randomness.
        """
        raise TypeError(f"{type(self).__name__} is not trained")

    def loss(self, batch: Batch) -> Loss:
        """Return the summed loss in nats over this rank's targets, and their number."""
        raise TypeError(f"{type(self).__name__} is not trained")

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Return rows, tokens and FLOPs of one optimizer step; see `bench.models.flops`."""
        raise TypeError(f"{type(self).__name__} is not trained")

    @classmethod
    def n_extra_tokens(cls, options: Any, shapes: Shapes) -> int:
        """Return the number of ids that the strategy adds to the tokenizer's, such as sentinels."""
        return 0

    def corrupt_at(self, rows: Batch, generator: torch.Generator, progress: float) -> Batch:
        """Apply `corrupt` at a point of the run, `progress` from 0 to 1; only phases depend on it."""
        return self.corrupt(rows, generator)

    def token_nll(
        self,
        tokens: Tensor,
        kind: Likelihood,
        *,
        samples: int,
        generator: torch.Generator,
        scored: Tensor | None = None,
    ) -> Tensor:
        """Return the negative log-likelihood of each scored token, in nats, without gradient.

        Args:
            tokens: (B, T) ids, padded with PAD on the right; padding does not change other values.
            kind: one of `likelihoods`. The sum over the scored tokens of a text is
                exact: -log p(scored | given), each token given all on its left; a prefix LM reads the text
                before the first scored token in both directions, as in training;
                bound: an estimate of an upper bound of -log p(scored | given): the mean over orders in which
                the scored tokens are generated, with the given ones shown from the start, on either side;
                pseudo: the sum of -log p(token | all other tokens), which is not a likelihood.
            samples: draws per text, for a bound.
            generator: on the CPU, for a bound; the draws do not depend on how far texts are padded.
            scored: (B, T) bool; None: the whole text. Token 0 is always given. Tokens that are not scored are
                given, never masked, and need no forward pass of their own.

        Returns:
            (B, T - 1) nats of tokens 1..T-1; 0 where not scored and at padding.
        """
        raise TypeError(f"{type(self).__name__} has no {kind} likelihood")

    def generate(self, prompts: Tensor, n_new: int, sampling: Sampling, generator: torch.Generator) -> Tensor:
        """Continue each prompt in the strategy's own way; see `bench.objectives.sampling.by_length`.

        Args:
            prompts: (B, P) ids, one or more per row, padded with PAD on the right.
            n_new: N, the most tokens to write.
            sampling: how tokens are chosen.
            generator: on the CPU.

        Returns:
            (B, N) ids of the vocabulary; EOS where a text ends, then PAD.
        """
        return by_length(self.write, prompts, n_new, sampling, generator)

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """Continue prompts of one length; see `bench.objectives.sampling.Write`."""
        raise InapplicableError("writes no text")

    def text_nll(self, texts: Sequence[str], data_dir: Path) -> TextNLL:
        """Return the exact NLL summed over texts, each without its first token, if a server has the weights.

        Args:
            texts: of two or more tokens each, in the server's tokenization.
            data_dir: folder of the cached answers.
        """
        raise TypeError(f"{type(self).__name__} scores tokens, not texts")

    def provenance(self) -> dict[str, Any]:
        """Return what the record keeps about an external model."""
        return {}

    @property
    def stock_class(self) -> StockClass:
        """The class of transformers to which the backbone, with the head if it has one, is exported."""
        return "ModernBertDecoderModel" if self.options.attention == "causal" else "ModernBertModel"

    # Shared by all strategies

    def nll(self, tokens: Tensor, kind: Likelihood, samples: int, generator: torch.Generator) -> Tensor:
        """Return the NLL of each text without its first token: (B, T) ids -> (B,) nats."""
        return self.token_nll(tokens, kind, samples=samples, generator=generator).sum(dim=1)

    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        """Return one vector per token: (B, T) ids, padded with PAD on the right -> (B, T, D).

        Values at padding are undefined. `attention`: the strategy's own, or the one that a protocol sets.
        """
        return self.backbone(tokens, tokens != PAD, causal=self._is_causal(attention))

    def layer_states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        """Return `states` of the embedding and of each of the L blocks: (L + 1, B, T, D)."""
        return self.backbone(tokens, tokens != PAD, causal=self._is_causal(attention), every_layer=True)

    def features(self, tokens: Tensor, attention: Attention = "own", pooling: str = "own") -> Tensor:
        """Return one vector per text: (B, T) ids, padded with PAD on the right -> (B, D).

        `attention` and `pooling`: the strategy's own, or those that a protocol sets.
        """
        how = self.options.pooling if pooling == "own" else pooling
        return pool(self.states(tokens, attention), tokens != PAD, how)

    def _is_causal(self, attention: Attention) -> bool:
        return (self.options.attention if attention == "own" else attention) == "causal"

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss over the targets of all ranks, scaled so that DDP's mean gradient is exact.

        A step whose rows have no target at all has the loss 0 and no gradient.
        """
        loss = self.loss(batch)
        mean, counts, world = mean_over_ranks(loss)
        if not math.isfinite(value := float(mean)):  # converted once: it synchronises with the GPU
            raise DivergedError(*(self.last_finite or (0, None)))
        self.last_finite = (self.global_step, value)
        return (loss.sum * (world / counts.clamp(min=1)).to(loss.sum)).sum()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the last finite loss, which the record of a divergence names after a resumption, too."""
        checkpoint["last_finite"] = self.last_finite

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the last finite loss; checkpoints of before have none."""
        self.last_finite = checkpoint.get("last_finite")

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule over the trainer's `max_steps`."""
        fused = self.trainer.precision != optim.FP16  # fp16 scales gradients
        optimizer = optim.optimizer_of(self, self.optimizer, self.shapes.model.d_model, fused=fused)
        scheduler = optim.schedule(optimizer, self.optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class TextObjective(Objective):
    """Base class of strategies that predict tokens: the backbone with ModernBERT's prediction head."""

    modality: ClassVar[Modality] = "text"

    def __init__(
        self, options: ObjectiveOptions, *, shapes: Shapes, optimizer: Optim, core: Core | None = None
    ) -> None:
        super().__init__(options, shapes=shapes, optimizer=optimizer, core=core)
        self.head: Head = core.head if core else PredictionHead(self.backbone.embedding)

    @property
    @override
    def stock_class(self) -> StockClass:
        is_causal = self.options.attention == "causal"
        return "ModernBertDecoderForCausalLM" if is_causal else "ModernBertForMaskedLM"

    def text_step_cost(
        self, tokens_per_step: int, n_targets: float, *, at_targets_only: bool = False
    ) -> StepCost:
        """Return the cost of a step of one stack that reads whole rows and predicts `n_targets` tokens each.

        `at_targets_only`: the backbone returns states of the targets only (`at` of `Blocks.forward`).
        """
        model, length = self.shapes.model, self.shapes.sequence_length
        blocks = blocks_flops(model, length, n_targets if at_targets_only else None)
        forward = blocks + head_flops(model, self.backbone.embedding.num_embeddings, n_targets)
        return StepCost.of_row(rows_per_step(tokens_per_step, length), length, n_targets, forward)


def mean_over_ranks(loss: Loss) -> tuple[Tensor, Tensor, int]:
    """Average a loss over all ranks, in float64 and without gradient.

    Returns:
        The mean over targets, 0 for a term without any, summed over terms: a scalar; the counts, shaped as
        the loss; the ranks.
    """
    sums = loss.sum.detach().double()
    total = torch.stack([sums, torch.as_tensor(loss.count).to(sums).expand_as(sums)])
    world = 1
    if dist.is_available() and dist.is_initialized():
        world = dist.get_world_size()
        dist.all_reduce(total)
    return (total[0] / total[1].clamp(min=1)).sum(), total[1], world
