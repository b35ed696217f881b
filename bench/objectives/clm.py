"""Causal language modelling (GPT, Radford et al. 2018): every token from those on its left."""

from dataclasses import dataclass

import torch
from omegaconf import MISSING
from torch import Tensor

from bench.data.batches import Batch
from bench.data.tokenizer import MASK
from bench.errors import ConfigError
from bench.models.flops import StepCost, blocks_flops, head_flops, rows_per_step
from bench.objectives.base import Likelihood, Loss, ObjectiveOptions, TextObjective
from bench.objectives.likelihood import causal_nats
from bench.objectives.sampling import Sampling, causal_logits, left_to_right


class CausalLM(TextObjective):
    """Next-token prediction at every position but the last."""

    likelihoods = frozenset[Likelihood]({"exact"})
    writes = "left to right"

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """Noise against overfitting where data repeat (Gao et al. 2025, arXiv:2510.04071); 0: none.

        With it CLM is the fair rival of masked diffusion (Prabhudesai et al. 2025, arXiv:2507.15857).
        """

        dropout: float = MISSING  # share of each block's output set to zero in training
        input_mask_rate: float = MISSING  # chance of an input token to be shown as [MASK] in training

        def __post_init__(self) -> None:
            super().__post_init__()
            for key in ("dropout", "input_mask_rate"):
                if not 0 <= getattr(self, key) < 1:
                    raise ConfigError(f"strategy.{key}={getattr(self, key)}: choose a share in [0, 1)")

    options: Options

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """The rows as they are, since the target is the input, shifted; noise only where it is asked for.

        Returns:
            tokens: (B, T) as shown; targets: (B, T) ids, if inputs are masked; seed: (B,) of dropout, if any:
            the data decide it, so that a resumed run drops the same.
        """
        tokens, batch = rows["tokens"], rows
        if self.options.input_mask_rate > 0:
            hidden = torch.rand(tokens.shape, generator=generator) < self.options.input_mask_rate
            batch = batch | {"tokens": tokens.masked_fill(hidden, MASK), "targets": tokens}
        if self.options.dropout > 0:
            batch = batch | {"seed": torch.randint(2**62, (len(tokens),), generator=generator)}
        return batch

    def loss(self, batch: Batch) -> Loss:
        """Negative log-likelihood of tokens 1..T-1 given their prefixes: exact but for noise in training."""
        tokens = batch.get("targets", batch["tokens"])  # (B, T)
        hidden = self._trained(batch) if self.training else self.backbone(tokens, causal=True)  # (B, T, D)
        targets = tokens[:, 1:]
        return Loss(self.head.nats(hidden[:, :-1], targets), targets.numel())

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """All positions are processed, all but the last predict."""
        model, length = self.shapes.model, self.shapes.sequence_length
        vocab_size = self.backbone.embedding.num_embeddings
        forward = blocks_flops(model, length) + head_flops(model, vocab_size, length - 1)
        return StepCost.of_row(rows_per_step(tokens_per_step, length), length, length - 1, forward)

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
        """Exact."""
        return causal_nats(self.backbone, self.head, tokens, scored)

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """Each token given those on its left (arXiv:1904.09751, eq. 1)."""
        next_logits = causal_logits(self.backbone, self.head, self.shapes.vocab_size)
        return left_to_right(next_logits, prompts, n_new, sampling, uniforms[:, :, 0])

    def _trained(self, batch: Batch) -> Tensor:
        """Hidden states with noise (B, T, D)."""
        shown = batch["tokens"]
        if "seed" not in batch:
            return self.backbone(shown, causal=True)
        with torch.random.fork_rng([shown.device] if shown.is_cuda else []):
            torch.manual_seed(int(batch["seed"][0]))  # ranks have other rows, hence other seeds
            return self.backbone(shown, causal=True, dropout=self.options.dropout)
