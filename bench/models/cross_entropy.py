"""Cross-entropy of states through an output projection, a block of rows at a time. (N, D) states -> nats.

Logits are a step's largest tensor, and a plain cross-entropy passes over them some eight times between two
matrix products. A block of them stays in the cache, and its gradient is taken while it is there, so that
neither is ever whole in memory (as in Cut Your Losses, arXiv:2411.09009, and Liger, arXiv:2410.10989).
Shapes: N targets, D width, V vocabulary.
"""

from collections.abc import Callable
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # a position that holds no target
# Rows of a block, for each of a state's D values: with more the logits leave the cache (2 MiB at D = 64 and
# V = 4,096), with fewer the (V, D) gradient is read and written too often. Measured at D = 64, 128 and 256.
ROWS_PER_WIDTH = 2
# Logits of a block where no cache would hold them anyway: on a GPU, which wants large products, and where no
# gradient is asked for.
LOGITS_AT_ONCE = 2**28

Errors = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def summed(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """From logits: the plain way.

    Args:
        logits: (..., V).
        targets: (...) ids; IGNORED counts nothing.
        weights: (...) of the targets; None: one each.

    Returns:
        The sum over targets of -log softmax(logits), in nats: a scalar.
    """
    flat = logits.flatten(0, -2)
    if weights is None:
        return F.cross_entropy(flat, targets.flatten(), reduction="sum", ignore_index=IGNORED)
    nats = F.cross_entropy(flat, targets.flatten(), reduction="none", ignore_index=IGNORED)
    return (nats * weights.flatten()).sum()


def errors(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What a block of logits gives: all that is done between two matrix products.

    Args:
        logits: (N, V).
        targets: (N, 1) ids.

    Returns:
        (N, 1) log-probabilities of the targets, in 32 bits or more; (N, V) softmax minus one-hot, which is
        the gradient of the nats, as precise as the logits.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)  # autocast leaves logits in 16 bits
    if torch.compiler.is_compiling():  # in steps that it fuses
        log_p = logits.to(wide).log_softmax(dim=1)
        is_target = torch.arange(logits.shape[1], device=logits.device) == targets
        return log_p.gather(1, targets), (log_p.exp() - is_target.to(wide)).to(logits.dtype)
    p = logits.softmax(dim=1, dtype=wide)
    # log p = z - max z + log max p: one pass of exponentials where log_softmax and exp take two.
    z_max, p_max = logits.amax(dim=1, keepdim=True), p.amax(dim=1, keepdim=True)
    log_p = logits.gather(1, targets).to(wide) - z_max.to(wide) + p_max.log()
    return log_p, p.scatter_add_(1, targets, p.new_full(targets.shape, -1.0)).to(logits.dtype)


def projected(
    states: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    errors: Errors = errors,
) -> Tensor:
    """As `summed`, of `states @ weight.T + bias`: equal to it within rounding, gradients too.

    Args:
        states: (..., D).
        weight: (V, D).
        bias: (V,).
        targets: as `summed` takes them.
        weights: likewise, without gradient.
        errors: the function of this name, compiled or not.
    """
    states, flat = states.flatten(0, -2), targets.flatten()
    if not torch.is_grad_enabled():
        shares = None if weights is None else weights.flatten()
        return _without_gradient(states, weight, bias, flat, shares)
    share = (flat != IGNORED).to(states)[:, None]
    if weights is not None:
        share = share * weights.flatten()[:, None]
    total: Tensor = _Projected.apply(states, weight, bias, flat.clamp(min=0), share, errors)
    return total


def _without_gradient(
    states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor | None
) -> Tensor:
    n_rows = _rows_at_once(weight)
    shares = repeat(None) if weights is None else weights.split(n_rows)
    blocks = zip(states.split(n_rows), targets.split(n_rows), shares, strict=False)
    return torch.stack(
        [summed(F.linear(x, weight, bias), target, share) for x, target, share in blocks]
    ).sum()


def _rows_at_once(weight: Tensor) -> int:
    return max(1, LOGITS_AT_ONCE // len(weight))


class _Projected(torch.autograd.Function):
    """The gradient of a sum is known up to a factor as soon as the sum is: it is taken on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        weights: Tensor,
        errors: Errors,
    ) -> Tensor:
        """states: (N, D); weight: (V, D); bias: (V,); targets: (N,); weights: (N, 1)."""
        n_rows = _rows_at_once(weight) if states.is_cuda else ROWS_PER_WIDTH * states.shape[1]
        of_states, of_weight, of_bias = map(torch.zeros_like, (states, weight, bias))
        total = states.new_zeros((), dtype=torch.float64)
        for start in range(0, len(states), n_rows):
            rows = slice(start, start + n_rows)
            target, share = targets[rows, None], weights[rows]
            # Not `addmm` with a transpose: autocast keeps its copy of a weight, not of a view.
            logits = F.linear(states[rows], weight, bias)
            log_p, error = errors(logits, target)
            total -= (log_p * share).sum(dtype=torch.float64)
            of_states[rows] = (error @ weight) * share
            of_weight += error.T @ (states[rows] * share)
            of_bias += error.T @ share.squeeze(1)
        ctx.save_for_backward(of_states, of_weight, of_bias)
        return total.to(torch.promote_types(states.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *of_total: Tensor) -> tuple[Tensor | None, ...]:
        """A scalar times what is known."""
        return *(of_total[0] * gradient for gradient in ctx.saved_tensors), None, None, None
