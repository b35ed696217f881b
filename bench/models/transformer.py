"""The shared backbone: a pre-norm Transformer shaped like ModernBERT (arXiv:2412.13663).

RoPE (arXiv:2104.09864), GeGLU (arXiv:2002.05202), LayerNorm, no biases. Every detail (a norm after the
embedding and none before the first attention, GELU on the first half of the gate, theta, init) is what
Hugging Face's ModernBert classes compute, so that causal and bidirectional weights export exactly.
Shapes: B batch, T tokens, D width, H heads, F feed-forward width, V vocabulary.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config.schema import Model
from bench.models.rope import Rope, RotatedHeads, rotated_heads

NORM_EPS = 1e-5
INIT_STD = 0.02


def layer_norm(d_model: int) -> nn.LayerNorm:
    """LayerNorm without bias, as everywhere in ModernBERT."""
    return nn.LayerNorm(d_model, eps=NORM_EPS, bias=False)


def states_at(x: Tensor, at: Tensor | None) -> Tensor:
    """States at some places.

    Args:
        x: (B, T, D).
        at: (N,) places b T + t; None: all of them.

    Returns:
        (N, D), or x.
    """
    return x if at is None else x.flatten(0, 1).index_select(0, at)


class Attention(nn.Module):
    """Multi-head self-attention through PyTorch's fused kernel. A mask is True where attended."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.n_heads = model.n_heads
        self.Wqkv = nn.Linear(model.d_model, 3 * model.d_model, bias=False)
        self.Wo = nn.Linear(model.d_model, model.d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        causal: bool,
        at: Tensor | None = None,
    ) -> Tensor:
        """x: (B, T, D); mask: (B, 1, 1 or T, T) bool or None -> (B, T, D), or (N, D) as in `states_at`."""
        q, k, v = self._project(x, rope)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.Wo(states_at(mixed.transpose(1, 2).flatten(2), at))

    def weights(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, causal: bool) -> Tensor:
        """What the fused kernel mixes values by and does not give: (B, H, T, T), rows sum to one."""
        q, k, _ = self._project(x, rope)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return scores.softmax(dim=-1)

    def _project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated, and values: each (B, H, T, D/H)."""
        heads = self.Wqkv(x).unflatten(-1, (3 * self.n_heads, -1))  # (B, T, 3 H, D/H)
        if torch.compiler.is_compiling():
            return rotated_heads(heads, *rope)
        q, k, v = RotatedHeads.apply(heads, *rope)
        return q, k, v


class GatedMlp(nn.Module):
    """GeGLU: Wo(gelu(a) * b) with (a, b) = Wi(x)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.Wi = nn.Linear(model.d_model, 2 * model.d_ff, bias=False)
        self.Wo = nn.Linear(model.d_ff, model.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, D) -> (B, T, D)."""
        a, b = self.Wi(x).chunk(2, dim=-1)
        return self.Wo(F.gelu(a) * b)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, model: Model, *, first: bool) -> None:
        super().__init__()
        # The embedding has just been normalised: a second norm would be the identity.
        self.attn_norm = nn.Identity() if first else layer_norm(model.d_model)
        self.attn = Attention(model)
        self.mlp_norm = layer_norm(model.d_model)
        self.mlp = GatedMlp(model)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        causal: bool,
        dropout: float,
        at: Tensor | None = None,
    ) -> Tensor:
        """x: (B, T, D) -> (B, T, D), or (N, D) as in `states_at`."""
        mixed = self.attn(self.attn_norm(x), rope, mask, causal, at=at)
        x = states_at(x, at) + F.dropout(mixed, dropout)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), dropout)


class Blocks(nn.Module):
    """The stack that text and images share: embedding norm, blocks, final norm."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embedding_norm = layer_norm(model.d_model)
        self.layers = nn.ModuleList(Block(model, first=i == 0) for i in range(model.n_layers))
        self.final_norm = layer_norm(model.d_model)
        self.rope = Rope(model.d_model // model.n_heads, model.n_heads)

    def forward(
        self,
        embedded: Tensor,
        attended: Tensor | None = None,
        *,
        causal: bool = False,
        prefix: Tensor | None = None,
        dropout: float = 0.0,
        every_layer: bool = False,
        at: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of embedded inputs.

        Args:
            embedded: (B, T, D).
            attended: (B, T) bool, False at padding, which must be on the right; None: no padding.
            causal: each position sees itself and what is left of it.
            prefix: (B,) positions at the start that see one another; what follows is causal. Wins over the
                two above: no real token sees padding on its right, unless it lies in the prefix.
            dropout: share of each block's output set to zero, from torch's global generator.
            every_layer: also what goes into the first block and what comes out of each of the L.
            at: (N,) the places that are wanted, as in `states_at`. What the last block does behind its
                attention is done for them alone: no other position reads it. Not with `every_layer`.

        Returns:
            (B, T, D), or (N, D) `at` places, or (L + 1, B, T, D), where the last alone has gone through the
            final norm, as transformers' `output_hidden_states` has it. Values at padding are meaningless.
        """
        # Under a causal mask no real token can see padding on its right: no second mask is needed.
        mask = None if attended is None or causal else attended[:, None, None, :]
        if prefix is not None:
            mask, causal = prefix_mask(prefix, embedded.shape[1]), False
        rope = self.rope.tables(embedded.shape[1])
        x = self.embedding_norm(embedded)
        inputs = []
        for i, layer in enumerate(self.layers, start=1):
            if every_layer:
                inputs.append(x)
            x = layer(x, rope, mask, causal, dropout, at if i == len(self.layers) else None)
        x = self.final_norm(x)
        return torch.stack([*inputs, x]) if every_layer else x


def prefix_mask(prefix: Tensor, length: int) -> Tensor:
    """(B,) prefix lengths -> (B, 1, T, T) bool: the prefix in full, then left to right (T5, sec. 3.2.1)."""
    positions = torch.arange(length, device=prefix.device)
    causal = positions[:, None] >= positions[None, :]  # (T, T)
    return (causal | (positions < prefix[:, None])[:, None, :])[:, None]


class Transformer(nn.Module):
    """The text backbone: token embedding and blocks.

    `n_extra` ids behind the tokenizer's own are a strategy's (sentinels, modes); they are drawn last, so that
    all other weights of a seed are the same for every strategy.
    """

    n_before = 0  # tokens of its own that stand before every text

    def __init__(self, model: Model, vocab_size: int, n_extra: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, model.d_model)
        self.blocks = Blocks(model)
        initialise(self, model.n_layers)
        if n_extra:
            extra = truncated_normal(torch.empty(n_extra, model.d_model))
            self.embedding = nn.Embedding.from_pretrained(
                torch.cat([self.embedding.weight.detach(), extra]), freeze=False
            )

    def forward(
        self,
        tokens: Tensor,
        attended: Tensor | None = None,
        *,
        causal: bool,
        prefix: Tensor | None = None,
        dropout: float = 0.0,
        every_layer: bool = False,
        at: Tensor | None = None,
    ) -> Tensor:
        """tokens: (B, T) ids; attended: (B, T) bool or None -> (B, T, D). See `Blocks.forward`."""
        how = {"prefix": prefix, "dropout": dropout, "every_layer": every_layer, "at": at}
        return self.blocks(self.embedding(tokens), attended, causal=causal, **how)

    @contextlib.contextmanager
    def recorded_attention(self) -> Iterator[list[Tensor]]:
        """Attention weights of the passes inside, layer after layer: each (B, H, T, T).

        The list is filled as passes happen, by the masks that they use.
        """
        found: list[Tensor] = []

        def record(layer: Attention, inputs: tuple[Any, ...], output: Tensor) -> None:
            found.append(layer.weights(*inputs))

        layers = [module for module in self.modules() if isinstance(module, Attention)]
        handles = [layer.register_forward_hook(record) for layer in layers]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def initialise(module: nn.Module, n_layers: int) -> None:
    """Truncated normal of 0.02; the matrices that write to the residual scaled by 1/sqrt(2 L) (GPT-2)."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear | nn.Embedding | nn.Conv2d):
            writes_to_residual = name.endswith("Wo")
            std = INIT_STD / math.sqrt(2 * n_layers) if writes_to_residual else INIT_STD
            truncated_normal(child.weight, std)


def truncated_normal(weight: Tensor, std: float = INIT_STD) -> Tensor:
    """Fill `weight` from a normal cut off at two standard deviations, and return it."""
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
