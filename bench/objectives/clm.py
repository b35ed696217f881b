"""Causal language modelling (GPT, Radford et al. 2018): predict every token from those on its left."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from bench.data.batches import DOCUMENTS, Batch
from bench.data.tokenizer import MASK
from bench.models.flops import StepCost
from bench.objectives.base import Likelihood, Loss, TextObjective
from bench.objectives.likelihood import causal_nll
from bench.objectives.options import CausalLMOptions
from bench.objectives.sampling import Sampling, write_causally


class CausalLM(TextObjective):
    """Predict the next token everywhere."""

    likelihoods = frozenset[Likelihood]({"exact"})
    isolates_documents = True
    writes = "left to right"

    Options = CausalLMOptions
    options: CausalLMOptions

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Return the rows, since the target is the shifted input, with noise if the options ask for it.

        Returns:
            tokens: (B, T) input ids; targets: (B, T) ids, if inputs are masked; seed: (B,) of dropout, if
            any: it is part of the data, so that a resumed run drops the same.
        """
        tokens, batch = rows["tokens"], rows
        if self.options.input_mask_rate > 0:
            is_masked = torch.rand(tokens.shape, generator=generator) < self.options.input_mask_rate
            batch = batch | {"tokens": tokens.masked_fill(is_masked, MASK), "targets": tokens}
        if self.options.dropout > 0:
            batch = batch | {"seed": torch.randint(2**62, (len(tokens),), generator=generator)}
        return batch

    def loss(self, batch: Batch) -> Loss:
        """Return the NLL of tokens 1..T-1 given their prefixes: exact, except for noise in training."""
        tokens = batch.get("targets", batch["tokens"])  # (B, T)
        hidden = self._noisy_states(batch) if self.training else self._states(tokens, batch)
        targets = tokens[:, 1:]
        return Loss(self.head.summed_nll(hidden[:, :-1], targets), targets.numel())

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Count all tokens as read, and all but the first as predicted."""
        return self.text_step_cost(tokens_per_step, self.shapes.sequence_length - 1)

    @override
    @torch.no_grad()
    def token_nll(
        self, tokens: Tensor, kind: Likelihood, *, scored: Tensor | None = None, **sampling: Any
    ) -> Tensor:
        return causal_nll(self.backbone, self.head, tokens, scored)

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """Write each token given those on its left (arXiv:1904.09751, eq. 1)."""
        vocab_size = self.shapes.vocab_size
        return write_causally(self.backbone, self.head, vocab_size, prompts, n_new, sampling, uniforms)

    def _noisy_states(self, batch: Batch) -> Tensor:
        """Return hidden states under noise: (B, T, D)."""
        tokens = batch["tokens"]
        if "seed" not in batch:
            return self._states(tokens, batch)
        with torch.random.fork_rng([tokens.device] if tokens.is_cuda else []):
            torch.manual_seed(int(batch["seed"][0]))  # ranks have other rows, hence other seeds
            return self._states(tokens, batch, dropout=self.options.dropout)

    def _states(self, tokens: Tensor, batch: Batch, dropout: float = 0.0) -> Tensor:
        return self.backbone(tokens, causal=True, documents=batch.get(DOCUMENTS), dropout=dropout)
