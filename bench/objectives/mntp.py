"""Masked next-token prediction (LLM2Vec, arXiv:2404.05961, sec. 2.2; GPT-BERT, arXiv:2410.24159, sec. 3.1).

A hidden token is predicted from the position to its left, seen from both sides: the mask of an MLM, the shift
of a CLM, so that one head serves both.
"""

from dataclasses import dataclass

import torch
from omegaconf import MISSING
from torch import Tensor

from bench.data.batches import Batch
from bench.data.tokenizer import MASK
from bench.errors import ConfigError
from bench.models.flops import StepCost, blocks_flops, head_flops, rows_per_step
from bench.objectives.base import Likelihood, Loss, ObjectiveOptions, TextObjective
from bench.objectives.likelihood import pseudo_nats, wanted
from bench.objectives.masking import places
from bench.objectives.sampling import Sampling, mask_predict, writable


class MaskedNextToken(TextObjective):
    """A fixed share of positions, none of them the first, is hidden and predicted one place to the left."""

    mask_shift = 1
    likelihoods = frozenset[Likelihood]({"pseudo"})
    writes = "mask-predict"

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """How much is hidden."""

        mask_rate: float = MISSING  # share of positions predicted; all of them show [MASK]

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.mask_rate <= 1:
                raise ConfigError(f"strategy.mask_rate={self.mask_rate}: choose a share in (0, 1]")

    options: Options

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Choose positions and hide them.

        Returns:
            tokens: (B, T) with [MASK] at the chosen positions; positions: (B, K), 1 or more, in order;
            targets: (B, K) what stood there.
        """
        tokens = rows["tokens"]
        order = torch.rand((len(tokens), tokens.shape[1] - 1), generator=generator)
        positions = 1 + order.topk(self._n_targets(), dim=1).indices.sort(dim=1).values
        return {
            "tokens": tokens.scatter(1, positions, MASK),
            "positions": positions,
            "targets": tokens.gather(1, positions),
        }

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy of the hidden tokens, each from the position before it."""
        tokens, targets = batch["tokens"], batch["targets"].flatten()  # (B, T), (B K,)
        hidden = self.backbone(tokens, causal=False, at=places(batch["positions"] - 1, tokens.shape[1]))
        return Loss(self.head.nats(hidden, targets), targets.numel())

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """All positions are processed, a share predicts."""
        model, length = self.shapes.model, self.shapes.sequence_length
        targets = self._n_targets()
        vocab_size = self.backbone.embedding.num_embeddings
        forward = blocks_flops(model, length, targets) + head_flops(model, vocab_size, targets)
        return StepCost.of_row(rows_per_step(tokens_per_step, length), length, targets, forward)

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """Mask-predict (arXiv:1904.09324), each token read off one place to its left."""

        def fill(tokens: Tensor, hidden: Tensor) -> Tensor:
            states = self.backbone(tokens, causal=False)[:, -n_new - 1 : -1]  # (B, N, D)
            return writable(self.head(states[hidden]), self.shapes.vocab_size)

        return mask_predict(fill, prompts, n_new, sampling, uniforms)

    @torch.no_grad()
    def token_nats(
        self,
        tokens: Tensor,
        kind: Likelihood,
        *,
        samples: int,
        generator: torch.Generator,
        scored: Tensor | None = None,
    ) -> Tensor:
        """Pseudo: each token hidden in turn, alone, and read off the position before it."""
        return pseudo_nats(self.backbone, self.head, tokens, wanted(tokens, scored), self.mask_shift)

    def _n_targets(self) -> int:
        length = self.shapes.sequence_length
        return min(length - 1, max(1, round(self.options.mask_rate * length)))
