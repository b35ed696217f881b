"""Negative log-likelihoods (NLL) of single tokens, in nats, as several strategies compute them.

B texts of T tokens, padded with PAD on the right. Results are (B, T - 1), for tokens 1..T-1, because token 0
is always given; 0 where a token is not scored. Pure functions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data.tokenizer import MASK, PAD
from bench.models.transformer import flat_indices


def scored_tokens(tokens: Tensor, scored: Tensor | None) -> Tensor:
    """Return which tokens are scored: (B, T) ids, (B, T) bool or None for all -> (B, T - 1) bool."""
    is_text = tokens[:, 1:] != PAD
    return is_text if scored is None else is_text & scored[:, 1:]


def attended(tokens: Tensor) -> Tensor | None:
    """Return (B, T) bool, False at padding; None where there is no padding, which is faster."""
    is_text = tokens != PAD
    return None if bool(is_text.all()) else is_text


def next_token_nll(hidden: Tensor, head: nn.Module, tokens: Tensor, is_scored: Tensor) -> Tensor:
    """Return the NLL of each scored token, predicted from the state on its left.

    hidden: (B, T, D) states that do not depend on scored tokens to their right; head: (N, D) -> (N, V);
    tokens: (B, T) ids; is_scored: (B, T - 1) bool.
    """
    logits = head(hidden[:, :-1][is_scored])  # (N, V)
    nll = F.cross_entropy(logits, tokens[:, 1:][is_scored], reduction="none")
    return nll.new_zeros(is_scored.shape).masked_scatter(is_scored, nll)


def causal_nll(backbone: nn.Module, head: nn.Module, tokens: Tensor, scored: Tensor | None) -> Tensor:
    """Return the exact NLL of each scored token given all tokens on its left."""
    hidden = backbone(tokens, causal=True)  # (B, T, D)
    return next_token_nll(hidden, head, tokens, scored_tokens(tokens, scored))


def pseudo_nll(
    backbone: nn.Module, head: nn.Module, tokens: Tensor, scored: Tensor | None, shift: int = 0
) -> Tensor:
    """Return the NLL of each scored token given all others (Salazar et al. 2020, arXiv:1910.14659, eq. 1).

    Each scored token has a forward pass, of at most B texts at a time, in which it alone is masked.

    head: (N, D) -> (N, V); tokens: (B, T) ids; scored: (B, T) bool, None: all; shift: a masked token is
    predicted this many tokens to its left.
    """
    is_scored = scored_tokens(tokens, scored)
    nll = torch.zeros(is_scored.shape, device=tokens.device)
    for indices in is_scored.T.nonzero().split(len(tokens)):
        row, position = indices[:, 1], indices[:, 0] + 1
        given = tokens[row]  # (N, T)
        shown = given.scatter(1, position[:, None], MASK)
        at = flat_indices(position[:, None] - shift, given.shape[1])
        logits = head(backbone(shown, attended(given), causal=False, at=at))  # (N, V)
        targets = given.gather(1, position[:, None])[:, 0]
        nll[row, position - 1] = F.cross_entropy(logits, targets, reduction="none").to(nll)
    return nll
