"""Spans of noise and the sentinels that stand for them (T5, arXiv:1910.10683, sec. 3.1.4 and fig. 2).

Pure functions: counts -> mask -> encoder inputs and decoder targets. B rows, T tokens, K spans.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def span_counts(length: int, rate: float, mean_span: float | None) -> tuple[int, int]:
    """Noise tokens and spans of every row of `length` tokens: rounded and at least one, as T5 counts them.

    Args:
        length: T, 2 or more.
        rate: share of tokens that are noise.
        mean_span: tokens of a span; None: one span for all of them.
    """
    n_noise = min(max(round(rate * length), 1), length - 1)
    if mean_span is None:
        return n_noise, 1
    most = min(n_noise, length - n_noise)  # spans and the text before each have a token or more
    return n_noise, min(max(round(n_noise / mean_span), 1), most)


def noise_mask(n_rows: int, length: int, *, n_noise: int, n_spans: int, generator: torch.Generator) -> Tensor:
    """Text and noise by turns, text first: every such mask of these counts is equally likely.

    As T5's `random_spans_noise_mask`: the last token is always noise, so a single span is the row's end.

    Returns:
        (B, T) bool, True at noise; each row its own draw.
    """
    kept = _composition(n_rows, length - n_noise, n_spans, generator)
    noise = _composition(n_rows, n_noise, n_spans, generator)
    ends = torch.stack([kept, noise], dim=2).flatten(1).cumsum(dim=1)  # (B, 2 K)
    positions = torch.arange(length).expand(n_rows, -1).contiguous()
    return torch.searchsorted(ends, positions, right=True) % 2 == 1


def _composition(n_rows: int, total: int, parts: int, generator: torch.Generator) -> Tensor:
    """(B, K) whole numbers, 1 or more, that sum to `total`: uniform over all ways to cut it."""
    if parts == 1:
        return torch.full((n_rows, 1), total)
    cuts = 1 + torch.rand((n_rows, total - 1), generator=generator).topk(parts - 1, dim=1).indices
    edges = F.pad(cuts.sort(dim=1).values, (1, 0), value=0)
    return F.pad(edges, (0, 1), value=total).diff(dim=1)


def split_at_spans(
    tokens: Tensor, mask: Tensor, *, first_sentinel: int, closing: int
) -> tuple[Tensor, Tensor]:
    """The text with a sentinel for each span, and the spans, each after its sentinel.

    Args:
        tokens: (B, T) ids.
        mask: (B, T) bool, True at noise; as many tokens and spans in each row.
        first_sentinel: id of a row's first sentinel; the others follow.
        closing: id after the last span.

    Returns:
        (B, T - noise + K) inputs; (B, noise + K + 1) targets.
    """
    starts = mask & ~F.pad(mask[:, :-1], (1, 0), value=False)  # (B, T) first token of each span
    sentinels = first_sentinel + starts.cumsum(dim=1) - 1
    inputs = torch.where(starts, sentinels, tokens)[starts | ~mask].view(len(tokens), -1)
    pairs = torch.stack([sentinels, tokens], dim=2)  # (B, T, 2) a sentinel before each token,
    wanted = torch.stack([starts, mask], dim=2)  # kept where a span starts
    spans = pairs[wanted].view(len(tokens), -1)
    return inputs, F.pad(spans, (0, 1), value=closing)
