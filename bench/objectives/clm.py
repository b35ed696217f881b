"""Causal language modelling (GPT, Radford et al. 2018): every token from those on its left."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench.budget import StepCost, blocks_flops, head_flops, rows_per_step
from bench.objectives.base import Batch, Loss, ObjectiveOptions, TextObjective


class CausalLM(TextObjective):
    """Next-token prediction at every position but the last."""

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """Nothing beyond what all strategies declare."""

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """The rows as they are: the target is the input, shifted."""
        return rows

    def loss(self, batch: Batch) -> Loss:
        """Exact negative log-likelihood of tokens 1..T-1 given their prefixes."""
        tokens = batch["tokens"]  # (B, T)
        hidden = self.backbone(tokens, causal=True)  # (B, T, D)
        logits = self.head(hidden[:, :-1]).flatten(0, 1)  # (B (T - 1), V)
        targets = tokens[:, 1:].flatten()
        return Loss(F.cross_entropy(logits, targets, reduction="sum"), targets.numel())

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """All positions are processed, all but the last predict."""
        model, length = self.shapes.model, self.shapes.sequence_length
        forward = blocks_flops(model, length) + head_flops(model, self.shapes.vocab_size, length - 1)
        return StepCost.of_row(rows_per_step(tokens_per_step, length), length, length - 1, forward)
