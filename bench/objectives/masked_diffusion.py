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

from bench.data.batches import Batch
from bench.data.tokenizer import MASK
from bench.models.cross_entropy import IGNORED
from bench.models.flops import StepCost, blocks_flops, head_flops, rows_per_step
from bench.objectives.base import Likelihood, Loss, ObjectiveOptions, TextObjective
from bench.objectives.likelihood import attended, wanted
from bench.objectives.sampling import Sampling, unmask, writable


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
        tokens, targets = batch["tokens"], batch["targets"]
        n_hideable = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        states, weights = self._hidden(tokens, targets, n_hideable)
        return Loss(self.head.nats(states, targets[targets != IGNORED], weights), tokens.numel())

    def weighted_nats(self, shown: Tensor, targets: Tensor, n_hideable: Tensor) -> Tensor:
        """Cross-entropies of a row's hidden tokens, times the tokens that could be hidden by those that are.

        Args:
            shown: (B, T) ids, [MASK] where hidden; padded with PAD on the right.
            targets: (B, T') ids of the row's last T' tokens; IGNORED where they are not hidden.
            n_hideable: (B,) tokens that could have been hidden.

        Returns:
            (B, T') nats, 0 where not hidden; their sum estimates the bound of what could be hidden.
        """
        is_hidden = targets != IGNORED  # (B, T')
        states, weights = self._hidden(shown, targets, n_hideable)
        weighted = weights * F.cross_entropy(self.head(states), targets[is_hidden], reduction="none")
        return weighted.new_zeros(targets.shape).masked_scatter(is_hidden, weighted)

    def _hidden(self, shown: Tensor, targets: Tensor, n_hideable: Tensor) -> tuple[Tensor, Tensor]:
        """As `weighted_nats`: states of the N hidden tokens (N, D), and the weights of their nats (N,)."""
        is_hidden = targets != IGNORED  # (B, T')
        at = F.pad(is_hidden, (shown.shape[1] - targets.shape[1], 0)).flatten().argwhere()[:, 0]
        states = self.backbone(shown, attended(shown), causal=False, at=at)
        weights = n_hideable[:, None] / is_hidden.sum(dim=1, keepdim=True)  # (B, 1)
        return states, weights.expand_as(targets)[is_hidden]

    def step_cost(self, tokens_per_step: int) -> StepCost:
        """All positions are processed; about half of them predict."""
        model, length = self.shapes.model, self.shapes.sequence_length
        targets = (length + 1) / 2
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
        """The bound; what is scored can be hidden, and l is spread over a text's samples."""
        is_wanted, rest = wanted(tokens, scored), tokens[:, 1:]
        n_wanted = is_wanted.sum(dim=1)  # (B,)
        start = torch.rand(len(tokens), dtype=torch.float64, generator=generator)
        total = torch.zeros(rest.shape, device=tokens.device)
        for i in range(samples):
            counts = hidden_counts(n_wanted.cpu(), (start + i / samples) % 1)
            chosen = choose_any(counts, n_wanted.cpu(), generator).to(tokens.device)  # (B, most wanted)
            exists = torch.arange(chosen.shape[1], device=tokens.device) < n_wanted[:, None]
            hidden = torch.zeros_like(is_wanted).masked_scatter(is_wanted, chosen[exists])
            shown = torch.cat([tokens[:, :1], rest.masked_fill(hidden, MASK)], dim=1)
            total = total + self.weighted_nats(shown, rest.masked_fill(~hidden, IGNORED), n_wanted)
        return total / samples

    def write(self, prompts: Tensor, n_new: int, sampling: Sampling, uniforms: Tensor) -> Tensor:
        """The reverse process, a token a step, by low-confidence remasking (LLaDA, alg. 5)."""

        def fill(tokens: Tensor, hidden: Tensor) -> Tensor:
            states = self.backbone(tokens, causal=False)[:, -n_new:]  # (B, N, D)
            return writable(self.head(states[hidden]), self.shapes.vocab_size)

        return unmask(fill, prompts, n_new, sampling, uniforms)


def hidden_counts(length: int | Tensor, phases: Tensor) -> Tensor:
    """(B,) phases in [0, 1), float64 -> (B,) counts l in 1..T, uniform where a phase is. T may be (B,)."""
    return (1 + (length * phases).floor().long()).clamp(max=length)


def choose_any(counts: Tensor, length: int | Tensor, generator: torch.Generator) -> Tensor:
    """(B,) counts -> (B, T) bool, True at as many positions, every set of them equally likely.

    With (B,) lengths T is the longest, and a row is chosen from among its first positions.
    """
    lengths = torch.as_tensor(length)
    order = torch.rand((len(counts), int(lengths.max())), generator=generator)
    order = order.masked_fill(torch.arange(order.shape[1]) >= lengths[..., None], 2.0)  # behind all others
    return order.argsort(dim=1).argsort(dim=1) < counts[:, None]
