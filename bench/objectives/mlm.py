"""Masked language modelling (BERT, arXiv:1810.04805, sec. 3.1): predict masked tokens from both sides."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from bench.data.batches import DOCUMENTS, Batch, numbers_of
from bench.data.tokenizer import MASK
from bench.models.cross_entropy import IGNORED
from bench.models.flops import StepCost
from bench.models.transformer import flat_indices
from bench.objectives.base import Likelihood, Loss, TextObjective
from bench.objectives.corruption import N_SPECIAL, choose_tokens
from bench.objectives.likelihood import pseudo_nll
from bench.objectives.options import MaskedLMOptions
from bench.objectives.sampling import Sampling, mask_predict, masked_logits

KEEP_SHARE, RANDOM_SHARE = 0.1, 0.1  # BERT's 80/10/10


class MaskedLM(TextObjective):
    """Predict a fixed share of the tokens; logits are computed for these only."""

    likelihoods = frozenset[Likelihood]({"pseudo"})
    isolates_documents = True
    writes = "mask-predict"

    Options = MaskedLMOptions
    options: MaskedLMOptions

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Choose tokens and mask them.

        Returns:
            tokens: (B, T) corrupted ids; positions: (B, K) chosen; targets: (B, K) their ids, IGNORED
            where a special token stood (it is never masked).
        """
        tokens = rows["tokens"]
        positions, targets = choose_tokens(tokens, self._n_targets(), generator)
        chosen = tokens.gather(1, positions)
        shown = torch.where(targets == IGNORED, chosen, self._mask(chosen, generator))
        batch = {"tokens": tokens.scatter(1, positions, shown), "positions": positions, "targets": targets}
        return batch | numbers_of(rows)

    def loss(self, batch: Batch) -> Loss:
        """Return the cross-entropy of the chosen tokens: a pseudo-likelihood, not a likelihood."""
        tokens, targets = batch["tokens"], batch["targets"].flatten()  # (B, T), (B K,)
        at = flat_indices(batch["positions"], tokens.shape[1])
        hidden = self.backbone(tokens, causal=False, documents=batch.get(DOCUMENTS), at=at)
        return Loss(self.head.summed_nll(hidden, targets), (targets != IGNORED).sum())

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Count all tokens as read, and a share as predicted."""
        return self.text_step_cost(tokens_per_step, self._n_targets(), at_targets_only=True)

    @override
    @torch.no_grad()
    def token_nll(
        self, tokens: Tensor, kind: Likelihood, *, scored: Tensor | None = None, **sampling: Any
    ) -> Tensor:
        return pseudo_nll(self.backbone, self.head, tokens, scored)

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """Write by mask-predict (arXiv:1904.09324). EOS is never a target, so it is hardly ever written."""
        fill = masked_logits(self.backbone, self.head, self.shapes.vocab_size, n_new)
        return mask_predict(fill, prompts, n_new, sampling, uniforms)

    def _n_targets(self) -> int:
        return max(1, round(self.options.mask_rate * self.shapes.sequence_length))

    def _mask(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the model sees in place of the chosen tokens: (B, K) ids -> (B, K) ids."""
        masks = torch.full_like(chosen, MASK)
        if self.options.scheme == "mask":
            return masks
        draw = torch.rand(chosen.shape, generator=generator)
        random = torch.randint(N_SPECIAL, self.shapes.vocab_size, chosen.shape, generator=generator)
        shown = torch.where(draw < RANDOM_SHARE, random, masks)
        return torch.where(draw >= 1 - KEEP_SHARE, chosen, shown)
