"""Right-to-left language modelling (ELMo, arXiv:1802.05365): predict each token from those on its right."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench.data.batches import Batch
from bench.models.flops import StepCost, blocks_flops, head_flops, rows_per_step
from bench.objectives.base import Loss, TextObjective
from bench.objectives.options import TextOptions


class ReversedLM(TextObjective):
    """Train a causal model on the text read backwards."""

    @dataclass(frozen=True)
    class Options(TextOptions):
        """Declare no option beyond those of all strategies."""

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Reverse every row."""
        return {"tokens": rows["tokens"].flip(1)}

    def loss(self, batch: Batch) -> Loss:
        """Return the negative log-likelihood of all tokens but the last, each given those on its right."""
        tokens = batch["tokens"]  # (B, T), the last token first
        hidden = self.backbone(tokens, causal=True)  # (B, T, D)
        logits = self.head(hidden[:, :-1]).flatten(0, 1)  # (B (T - 1), V)
        targets = tokens[:, 1:].flatten()
        return Loss(F.cross_entropy(logits, targets, reduction="sum"), targets.numel())

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Return the cost of a step that reads all tokens and predicts all but one of each row."""
        model, length = self.shapes.model, self.shapes.sequence_length
        forward = blocks_flops(model, length) + head_flops(model, self.shapes.vocab_size, length - 1)
        return StepCost.of_row(rows_per_step(tokens_per_step, length), length, length - 1, forward)
