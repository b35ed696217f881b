"""Heads that predict tokens: hidden states -> logits, or their summed cross-entropy.

Shapes: D width, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from bench.models import cross_entropy
from bench.models.transformer import initialise, layer_norm


class Head(nn.Module):
    """Predicts tokens: hidden states (..., D) -> logits (..., V)."""

    def nats(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The summed cross-entropy of its logits: a scalar.

        Args:
            hidden: (..., D).
            targets: (...) ids; IGNORED counts nothing.
            weights: (...) of the targets, without gradient; None: one each.
        """
        return cross_entropy.summed(self(hidden), targets, weights)


class PredictionHead(Head):
    """ModernBERT's head: dense, GELU, norm, then a decoder tied to the embedding, with a bias."""

    errors = staticmethod(cross_entropy.errors)

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        vocab_size, d_model = embedding.weight.shape
        self.dense = nn.Linear(d_model, d_model, bias=False)
        self.norm = layer_norm(d_model)
        self.decoder = nn.Linear(d_model, vocab_size)
        initialise(self.dense, n_layers=1)
        nn.init.zeros_(self.decoder.bias)
        self.decoder.weight = embedding.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (..., D) -> logits (..., V)."""
        return self.decoder(self._before_decoder(hidden))

    def nats(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """As every head's, with no logits kept."""
        states, decoder = self._before_decoder(hidden), self.decoder
        return cross_entropy.projected(states, decoder.weight, decoder.bias, targets, weights, self.errors)

    def _before_decoder(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(hidden)))
