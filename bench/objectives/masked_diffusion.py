"""Masked diffusion (MDLM, arXiv:2406.07524; LLaDA, arXiv:2502.09992): tokens vanish into [MASK] and return.

The bound on a text's negative log-likelihood is the integral over t in (0, 1) of 1/t times the cross-entropy
at tokens that are hidden with probability t each (LLaDA, eq. 3). Given that l of T are hidden, which ones is
uniform, and the integral of C(T, l) t^(l - 1) (1 - t)^(T - l) is 1/l. So the bound is the mean, over l from
1 to T and over all sets of l tokens, of T/l times the sum of cross-entropies (LLaDA, eq. 14): the same
number without the variance of 1/t. It equals the mean over all orders of generation.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.budget import StepCost, blocks_flops, head_flops, rows_per_step
from bench.masking import IGNORED
from bench.objectives.base import Batch, Likelihood, Loss, ObjectiveOptions, TextObjective
from bench.sampling import Sampling, unmask, writable
from bench.vocabulary import MASK


class MaskedDiffusion(TextObjective):
    """Prediction of all hidden tokens, of which there are any number; special tokens are tokens."""

    likelihoods = frozenset[Likelihood]({"bound"})
    writes = "reverse diffusion"

    @dataclass(frozen=True)
    class Options(ObjectiveOptions):
        """Nothing beyond what all strategies declare."""

    def corrupt(self, rows: Batch, generator: torch.Generator) -> Batch:
        """Hide l tokens of each row; over a step's rows, l is spread evenly on 1..T.

        Returns:
            tokens: (B, T) with [MASK] where hidden; targets: (B, T), IGNORED where not hidden.
        """
        tokens = rows["tokens"]
        n_rows, length = tokens.shape
        strata = torch.arange(n_rows, dtype=torch.float64) / n_rows
        phases = (strata + torch.rand((), dtype=torch.float64, generator=generator)) % 1
        hidden = choose_any(hidden_counts(length, phases), length, generator)
        return {"tokens": tokens.masked_fill(hidden, MASK), "targets": tokens.masked_fill(~hidden, IGNORED)}

    def loss(self, batch: Batch) -> Loss:
        """An estimate of an upper bound of the negative log-likelihood; the count is all tokens."""
        return Loss(self.weighted_nats(batch["tokens"], batch["targets"]).sum(), batch["tokens"].numel())

    def weighted_nats(self, shown: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of a row's hidden tokens, times the tokens that could have been hidden.

        Args:
            shown: (B, T) ids, [MASK] where hidden.
            targets: (B, T') ids of the row's last T' tokens, which can be hidden; IGNORED where they are not.

        Returns:
            (B,) nats.
        """
        is_hidden = targets != IGNORED  # (B, T')
        states = self.backbone(shown, causal=False)[:, shown.shape[1] - targets.shape[1] :]
        logits = self.head(states[is_hidden])  # (N, V)
        nats = F.cross_entropy(logits, targets[is_hidden], reduction="none")
        weights = targets.shape[1] / is_hidden.sum(dim=1, keepdim=True)  # (B, 1)
        weighted = nats * weights.expand_as(targets)[is_hidden]
        return weighted.new_zeros(targets.shape).masked_scatter(is_hidden, weighted).sum(dim=1)

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """All positions are processed; about half of them predict."""
        model, length = self.shapes.model, self.shapes.sequence_length
        targets = (length + 1) / 2
        vocab_size = self.backbone.embedding.num_embeddings
        forward = blocks_flops(model, length) + head_flops(model, vocab_size, targets)
        return StepCost.of_row(rows_per_step(tokens_per_step, length), length, targets, forward)

    @torch.no_grad()
    def nll(self, tokens: Tensor, kind: Likelihood, samples: int, generator: torch.Generator) -> Tensor:
        """The bound; the first token is given, hence never hidden; l is spread over a text's samples."""
        n_rows, rest = len(tokens), tokens[:, 1:]
        start = torch.rand(n_rows, dtype=torch.float64, generator=generator)
        total = torch.zeros(n_rows, device=tokens.device)
        for i in range(samples):
            counts = hidden_counts(rest.shape[1], (start + i / samples) % 1)
            hidden = choose_any(counts, rest.shape[1], generator).to(tokens.device)
            shown = torch.cat([tokens[:, :1], rest.masked_fill(hidden, MASK)], dim=1)
            total = total + self.weighted_nats(shown, rest.masked_fill(~hidden, IGNORED))
        return total / samples

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """The reverse process, a token a step, by low-confidence remasking (LLaDA, alg. 5)."""

        def fill(tokens: Tensor, hidden: Tensor) -> Tensor:
            states = self.backbone(tokens, causal=False)[:, -n_new:]  # (B, N, D)
            return writable(self.head(states[hidden]), self.shapes.vocab_size)

        return unmask(fill, prompts, n_new, sampling, uniforms)


def hidden_counts(length: int, phases: Tensor) -> Tensor:
    """(B,) phases in [0, 1), float64 -> (B,) counts l in 1..T, uniform where a phase is."""
    return (1 + (length * phases).floor().long()).clamp(max=length)


def choose_any(counts: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """(B,) counts -> (B, T) bool, True at as many positions, every set of them equally likely."""
    order = torch.rand((len(counts), length), generator=generator).argsort(dim=1)
    return order.argsort(dim=1) < counts[:, None]
