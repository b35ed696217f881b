"""Negative log-likelihoods of single tokens, in nats: what strategies share in computing them.

B texts of T tokens, padded with PAD on the right. All results are (B, T - 1): of tokens 1..T-1, since token 0
is always given; 0 where a token is not wanted. Pure functions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data.tokenizer import MASK, PAD
from bench.objectives.masking import places


def wanted(tokens: Tensor, scored: Tensor | None) -> Tensor:
    """Which tokens have nats: (B, T) ids, (B, T) bool or None: all -> (B, T - 1) bool, no padding."""
    is_text = tokens[:, 1:] != PAD
    return is_text if scored is None else is_text & scored[:, 1:]


def attended(tokens: Tensor) -> Tensor | None:
    """(B, T) ids -> (B, T) bool, False at padding; None where there is none, which is faster."""
    is_text = tokens != PAD
    return None if bool(is_text.all()) else is_text


def next_token_nats(hidden: Tensor, head: nn.Module, tokens: Tensor, is_wanted: Tensor) -> Tensor:
    """Of each wanted token, read off the state to its left; logits there only.

    Args:
        hidden: (B, T, D) states that have seen no token on their right which is wanted.
        head: (N, D) -> logits (N, V).
        tokens: (B, T) ids.
        is_wanted: (B, T - 1) bool.
    """
    logits = head(hidden[:, :-1][is_wanted])  # (N, V)
    nats = F.cross_entropy(logits, tokens[:, 1:][is_wanted], reduction="none")
    return nats.new_zeros(is_wanted.shape).masked_scatter(is_wanted, nats)


def causal_nats(backbone: nn.Module, head: nn.Module, tokens: Tensor, scored: Tensor | None) -> Tensor:
    """Of each token of (B, T) that is scored, given all on its left: exact."""
    hidden = backbone(tokens, causal=True)  # (B, T, D)
    return next_token_nats(hidden, head, tokens, wanted(tokens, scored))


def pseudo_nats(
    backbone: nn.Module, head: nn.Module, tokens: Tensor, is_wanted: Tensor, shift: int = 0
) -> Tensor:
    """Of each wanted token given all others (Salazar et al. 2020, arXiv:1910.14659, eq. 1).

    One pass for each: it alone is hidden. Tokens that are not wanted are shown throughout and cost nothing.

    Args:
        backbone: attends both ways.
        head: (N, D) -> logits (N, V).
        tokens: (B, T) ids; no more than B texts are read at a time.
        is_wanted: (B, T - 1) bool.
        shift: a hidden token is predicted this many positions to its left.
    """
    nats = torch.zeros(is_wanted.shape, device=tokens.device)
    for found in is_wanted.T.nonzero().split(len(tokens)):
        row, position = found[:, 1], found[:, 0] + 1
        given = tokens[row]  # (N, T)
        shown, at = (
            given.scatter(1, position[:, None], MASK),
            places(position[:, None] - shift, given.shape[1]),
        )
        logits = head(backbone(shown, attended(given), causal=False, at=at))  # (N, V)
        targets = given.gather(1, position[:, None])[:, 0]
        nats[row, position - 1] = F.cross_entropy(logits, targets, reduction="none").to(nats)
    return nats
