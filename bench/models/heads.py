"""What is read from hidden states: token logits, their summed cross-entropy, or one feature vector per text.

Shapes: B texts, T tokens, D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from bench.models import cross_entropy
from bench.models.transformer import initialise, layer_norm


class Head(nn.Module):
    """Predict tokens: hidden states (..., D) -> logits (..., V)."""

    def summed_nll(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the summed cross-entropy of the logits, in nats: a scalar.

        Args:
            hidden: (..., D).
            targets: (...) ids; IGNORED where there is no target.
            weights: (...) of the targets, without gradient; None: all 1.
        """
        return cross_entropy.nll_of_logits(self(hidden), targets, weights)


class PredictionHead(Head):
    """ModernBERT's head: dense, GELU, norm, then a decoder tied to the embedding, with a bias."""

    nll_and_gradient = staticmethod(cross_entropy.nll_and_gradient)

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

    @override
    def summed_nll(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        states, decoder = self._before_decoder(hidden), self.decoder
        return cross_entropy.nll_of_states(
            states, decoder.weight, decoder.bias, targets, weights, self.nll_and_gradient
        )

    def _before_decoder(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(hidden)))


def pool(hidden: Tensor, attended: Tensor, how: str) -> Tensor:
    """Pool hidden states (B, T, D) to features (B, D), ignoring padding.

    Args:
        hidden: (B, T, D).
        attended: (B, T) bool, True on the left, at one token or more per row; False at padding.
        how: mean, last or first.
    """
    if how == "first":
        return hidden[:, 0]
    n_attended = attended.sum(dim=1)
    if how == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), n_attended - 1]
    kept = hidden.masked_fill(~attended[:, :, None], 0.0)
    return kept.sum(dim=1) / n_attended[:, None]
