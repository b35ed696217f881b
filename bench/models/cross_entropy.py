"""Cross-entropy of hidden states through an output projection, computed in blocks of rows.

Logits are the largest tensor of a training step, and a plain cross-entropy passes over them some eight times
between two matrix products. Here a block of logits stays in the cache and its gradient is computed while it
is there, so that neither is ever whole in memory (as in Cut Your Losses, arXiv:2411.09009, and Liger,
arXiv:2410.10989). Shapes: N targets, D width, V vocabulary.
"""

from collections.abc import Callable
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # stands where there is no target
# Rows of a block per unit of width D: with more, the logits do not fit the cache (2 MiB at D = 64 and
# V = 4,096); with fewer, the (V, D) gradient is read and written too often. Measured at D = 64, 128 and 256.
ROWS_PER_WIDTH = 2
# Logits of a block where no cache would hold them anyway: on a GPU, which needs large products, and where no
# gradient is computed.
LOGITS_AT_ONCE = 2**28

NllAndGradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def nll_of_logits(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the weighted sum over targets of -log softmax(logits), in nats: a scalar.

    Args:
        logits: (..., V).
        targets: (...) ids; IGNORED where there is no target.
        weights: (...) of the targets; None: all 1.
    """
    flat = logits.flatten(0, -2)
    if weights is None:
        return F.cross_entropy(flat, targets.flatten(), reduction="sum", ignore_index=IGNORED)
    token_nll = F.cross_entropy(flat, targets.flatten(), reduction="none", ignore_index=IGNORED)
    return (token_nll * weights.flatten()).sum()


def nll_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute everything that lies between the two matrix products of a block.

    logits: (N, V); targets: (N, 1) ids -> (N, 1) log-probabilities of the targets, in 32 bits or more; (N, V)
    softmax minus one-hot, the gradient of the negative log-likelihood, in the precision of the logits.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)  # autocast leaves logits in 16 bits
    if torch.compiler.is_compiling():  # operations that the compiler fuses
        log_p = logits.to(wide).log_softmax(dim=1)
        is_target = torch.arange(logits.shape[1], device=logits.device) == targets
        return log_p.gather(1, targets), (log_p.exp() - is_target.to(wide)).to(logits.dtype)
    p = logits.softmax(dim=1, dtype=wide)
    # log p = z - max z + log max p: one pass of exponentials, while log_softmax and exp need two.
    z_max, p_max = logits.amax(dim=1, keepdim=True), p.amax(dim=1, keepdim=True)
    log_p = logits.gather(1, targets).to(wide) - z_max.to(wide) + p_max.log()
    return log_p, p.scatter_add_(1, targets, p.new_full(targets.shape, -1.0)).to(logits.dtype)


def nll_of_states(
    states: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    block: NllAndGradient = nll_and_gradient,
) -> Tensor:
    """Return `nll_of_logits` of `states @ weight.T + bias`, with equal value and gradients up to rounding.

    states: (..., D); weight: (V, D); bias: (V,); targets and weights as there, weights without gradient;
    block: `nll_and_gradient`, compiled or not.
    """
    states, flat = states.flatten(0, -2), targets.flatten()
    if not torch.is_grad_enabled():
        flat_weights = None if weights is None else weights.flatten()
        return _without_gradient(states, weight, bias, flat, flat_weights)
    row_weights = (flat != IGNORED).to(states)[:, None]
    if weights is not None:
        row_weights = row_weights * weights.flatten()[:, None]
    total: Tensor = _NllOfStates.apply(states, weight, bias, flat.clamp(min=0), row_weights, block)
    return total


def _without_gradient(
    states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor | None
) -> Tensor:
    n_rows = _rows_at_once(weight)
    split_weights = repeat(None) if weights is None else weights.split(n_rows)
    blocks = zip(states.split(n_rows), targets.split(n_rows), split_weights, strict=False)
    return torch.stack([nll_of_logits(F.linear(x, weight, bias), target, w) for x, target, w in blocks]).sum()


def _rows_at_once(weight: Tensor) -> int:
    return max(1, LOGITS_AT_ONCE // len(weight))


class _NllOfStates(torch.autograd.Function):
    """Compute a sum and, since the incoming gradient is only a factor, its gradients in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        row_weights: Tensor,
        block: NllAndGradient,
    ) -> Tensor:
        """states: (N, D); weight: (V, D); bias: (V,); targets: (N,); row_weights: (N, 1)."""
        n_rows = _rows_at_once(weight) if states.is_cuda else ROWS_PER_WIDTH * states.shape[1]
        d_states, d_weight, d_bias = map(torch.zeros_like, (states, weight, bias))
        total = states.new_zeros((), dtype=torch.float64)
        for start in range(0, len(states), n_rows):
            rows = slice(start, start + n_rows)
            target, share = targets[rows, None], row_weights[rows]
            # Not `addmm` with a transpose: autocast caches its copy of a weight, not of a view.
            logits = F.linear(states[rows], weight, bias)
            log_p, error = block(logits, target)
            total -= (log_p * share).sum(dtype=torch.float64)
            d_states[rows] = (error @ weight) * share
            d_weight += error.T @ (states[rows] * share)
            d_bias += error.T @ share.squeeze(1)
        ctx.save_for_backward(d_states, d_weight, d_bias)
        return total.to(torch.promote_types(states.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *d_total: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients of the forward pass."""
        return *(d_total[0] * gradient for gradient in ctx.saved_tensors), None, None, None
