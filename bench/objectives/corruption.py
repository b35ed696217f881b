"""How texts are corrupted: choose tokens to mask, and replace spans of noise by sentinels. Pure functions.

Spans are those of T5 (arXiv:1910.10683, sec. 3.1.4 and fig. 2): counts -> mask -> encoder inputs and decoder
targets. B rows, T tokens, K masked tokens or spans.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data.tokenizer import SPECIAL_TOKENS
from bench.models.cross_entropy import IGNORED

N_SPECIAL = len(SPECIAL_TOKENS)  # special tokens have the first ids


def choose_tokens(tokens: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the positions to predict: equally many in each row, special tokens last.

    tokens: (B, T) ids; n: K, positions per row -> (B, K) ascending positions; (B, K) their ids, IGNORED where
    a special token stands.
    """
    order = torch.rand(tokens.shape, generator=generator)
    order = order.masked_fill(tokens < N_SPECIAL, -1.0)
    positions = order.topk(n, dim=1).indices.sort(dim=1).values
    chosen = tokens.gather(1, positions)
    return positions, chosen.masked_fill(chosen < N_SPECIAL, IGNORED)


def span_counts(length: int, rate: float, mean_span: float | None) -> tuple[int, int]:
    """Return noise tokens and spans of a row of `length` tokens, each rounded and at least one, as in T5.

    length: 2 or more; mean_span: mean tokens of a span, None: one span for all noise tokens.
    """
    n_noise = min(max(round(rate * length), 1), length - 1)
    if mean_span is None:
        return n_noise, 1
    most = min(n_noise, length - n_noise)  # each span, and the text before it, has one token or more
    return n_noise, min(max(round(n_noise / mean_span), 1), most)


def noise_mask(n_rows: int, length: int, *, n_noise: int, n_spans: int, generator: torch.Generator) -> Tensor:
    """Draw which tokens are noise, uniformly over all masks in which text and noise alternate, text first.

    As in T5's `random_spans_noise_mask`, the last token is always noise, so a single span is the row's end.
    Returns (B, T) bool, True at noise, drawn for each row.
    """
    kept = _composition(n_rows, length - n_noise, n_spans, generator)
    noise = _composition(n_rows, n_noise, n_spans, generator)
    ends = torch.stack([kept, noise], dim=2).flatten(1).cumsum(dim=1)  # (B, 2 K)
    positions = torch.arange(length).expand(n_rows, -1).contiguous()
    return torch.searchsorted(ends, positions, right=True) % 2 == 1


def _composition(n_rows: int, total: int, parts: int, generator: torch.Generator) -> Tensor:
    """Draw (B, K) positive whole numbers that sum to `total`, uniformly over all such compositions."""
    if parts == 1:
        return torch.full((n_rows, 1), total)
    cuts = 1 + torch.rand((n_rows, total - 1), generator=generator).topk(parts - 1, dim=1).indices
    edges = F.pad(cuts.sort(dim=1).values, (1, 0), value=0)
    return F.pad(edges, (0, 1), value=total).diff(dim=1)


def split_at_spans(
    tokens: Tensor, mask: Tensor, *, first_sentinel: int, closing: int
) -> tuple[Tensor, Tensor]:
    """Return the text with a sentinel in place of each span, and the spans, each after its sentinel.

    Args:
        tokens: (B, T) ids.
        mask: (B, T) bool, True at noise; equally many tokens and spans in each row.
        first_sentinel: id of a row's first sentinel; the others follow.
        closing: id after the last span.

    Returns:
        (B, T - noise + K) inputs; (B, noise + K + 1) targets.
    """
    starts = _span_starts(mask)
    sentinels = first_sentinel + starts.cumsum(dim=1) - 1
    inputs = torch.where(starts, sentinels, tokens)[starts | ~mask].view(len(tokens), -1)
    pairs = torch.stack([sentinels, tokens], dim=2)  # (B, T, 2) a sentinel before each token,
    kept = torch.stack([starts, mask], dim=2)  # kept where a span starts
    spans = pairs[kept].view(len(tokens), -1)
    return inputs, F.pad(spans, (0, 1), value=closing)


def numbers_at_spans(numbers: Tensor, mask: Tensor) -> Tensor:
    """Return the numbers (B, T) of what `split_at_spans` keeps; a span has that of its first token."""
    return numbers[_span_starts(mask) | ~mask].view(len(numbers), -1)


def _span_starts(mask: Tensor) -> Tensor:
    """Return (B, T) bool, True at the first token of each span."""
    return mask & ~F.pad(mask[:, :-1], (1, 0), value=False)
