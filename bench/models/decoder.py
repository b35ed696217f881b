"""The decoder of an encoder-decoder: the backbone's block with cross-attention in its middle.

As in T5 (arXiv:1910.10683, sec. 2.1), cross-attention uses no positions: the encoder's states carry them.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from bench.config.schema import Model
from bench.models.transformer import Attention, GatedMlp, Rope, initialise, layer_norm


class CrossAttention(nn.Module):
    """Multi-head attention from the decoder's T tokens to the encoder's S."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.n_heads = model.n_heads
        self.Wq = nn.Linear(model.d_model, model.d_model, bias=False)
        self.Wkv = nn.Linear(model.d_model, 2 * model.d_model, bias=False)
        self.Wo = nn.Linear(model.d_model, model.d_model, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, T, D); context: (B, S, D) -> (B, T, D)."""
        batch, length, width = x.shape
        split = (batch, -1, self.n_heads, width // self.n_heads)
        q = self.Wq(x).view(split).transpose(1, 2)  # (B, H, T, D/H)
        k, v = (part.reshape(split).transpose(1, 2) for part in self.Wkv(context).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.Wo(mixed.transpose(1, 2).reshape(batch, length, width))


class DecoderBlock(nn.Module):
    """Pre-norm causal self-attention, cross-attention and feed-forward, each with a residual."""

    def __init__(self, model: Model, *, first: bool) -> None:
        super().__init__()
        self.attn_norm = nn.Identity() if first else layer_norm(model.d_model)
        self.attn = Attention(model)
        self.cross_norm = layer_norm(model.d_model)
        self.cross = CrossAttention(model)
        self.mlp_norm = layer_norm(model.d_model)
        self.mlp = GatedMlp(model)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], context: Tensor) -> Tensor:
        """x: (B, T, D); context: (B, S, D) -> (B, T, D)."""
        x = x + self.attn(self.attn_norm(x), rope, None, causal=True)
        x = x + self.cross(self.cross_norm(x), context)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """The stack of blocks between an embedding norm and a final norm; the embedding is the encoder's."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embedding_norm = layer_norm(model.d_model)
        self.layers = nn.ModuleList(DecoderBlock(model, first=i == 0) for i in range(model.n_layers))
        self.final_norm = layer_norm(model.d_model)
        self.rope = Rope(model.d_model // model.n_heads, model.n_heads)
        initialise(self, model.n_layers)

    def forward(self, embedded: Tensor, context: Tensor) -> Tensor:
        """embedded: (B, T, D) targets so far; context: (B, S, D) of the encoder -> (B, T, D)."""
        rope = self.rope.tables(embedded.shape[1])
        x = self.embedding_norm(embedded)
        for layer in self.layers:
            x = layer(x, rope, context)
        return self.final_norm(x)
