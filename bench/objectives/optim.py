"""AdamW, its learning-rate schedule, and the rule that scales the rate with the width."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from bench.config.schema import Optim

FP16 = "16-mixed"  # its range is too small for gradients, so they are scaled


def lr_peak(optim: Optim, d_model: int) -> float:
    """Return the peak rate at a width: proportional to 1/width.

    This is muP's rule for Adam on hidden matrices (Yang et al. 2022, arXiv:2203.03466, table 3), used here
    for all parameters of all strategies.
    """
    return optim.lr_peak * optim.lr_width / d_model


def lr_share(step: int, total: int, optim: Optim) -> float:
    """Return the rate at `step` of `total`, as a share of the peak.

    `cosine`: to `final_lr_share`, reached after the last step (Loshchilov & Hutter 2017). `wsd`: constant,
    then a 1-sqrt cooldown over the last `cooldown_share` (Haegele et al. 2024, arXiv:2405.18392, eq. 1).
    """
    warmup = warmup_steps(total, optim)
    if step < warmup:
        return (step + 1) / warmup
    if optim.schedule == "wsd":
        start = cooldown_start(total, optim)
        decayed = math.sqrt(max(0.0, (step - start) / (total - start)))
        return max(optim.final_lr_share, 1.0 - decayed)
    progress = (step - warmup) / max(1, total - warmup)
    return optim.final_lr_share + (1 - optim.final_lr_share) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_steps(total: int, optim: Optim) -> int:
    """Return the steps of the warmup, which do not depend on the run's length if `warmup_tokens` is set."""
    if optim.warmup_tokens is not None:
        return max(1, round(optim.warmup_tokens / optim.tokens_per_step))
    return max(1, round(optim.warmup_share * total))


def cooldown_start(total: int, optim: Optim) -> int:
    """Return the step after which the cooldown of a `wsd` run of `total` steps begins."""
    return total - max(1, round(optim.cooldown_share * total))


def adamw(module: nn.Module, optim: Optim, d_model: int, *, fused: bool = True) -> torch.optim.AdamW:
    """Return AdamW; norms, biases and other vectors and scalars have no weight decay.

    fused: update in one pass over memory; it cannot clip gradients that fp16 has scaled.
    """
    groups = [
        {
            "params": _trained(p for p in module.parameters() if p.ndim >= 2),
            "weight_decay": optim.weight_decay,
        },
        {"params": _trained(p for p in module.parameters() if p.ndim < 2), "weight_decay": 0.0},
    ]
    betas = (optim.beta1, optim.beta2)
    return torch.optim.AdamW(groups, lr=lr_peak(optim, d_model), betas=betas, fused=fused)


def schedule(optimizer: torch.optim.Optimizer, optim: Optim, total_steps: int) -> LambdaLR:
    """Return the schedule, to be stepped once per optimizer step."""
    return LambdaLR(optimizer, lambda step: lr_share(step, total_steps, optim))


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [p for p in parameters if p.requires_grad]
