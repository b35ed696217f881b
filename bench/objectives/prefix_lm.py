"""Prefix language modelling (T5, arXiv:1910.10683, sec. 3.2): a prefix read in full, the rest in order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.data.batches import Batch
from bench.models.flops import StepCost, blocks_flops, head_flops, rows_per_step
from bench.objectives.base import Likelihood, Loss, ObjectiveOptions, StockClass, TextObjective
from bench.objectives.likelihood import next_token_nats, wanted
from bench.objectives.sampling import Sampling, left_to_right, writable


class PrefixLM(TextObjective):
    """One stack; the prefix, of a length drawn for each row, sees itself in both directions."""

    likelihoods = frozenset[Likelihood]({"exact"})
    writes = "left to right"

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """Nothing beyond what all strategies declare."""

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Draw where each prefix ends: 1..T-1 positions, equally likely.

        Rows two by two split the draw (p and T - p), so that a step of even rows has T / 2 targets a row.
        """
        n_rows, length = rows["tokens"].shape
        drawn = torch.randint(1, length, ((n_rows + 1) // 2,), generator=generator)
        prefix = torch.stack([drawn, length - drawn], dim=1).flatten()[:n_rows]
        return rows | {"prefix": prefix}

    def loss(self, batch: Batch) -> Loss:
        """Negative log-likelihood of what follows the prefix, given the prefix; logits there only."""
        tokens, prefix = batch["tokens"], batch["prefix"]  # (B, T), (B,)
        follows = torch.arange(tokens.shape[1], device=tokens.device) >= prefix[:, None]  # (B, T)
        at = follows.flatten().argwhere()[:, 0] - 1  # each is predicted from the position before it
        hidden = self.backbone(tokens, causal=False, prefix=prefix, at=at)  # (N, D)
        return Loss(self.head.nats(hidden, tokens[follows]), len(at))

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """All positions are processed, half of them predict."""
        model, length = self.shapes.model, self.shapes.sequence_length
        targets = length / 2
        vocab_size = self.backbone.embedding.num_embeddings
        forward = blocks_flops(model, length, targets) + head_flops(model, vocab_size, targets)
        return StepCost.of_row(rows_per_step(tokens_per_step, length), length, targets, forward)

    @property
    def stock_class(self) -> StockClass:
        """A decoder: masks of four dimensions give it the prefix."""
        return "ModernBertDecoderForCausalLM"

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """From left to right behind the prompt, which is the prefix (T5, sec. 3.2.1)."""
        prefix = torch.full((len(prompts),), prompts.shape[1], device=prompts.device)

        def next_logits(tokens: Tensor) -> Tensor:
            last = self.backbone(tokens, causal=False, prefix=prefix)[:, -1]  # (B, D)
            return writable(self.head(last), self.shapes.vocab_size)

        return left_to_right(next_logits, prompts, n_new, sampling, uniforms[:, :, 0])

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
        """Exact; the prefix is what is before the first scored token."""
        is_wanted = wanted(tokens, scored)
        prefix = (is_wanted.cumsum(dim=1) == 0).sum(dim=1) + 1  # (B,)
        hidden = self.backbone(tokens, causal=False, prefix=prefix)  # (B, T, D)
        return next_token_nats(hidden, self.head, tokens, is_wanted)
