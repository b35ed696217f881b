"""Hidden states of a text -> its one feature vector. Shapes: B texts, T tokens, D width."""

import torch
from torch import Tensor

POOLINGS = ("mean", "last", "first")


def pool(hidden: Tensor, attended: Tensor, how: str) -> Tensor:
    """Hidden states (B, T, D) to features (B, D), never looking at padding.

    Args:
        hidden: (B, T, D).
        attended: (B, T) bool, True on the left; at least one per row.
        how: mean | last | first.
    """
    if how == "first":
        return hidden[:, 0]
    n_attended = attended.sum(dim=1)
    if how == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), n_attended - 1]
    kept = hidden.masked_fill(~attended[:, :, None], 0.0)
    return kept.sum(dim=1) / n_attended[:, None]
