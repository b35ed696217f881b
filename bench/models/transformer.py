"""The backbone that all strategies share: a pre-norm Transformer shaped like ModernBERT (arXiv:2412.13663).

RoPE (arXiv:2104.09864), GeGLU (arXiv:2002.05202), LayerNorm, no biases. Every detail (a norm after the
embedding and none before the first attention, GELU on the first half of the gate, theta, initialisation) is
computed as in Hugging Face's ModernBert classes, so that causal and bidirectional weights export exactly.
Shapes: B batch, T tokens, D width, H heads, F feed-forward width, V vocabulary.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from bench.config.schema import Model

NORM_EPS = 1e-5
INIT_STD = 0.02
ROPE_THETA = 160_000.0  # ModernBERT's full-attention layers
EVERY = -1  # document number of a token to which all documents of its row attend
MIN_FLEX_WIDTH = 16  # of a head, in PyTorch's flex attention
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (row, head, query, key) -> may attend


class Rope(nn.Module):
    """Rotary position embedding over the full head width, rotate-half convention."""

    def __init__(self, head_dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.frequencies: Tensor
        frequencies = ROPE_THETA ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """Return cosines (T, 2 H, D/H) and sines (T, 1, D/2H), computed once per forward pass.

        The cosines, the same for all heads, are repeated for every query and key head and for both halves of
        a head, because multiplying long contiguous rows is faster.
        """
        positions = torch.arange(length, device=self.frequencies.device, dtype=torch.float32)
        angles = torch.outer(positions, self.frequencies)[:, None]  # (T, 1, D/2H)
        return angles.cos().repeat(1, 2 * self.n_heads, 2), angles.sin()


def rotated_heads(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `RotatedHeads` with operations that a compiler can fuse: it cannot follow in-place writes."""
    rotated, v = qkv.tensor_split([cos.shape[1]], dim=2)
    a, b = rotated.chunk(2, dim=-1)
    rotated = rotated * cos + torch.cat([-b * sin, a * sin], dim=-1)
    q, k = rotated.transpose(1, 2).chunk(2, dim=1)
    return q, k, v.transpose(1, 2)


class RotatedHeads(torch.autograd.Function):
    """Apply RoPE to queries and keys, in half the passes over memory that autograd would need.

    Both halves (a, b) of a head are rotated: (a cos - b sin, b cos + a sin). The backward pass rotates by the
    opposite angles and writes the three gradients into one tensor.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """qkv: (B, T, 3 H, D/H); cos and sin from `Rope.tables` -> q, k, v, each (B, H, T, D/H)."""
        ctx.save_for_backward(cos, sin)
        n_rotated = cos.shape[1]
        rotated = torch.empty_like(qkv[:, :, :n_rotated], memory_format=torch.contiguous_format)
        _rotate(qkv[:, :, :n_rotated], cos, sin, 1, rotated)
        q, k = rotated.transpose(1, 2).chunk(2, dim=1)
        return q, k, qkv[:, :, n_rotated:].transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The tables have no gradient."""
        cos, sin = ctx.saved_tensors
        q, k, v = (gradient.transpose(1, 2) for gradient in gradients)  # (B, T, H, D/H)
        batch, length, n_heads, width = v.shape
        gradient = v.new_empty(batch, length, 3 * n_heads, width)
        for part, out in zip((q, k), gradient.chunk(3, dim=2), strict=False):
            _rotate(part, cos[:, :n_heads], sin, -1, out)
        gradient[:, :, 2 * n_heads :] = v
        return gradient, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int, out: Tensor) -> None:
    """Write x (B, T, heads, D/H), rotated by the angles (sign 1) or back (sign -1), into `out`."""
    (a, b), (left, right) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(x, cos, out=out)
    left.addcmul_(b, sin, value=-sign)
    right.addcmul_(a, sin, value=sign)


def layer_norm(d_model: int) -> nn.LayerNorm:
    """Return a LayerNorm without bias, as everywhere in ModernBERT."""
    return nn.LayerNorm(d_model, eps=NORM_EPS, bias=False)


def states_at(x: Tensor, at: Tensor | None) -> Tensor:
    """Select hidden states: x (B, T, D) and flat indices `at` (N,) -> (N, D); all of x where `at` is None."""
    return x if at is None else x.flatten(0, 1).index_select(0, at)


def flat_indices(positions: Tensor, length: int) -> Tensor:
    """Return indices b T + t into flattened rows: (B, K) positions t in rows of `length` T -> (B K,)."""
    starts = length * torch.arange(len(positions), device=positions.device)
    return (starts[:, None] + positions).flatten()


class Attention(nn.Module):
    """Multi-head self-attention by PyTorch's fused kernels. A mask is True where a token is attended to."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.n_heads = model.n_heads
        self.Wqkv = nn.Linear(model.d_model, 3 * model.d_model, bias=False)
        self.Wo = nn.Linear(model.d_model, model.d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | BlockMask | None,
        causal: bool,
        at: Tensor | None = None,
    ) -> Tensor:
        """x: (B, T, D); mask: (B, 1, 1 or T, T) bool or None -> (B, T, D), or (N, D) as in `states_at`."""
        q, k, v = self._project(x, rope)
        if isinstance(mask, BlockMask):
            mixed = _compiled_flex_attention()(q, k, v, block_mask=mask)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.Wo(states_at(mixed.transpose(1, 2).flatten(2), at))

    def weights(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, causal: bool) -> Tensor:
        """Return the attention weights, which the fused kernel does not: (B, H, T, T), rows sum to one."""
        q, k, _ = self._project(x, rope)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return scores.softmax(dim=-1)

    def _project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries, rotated keys, and values: each (B, H, T, D/H)."""
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
        mask: Tensor | BlockMask | None,
        causal: bool,
        dropout: float,
        at: Tensor | None = None,
    ) -> Tensor:
        """x: (B, T, D) -> (B, T, D), or (N, D) as in `states_at`."""
        mixed = self.attn(self.attn_norm(x), rope, mask, causal, at=at)
        x = states_at(x, at) + F.dropout(mixed, dropout)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), dropout)


class Blocks(nn.Module):
    """The stack used for text and for images: embedding norm, blocks, final norm."""

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
        documents: Tensor | None = None,
        dropout: float = 0.0,
        every_layer: bool = False,
        at: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states of embedded inputs.

        Args:
            embedded: (B, T, D).
            attended: (B, T) bool, False at padding, which must be on the right; None: no padding.
            causal: each token attends to itself and to the tokens on its left.
            prefix: (B,) lengths of the prefix, whose tokens attend to each other; the rest is causal. It
                replaces `attended` and `causal`: no real token attends to padding outside the prefix.
            documents: (B, T) number of the document of each token, in rows without padding. Tokens attend
                within their own document, and to tokens of the number `EVERY`. Positions are relative, so a
                document's states are those of the document alone.
            dropout: share of each block's output set to zero, drawn from torch's global generator.
            every_layer: also return the input of the first block and the output of each of the L blocks.
            at: (N,) flat indices of the states to return, as in `states_at`. The last block computes its
                output projection and feed-forward for them only. Not with `every_layer`.

        Returns:
            (B, T, D), or (N, D) with `at`, or (L + 1, B, T, D) with `every_layer`, where only the last has
            gone through the final norm, as in transformers' `output_hidden_states`. Values at padding are
            undefined.
        """
        # Under a causal mask no real token attends to padding on its right: no second mask is needed.
        mask: Tensor | BlockMask | None = None if attended is None or causal else attended[:, None, None, :]
        if documents is not None:
            rule = rule_within(documents, causal=causal, prefix=prefix)
            mask, causal = self._mask(rule, embedded), False
        elif prefix is not None:
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

    def _mask(self, rule: Rule, embedded: Tensor) -> Tensor | BlockMask:
        """Return the mask of a rule for embedded inputs (B, T, D), in the form that suits the device.

        Flex attention skips blocks of tokens that do not attend to each other. Its kernels are for GPUs, on
        which this has not been measured.
        """
        n_rows, length = embedded.shape[:2]
        if embedded.is_cuda and 2 * len(self.rope.frequencies) >= MIN_FLEX_WIDTH:
            return create_block_mask(rule, n_rows, None, length, length, device=str(embedded.device))
        return dense_mask(rule, n_rows, length, embedded.device)


@cache
def _compiled_flex_attention() -> Any:
    """Return flex attention as one kernel; without compilation it stores all scores."""
    return torch.compile(flex_attention)


def rule_within(documents: Tensor, *, causal: bool, prefix: Tensor | None = None) -> Rule:
    """Return the rule by which tokens attend within their documents; see `Blocks.forward`.

    documents: (B, T) numbers; prefix: (B,) lengths or None. The rule maps indices that broadcast to bool.
    """

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_key = documents[row, key]
        within = (documents[row, query] == of_key) | (of_key == EVERY)
        if prefix is not None:
            return within & ((key <= query) | (key < prefix[row]))
        return within & (key <= query) if causal else within

    return rule


def dense_mask(rule: Rule, n_rows: int, length: int, device: torch.device) -> Tensor:
    """Return a rule as a mask: (B, 1, T, T) bool."""
    rows, tokens = torch.arange(n_rows, device=device), torch.arange(length, device=device)
    return rule(rows[:, None, None], rows[:1], tokens[:, None], tokens)[:, None]


def prefix_mask(prefix: Tensor, length: int) -> Tensor:
    """Return the mask of a prefix LM (T5, sec. 3.2.1): (B,) prefix lengths -> (B, 1, T, T) bool."""
    positions = torch.arange(length, device=prefix.device)
    causal = positions[:, None] >= positions[None, :]  # (T, T)
    return (causal | (positions < prefix[:, None])[:, None, :])[:, None]


class Transformer(nn.Module):
    """The text backbone: token embedding and blocks.

    A strategy's own `n_extra` ids (sentinels, modes) follow those of the tokenizer. Their embeddings are
    drawn last, so that for one seed all other weights are the same in every strategy.
    """

    n_before = 0  # tokens that the model itself puts before every text

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
        documents: Tensor | None = None,
        dropout: float = 0.0,
        every_layer: bool = False,
        at: Tensor | None = None,
    ) -> Tensor:
        """tokens: (B, T) ids; attended: (B, T) bool or None -> (B, T, D). See `Blocks.forward`."""
        how = {
            "prefix": prefix,
            "documents": documents,
            "dropout": dropout,
            "every_layer": every_layer,
            "at": at,
        }
        return self.blocks(self.embedding(tokens), attended, causal=causal, **how)

    @contextlib.contextmanager
    def recorded_attention(self) -> Iterator[list[Tensor]]:
        """Record the attention weights of forward passes inside the block, layer by layer: (B, H, T, T)."""
        recorded: list[Tensor] = []

        def record(layer: Attention, inputs: tuple[Any, ...], output: Tensor) -> None:
            recorded.append(layer.weights(*inputs))

        layers = [module for module in self.modules() if isinstance(module, Attention)]
        handles = [layer.register_forward_hook(record) for layer in layers]
        try:
            yield recorded
        finally:
            for handle in handles:
                handle.remove()


def initialise(module: nn.Module, n_layers: int) -> None:
    """Draw weights from a truncated normal; matrices that write to the residual are scaled as in GPT-2."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear | nn.Embedding | nn.Conv2d):
            writes_to_residual = name.endswith("Wo")
            std = INIT_STD / math.sqrt(2 * n_layers) if writes_to_residual else INIT_STD
            truncated_normal(child.weight, std)


def truncated_normal(weight: Tensor, std: float = INIT_STD) -> Tensor:
    """Fill `weight` from a normal cut off at two standard deviations, and return it."""
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
