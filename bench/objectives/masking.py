"""Which words are hidden: a fixed number in every row, special tokens never. For what predicts in place."""

import torch
from torch import Tensor

from bench.data.tokenizer import SPECIAL_TOKENS
from bench.models.cross_entropy import IGNORED

N_SPECIAL = len(SPECIAL_TOKENS)  # their ids come first


def choose_words(tokens: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw positions, special tokens last, so that every row has as many.

    Args:
        tokens: (B, T) ids.
        n: K, positions of each row.
        generator: on CPU.

    Returns:
        (B, K) positions in order; (B, K) ids that stand there, IGNORED where a special token does.
    """
    order = torch.rand(tokens.shape, generator=generator)
    order = order.masked_fill(tokens < N_SPECIAL, -1.0)
    positions = order.topk(n, dim=1).indices.sort(dim=1).values
    chosen = tokens.gather(1, positions)
    return positions, chosen.masked_fill(chosen < N_SPECIAL, IGNORED)


def places(positions: Tensor, length: int) -> Tensor:
    """Positions (B, K) of rows of `length` T -> (B K,) places b T + t, as `bench.models` wants them."""
    starts = length * torch.arange(len(positions), device=positions.device)
    return (starts[:, None] + positions).flatten()
