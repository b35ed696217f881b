"""Masked next-token prediction (LLM2Vec, arXiv:2404.05961, sec. 2.2; GPT-BERT, arXiv:2410.24159, sec. 3.1).

A masked token is predicted from the state on its left, with bidirectional attention: the mask is that of MLM,
the shift that of CLM, so that one head serves both.
"""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from bench.data.batches import DOCUMENTS, Batch, numbers_of
from bench.data.tokenizer import MASK
from bench.models.flops import StepCost
from bench.models.transformer import flat_indices
from bench.objectives.base import Likelihood, Loss, TextObjective
from bench.objectives.likelihood import pseudo_nll
from bench.objectives.options import MaskedNextTokenOptions
from bench.objectives.sampling import Sampling, mask_predict, masked_logits


class MaskedNextToken(TextObjective):
    """Mask a fixed share of the tokens, never the first, and predict each from the state on its left."""

    mask_shift = 1
    likelihoods = frozenset[Likelihood]({"pseudo"})
    isolates_documents = True
    writes = "mask-predict"

    Options = MaskedNextTokenOptions
    options: MaskedNextTokenOptions

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Choose tokens and mask them.

        Returns:
            tokens: (B, T) with [MASK] at the chosen positions; positions: (B, K), 1 or more, ascending;
            targets: (B, K) the ids that stood there.
        """
        tokens = rows["tokens"]
        order = torch.rand((len(tokens), tokens.shape[1] - 1), generator=generator)
        positions = 1 + order.topk(self._n_targets(), dim=1).indices.sort(dim=1).values
        batch = {
            "tokens": tokens.scatter(1, positions, MASK),
            "positions": positions,
            "targets": tokens.gather(1, positions),
        }
        return batch | numbers_of(rows)

    def loss(self, batch: Batch) -> Loss:
        """Return the cross-entropy of the masked tokens, each predicted from the state on its left."""
        tokens, targets = batch["tokens"], batch["targets"].flatten()  # (B, T), (B K,)
        at = flat_indices(batch["positions"] - 1, tokens.shape[1])
        hidden = self.backbone(tokens, causal=False, documents=batch.get(DOCUMENTS), at=at)
        return Loss(self.head.summed_nll(hidden, targets), targets.numel())

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Count all tokens as read, and a share as predicted."""
        return self.text_step_cost(tokens_per_step, self._n_targets(), at_targets_only=True)

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """Write by mask-predict (arXiv:1904.09324), each token predicted from the state on its left."""
        fill = masked_logits(self.backbone, self.head, self.shapes.vocab_size, n_new, self.mask_shift)
        return mask_predict(fill, prompts, n_new, sampling, uniforms)

    @override
    @torch.no_grad()
    def token_nll(
        self, tokens: Tensor, kind: Likelihood, *, scored: Tensor | None = None, **sampling: Any
    ) -> Tensor:
        return pseudo_nll(self.backbone, self.head, tokens, scored, self.mask_shift)

    def _n_targets(self) -> int:
        length = self.shapes.sequence_length
        return min(length - 1, max(1, round(self.options.mask_rate * length)))
