"""Right-to-left language modelling (as in ELMo, arXiv:1802.05365): every token from those on its right.

An example of a strategy of one's own: this file and `strategy/reversed_lm.yaml`, nothing else. In the project
they would lie in bench/objectives/ and conf/strategy/.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench.data.batches import Batch
from bench.models.flops import StepCost, blocks_flops, head_flops, rows_per_step
from bench.objectives.base import Loss, ObjectiveOptions, TextObjective


class ReversedLM(TextObjective):
    """A causal model of the text read backwards."""

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """Nothing beyond what all strategies declare."""

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Turn every row round."""
        return {"tokens": rows["tokens"].flip(1)}

    def loss(self, batch: Batch) -> Loss:
        """Exact negative log-likelihood of all tokens but the last, each given those on its right."""
        tokens = batch["tokens"]  # (B, T), the last token first
        hidden = self.backbone(tokens, causal=True)  # (B, T, D)
        logits = self.head(hidden[:, :-1]).flatten(0, 1)  # (B (T - 1), V)
        targets = tokens[:, 1:].flatten()
        return Loss(F.cross_entropy(logits, targets, reduction="sum"), targets.numel())

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """All positions are processed, all but one predict."""
        model, length = self.shapes.model, self.shapes.sequence_length
        forward = blocks_flops(model, length) + head_flops(model, self.shapes.vocab_size, length - 1)
        return StepCost.of_row(rows_per_step(tokens_per_step, length), length, length - 1, forward)
