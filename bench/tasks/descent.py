"""One fit on a few items: AdamW with a tenth of warm-up and a linear decay to zero. loss -> steps."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

WEIGHT_DECAY = 0.01
WARMUP_SHARE = 0.1  # of all steps
CLIP_NORM = 1.0


def scaled(lr_at_64: float, d_model: int) -> float:
    """The peak at this width, in inverse proportion to it, as in pretraining (`bench.objectives.optim`)."""
    return lr_at_64 * 64 / d_model


def descend(
    loss: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    *,
    n_items: int,
    steps: int,
    batch_size: int,
    lr_peak: float,
    generator: torch.Generator,
    keep_going: Callable[[], None],
) -> Iterator[int]:
    """Minimise in place, a step at a time; who iterates may look at the parameters, and stop.

    Args:
        loss: of the items with these indices (B,): their mean.
        n_items: every one is seen once before any is seen twice, in an order drawn from `generator`.

    Yields:
        The number of steps done, from 1.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr_peak, weight_decay=WEIGHT_DECAY, fused=True)
    warmup = max(1, int(steps * WARMUP_SHARE))
    batch = min(batch_size, n_items)
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        keep_going()
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(n_items, generator=generator)])
        index, order = order[:batch], order[batch:]
        share = min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
        for group in optimizer.param_groups:
            group["lr"] = share * lr_peak
        optimizer.zero_grad()
        value = loss(index)
        if not math.isfinite(value.item()):
            raise FloatingPointError(f"the fit's loss is not finite at step {step}; lower its learning rate")
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        yield step + 1
