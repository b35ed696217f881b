"""Prefix language modelling (T5, arXiv:1910.10683, sec. 3.2): read a prefix in full, predict the rest."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from bench.data.batches import DOCUMENTS, Batch
from bench.models.flops import StepCost
from bench.objectives.base import Likelihood, Loss, StockClass, TextObjective
from bench.objectives.likelihood import next_token_nll, scored_tokens
from bench.objectives.options import TextOptions
from bench.objectives.sampling import Sampling, left_to_right, writable


class PrefixLM(TextObjective):
    """One stack with bidirectional attention in the prefix, whose length is drawn for each row."""

    likelihoods = frozenset[Likelihood]({"exact"})
    isolates_documents = True
    writes = "left to right"
    Options = TextOptions

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Draw the length of each prefix uniformly from 1..T-1.

        Pairs of rows share a draw (p and T - p), so that a step of even rows has T / 2 targets per row.
        """
        n_rows, length = rows["tokens"].shape
        drawn = torch.randint(1, length, ((n_rows + 1) // 2,), generator=generator)
        prefix = torch.stack([drawn, length - drawn], dim=1).flatten()[:n_rows]
        return rows | {"prefix": prefix}

    def loss(self, batch: Batch) -> Loss:
        """Return the NLL of the tokens after the prefix; logits are computed for these only."""
        tokens, prefix = batch["tokens"], batch["prefix"]  # (B, T), (B,)
        follows = torch.arange(tokens.shape[1], device=tokens.device) >= prefix[:, None]  # (B, T)
        at = follows.flatten().argwhere()[:, 0] - 1  # each is predicted from the state on its left
        documents = batch.get(DOCUMENTS)
        hidden = self.backbone(tokens, causal=False, prefix=prefix, documents=documents, at=at)  # (N, D)
        return Loss(self.head.summed_nll(hidden, tokens[follows]), len(at))

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Count all tokens as read, and half of them as predicted."""
        return self.text_step_cost(tokens_per_step, self.shapes.sequence_length / 2, at_targets_only=True)

    @property
    def stock_class(self) -> StockClass:
        """A decoder, which applies the prefix if it is given a four-dimensional mask."""
        return "ModernBertDecoderForCausalLM"

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """Write from left to right after the prompt, which is the prefix (T5, sec. 3.2.1)."""
        prefix = torch.full((len(prompts),), prompts.shape[1], device=prompts.device)

        def next_logits(tokens: Tensor) -> Tensor:
            last = self.backbone(tokens, causal=False, prefix=prefix)[:, -1]  # (B, D)
            return writable(self.head(last), self.shapes.vocab_size)

        return left_to_right(next_logits, prompts, n_new, sampling, uniforms[:, :, 0])

    @override
    @torch.no_grad()
    def token_nll(
        self, tokens: Tensor, kind: Likelihood, *, scored: Tensor | None = None, **sampling: Any
    ) -> Tensor:
        is_scored = scored_tokens(tokens, scored)
        prefix = (is_scored.cumsum(dim=1) == 0).sum(dim=1) + 1  # (B,), up to the first scored token
        hidden = self.backbone(tokens, causal=False, prefix=prefix)  # (B, T, D)
        return next_token_nll(hidden, self.head, tokens, is_scored)
