"""Masked language modelling (BERT, arXiv:1810.04805, sec. 3.1): hidden tokens from both sides."""

from dataclasses import dataclass

import torch
from omegaconf import MISSING
from torch import Tensor

from bench.data.batches import Batch
from bench.data.tokenizer import MASK
from bench.errors import ConfigError
from bench.models.cross_entropy import IGNORED
from bench.models.flops import StepCost, blocks_flops, head_flops, rows_per_step
from bench.objectives.base import Likelihood, Loss, ObjectiveOptions, TextObjective
from bench.objectives.likelihood import pseudo_nats, wanted
from bench.objectives.masking import N_SPECIAL, choose_words, places
from bench.objectives.sampling import Sampling, mask_predict, writable

KEEP_SHARE, RANDOM_SHARE = 0.1, 0.1  # BERT's 80/10/10


class MaskedLM(TextObjective):
    """Prediction of a fixed share of positions; logits at those positions only."""

    likelihoods = frozenset[Likelihood]({"pseudo"})
    writes = "mask-predict"

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """Which positions are predicted and what the model sees there."""

        mask_rate: float = MISSING  # share of positions predicted
        scheme: str = MISSING  # bert: 80 % [MASK], 10 % random, 10 % unchanged; mask: all [MASK]

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.mask_rate <= 1:
                raise ConfigError(f"strategy.mask_rate={self.mask_rate}: choose a share in (0, 1]")
            if self.scheme not in ("bert", "mask"):
                raise ConfigError(f"strategy.scheme={self.scheme!r}: choose bert or mask")

    options: Options

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Choose positions and hide them.

        Returns:
            tokens: (B, T) corrupted ids; positions: (B, K) chosen; targets: (B, K) their ids, IGNORED
            where a special token stood (it is never hidden).
        """
        tokens = rows["tokens"]
        positions, targets = choose_words(tokens, self._n_targets(), generator)
        chosen = tokens.gather(1, positions)
        seen = torch.where(targets == IGNORED, chosen, self._hide(chosen, generator))
        return {"tokens": tokens.scatter(1, positions, seen), "positions": positions, "targets": targets}

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy at the chosen positions: a pseudo-likelihood, not a likelihood."""
        tokens, targets = batch["tokens"], batch["targets"].flatten()  # (B, T), (B K,)
        hidden = self.backbone(tokens, causal=False, at=places(batch["positions"], tokens.shape[1]))
        return Loss(self.head.nats(hidden, targets), (targets != IGNORED).sum())

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """All positions are processed, a share predicts."""
        model, length = self.shapes.model, self.shapes.sequence_length
        targets = self._n_targets()
        vocab_size = self.backbone.embedding.num_embeddings
        forward = blocks_flops(model, length, targets) + head_flops(model, vocab_size, targets)
        return StepCost.of_row(rows_per_step(tokens_per_step, length), length, targets, forward)

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
        """Pseudo: each token hidden in turn, alone."""
        return pseudo_nats(self.backbone, self.head, tokens, wanted(tokens, scored))

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """Mask-predict (arXiv:1904.09324). An EOS is never its target, so that it hardly writes one."""

        def fill(tokens: Tensor, hidden: Tensor) -> Tensor:
            states = self.backbone(tokens, causal=False)[:, -n_new:]  # (B, N, D)
            return writable(self.head(states[hidden]), self.shapes.vocab_size)

        return mask_predict(fill, prompts, n_new, sampling, uniforms)

    def _n_targets(self) -> int:
        return max(1, round(self.options.mask_rate * self.shapes.sequence_length))

    def _hide(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """What the model sees at the chosen positions: (B, K) ids -> (B, K) ids."""
        masks = torch.full_like(chosen, MASK)
        if self.options.scheme == "mask":
            return masks
        draw = torch.rand(chosen.shape, generator=generator)
        random = torch.randint(N_SPECIAL, self.shapes.vocab_size, chosen.shape, generator=generator)
        seen = torch.where(draw < RANDOM_SHARE, random, masks)
        return torch.where(draw >= 1 - KEEP_SHARE, chosen, seen)
