"""Rotary position embedding (RoPE, arXiv:2104.09864) of all queries and keys at once.

Shapes: B batch, T tokens, D width, H heads.
"""

from typing import Any

import torch
from torch import Tensor, nn

ROPE_THETA = 160_000.0  # ModernBERT's full-attention layers


class Rope(nn.Module):
    """Rotary position embedding over the full head width, rotate-half convention."""

    def __init__(self, head_dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.frequencies: Tensor
        frequencies = ROPE_THETA ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """cos (T, 2 H, D/H), the same for all heads, and sin (T, 1, D/2H), of half a head.

        Computed once per forward pass, shared by all layers. The cosines stand side by side for every query
        and key head, so that they are multiplied in long rows.
        """
        positions = torch.arange(length, device=self.frequencies.device, dtype=torch.float32)
        angles = torch.outer(positions, self.frequencies)[:, None]  # (T, 1, D/2H)
        return angles.cos().repeat(1, 2 * self.n_heads, 2), angles.sin()


def rotated_heads(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `RotatedHeads`, in steps that a compiler can fuse: it does not follow writes into parts."""
    turned, v = qkv.tensor_split([cos.shape[1]], dim=2)
    a, b = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-b * sin, a * sin], dim=-1)
    q, k = turned.transpose(1, 2).chunk(2, dim=1)
    return q, k, v.transpose(1, 2)


class RotatedHeads(torch.autograd.Function):
    """Queries and keys, turned by RoPE, and values, in half the passes over memory that autograd takes.

    Both halves (a, b) of a head turn: (a cos - b sin, b cos + a sin). Its backward turns the other way, and
    writes the three gradients into one.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """qkv: (B, T, 3 H, D/H); cos and sin as `Rope.tables` gives them -> three (B, H, T, D/H)."""
        ctx.save_for_backward(cos, sin)
        n_turned = cos.shape[1]
        turned = torch.empty_like(qkv[:, :, :n_turned], memory_format=torch.contiguous_format)
        _turn(qkv[:, :, :n_turned], cos, sin, 1, turned)
        q, k = turned.transpose(1, 2).chunk(2, dim=1)
        return q, k, qkv[:, :, n_turned:].transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The tables have no gradient."""
        cos, sin = ctx.saved_tensors
        q, k, v = (gradient.transpose(1, 2) for gradient in gradients)  # (B, T, H, D/H)
        batch, length, n_heads, width = v.shape
        found = v.new_empty(batch, length, 3 * n_heads, width)
        for part, own in zip((q, k), found.chunk(3, dim=2), strict=False):
            _turn(part, cos[:, :n_heads], sin, -1, own)
        found[:, :, 2 * n_heads :] = v
        return found, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int, turned: Tensor) -> None:
    """Write x (B, T, heads, D/H), turned by the angles or back, into `turned`."""
    (a, b), (left, right) = x.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    torch.mul(x, cos, out=turned)
    left.addcmul_(b, sin, value=-sign)
    right.addcmul_(a, sin, value=sign)
