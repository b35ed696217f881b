"""Masked diffusion (MDLM, arXiv:2406.07524; LLaDA, arXiv:2502.09992): mask 1 to T tokens, predict them.

The bound on a text's negative log-likelihood is the integral over t in (0, 1) of 1/t times the cross-entropy
of tokens that are masked with probability t each (LLaDA, eq. 3). Given that l of T are masked, each set of l
tokens is equally likely, and the integral of C(T, l) t^(l - 1) (1 - t)^(T - l) is 1/l. So the bound is the
mean, over l from 1 to T and over all sets of l tokens, of T/l times the sum of cross-entropies (LLaDA, eq.
14): the same number without the variance of 1/t. It equals the mean over all orders of generation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data.batches import DOCUMENTS, Batch, numbers_of
from bench.data.tokenizer import MASK
from bench.models.cross_entropy import IGNORED
from bench.models.flops import StepCost
from bench.objectives.base import Likelihood, Loss, TextObjective
from bench.objectives.likelihood import attended, scored_tokens
from bench.objectives.options import TextOptions
from bench.objectives.sampling import Sampling, masked_logits, unmask


class MaskedDiffusion(TextObjective):
    """Predict all masked tokens, of which there are 1 to T; special tokens are treated as any other."""

    likelihoods = frozenset[Likelihood]({"bound"})
    isolates_documents = True
    writes = "reverse diffusion"
    Options = TextOptions

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Mask l tokens of each row; over the rows of a step, l is spread evenly on 1..T.

        Returns:
            tokens: (B, T) with [MASK] where masked; targets: (B, T), IGNORED where not masked.
        """
        tokens = rows["tokens"]
        n_rows, length = tokens.shape
        strata = torch.arange(n_rows, dtype=torch.float64) / n_rows
        phases = (strata + torch.rand((), dtype=torch.float64, generator=generator)) % 1
        hidden = choose_any(hidden_counts(length, phases), length, generator)
        batch = {"tokens": tokens.masked_fill(hidden, MASK), "targets": tokens.masked_fill(~hidden, IGNORED)}
        return batch | numbers_of(rows)

    def loss(self, batch: Batch) -> Loss:
        """Return an estimate of an upper bound of the negative log-likelihood; the count is all tokens."""
        tokens, targets = batch["tokens"], batch["targets"]
        n_maskable = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        states, weights = self._masked_states(tokens, targets, n_maskable, batch.get(DOCUMENTS))
        return Loss(self.head.summed_nll(states, targets[targets != IGNORED], weights), tokens.numel())

    def weighted_nll(self, shown: Tensor, targets: Tensor, n_maskable: Tensor) -> Tensor:
        """Return the cross-entropy of masked tokens, times the ratio of maskable to masked tokens of the row.

        Args:
            shown: (B, T) ids, [MASK] where masked; padded with PAD on the right.
            targets: (B, T') ids of the row's last T' tokens; IGNORED where they are not masked.
            n_maskable: (B,) tokens that could have been masked.

        Returns:
            (B, T') nats, 0 where not masked; their sum estimates the bound of the maskable tokens.
        """
        is_masked = targets != IGNORED  # (B, T')
        states, weights = self._masked_states(shown, targets, n_maskable)
        weighted = weights * F.cross_entropy(self.head(states), targets[is_masked], reduction="none")
        return weighted.new_zeros(targets.shape).masked_scatter(is_masked, weighted)

    def _masked_states(
        self, shown: Tensor, targets: Tensor, n_maskable: Tensor, documents: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the states of the N masked tokens (N, D) and their weights (N,), as in `weighted_nll`."""
        is_masked = targets != IGNORED  # (B, T')
        at = F.pad(is_masked, (shown.shape[1] - targets.shape[1], 0)).flatten().argwhere()[:, 0]
        states = self.backbone(shown, attended(shown), causal=False, documents=documents, at=at)
        weights = n_maskable[:, None] / is_masked.sum(dim=1, keepdim=True)  # (B, 1)
        return states, weights.expand_as(targets)[is_masked]

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """Count all tokens as read, and (T + 1) / 2 as predicted, the mean."""
        n_targets = (self.shapes.sequence_length + 1) / 2
        return self.text_step_cost(tokens_per_step, n_targets, at_targets_only=True)

    @torch.no_grad()
    def token_nll(
        self,
        tokens: Tensor,
        kind: Likelihood,
        *,
        samples: int,
        generator: torch.Generator,
        scored: Tensor | None = None,
    ) -> Tensor:
        """Estimate the bound: scored tokens can be masked, and l is spread over the samples of a text."""
        is_scored, rest = scored_tokens(tokens, scored), tokens[:, 1:]
        n_scored = is_scored.sum(dim=1)  # (B,)
        start = torch.rand(len(tokens), dtype=torch.float64, generator=generator)
        total = torch.zeros(rest.shape, device=tokens.device)
        for i in range(samples):
            counts = hidden_counts(n_scored.cpu(), (start + i / samples) % 1)
            chosen = choose_any(counts, n_scored.cpu(), generator).to(tokens.device)  # (B, most scored)
            exists = torch.arange(chosen.shape[1], device=tokens.device) < n_scored[:, None]
            hidden = torch.zeros_like(is_scored).masked_scatter(is_scored, chosen[exists])
            shown = torch.cat([tokens[:, :1], rest.masked_fill(hidden, MASK)], dim=1)
            total = total + self.weighted_nll(shown, rest.masked_fill(~hidden, IGNORED), n_scored)
        return total / samples

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """Write by the reverse process, one token per step, by low-confidence remasking (LLaDA, alg. 5)."""
        fill = masked_logits(self.backbone, self.head, self.shapes.vocab_size, n_new)
        return unmask(fill, prompts, n_new, sampling, uniforms)


def hidden_counts(length: int | Tensor, phases: Tensor) -> Tensor:
    """Map phases (B,) in [0, 1), float64, to counts l in 1..T, uniform if phases are. T may be (B,)."""
    return (1 + (length * phases).floor().long()).clamp(max=length)


def choose_any(counts: Tensor, length: int | Tensor, generator: torch.Generator) -> Tensor:
    """Choose tokens to mask: (B,) counts -> (B, T) bool, every set of that many being equally likely.

    With (B,) lengths, T is the longest, and each row is chosen among its own first tokens.
    """
    lengths = torch.as_tensor(length)
    order = torch.rand((len(counts), int(lengths.max())), generator=generator)
    order = order.masked_fill(torch.arange(order.shape[1]) >= lengths[..., None], 2.0)  # after all others
    return order.argsort(dim=1).argsort(dim=1) < counts[:, None]
