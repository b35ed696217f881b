"""AdamW or Muon, the learning-rate schedule, and the rule that scales the rate with the width."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

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


def optimizer_of(
    module: nn.Module, optim: Optim, d_model: int, *, fused: bool = True
) -> torch.optim.Optimizer:
    """Return the optimizer that `optim.name` chooses, over all weights that are trained.

    fused: AdamW updates in one pass over memory; it cannot clip gradients that fp16 has scaled.
    """
    if optim.name == "adamw":
        return adamw(module, optim, d_model, fused=fused)
    matrices = _hidden_matrices(module)
    known = {id(p) for p in matrices}
    others = [p for p in _trained(module.parameters()) if id(p) not in known]
    return MuonAndAdamW(matrices, others, optim, lr_peak(optim, d_model), fused=fused)


def adamw(module: nn.Module, optim: Optim, d_model: int, *, fused: bool = True) -> torch.optim.AdamW:
    """Return AdamW; norms, biases and other vectors and scalars have no weight decay."""
    return _adamw(_trained(module.parameters()), optim, lr_peak(optim, d_model), fused=fused)


def _adamw(
    parameters: Iterable[nn.Parameter], optim: Optim, rate: float, *, fused: bool
) -> torch.optim.AdamW:
    trained = list(parameters)
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(optim.beta1, optim.beta2), fused=fused)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for hidden matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon), AdamW for the rest.

    Muon orthogonalizes the momentum of a matrix. Its updates are scaled to the root mean square of those of
    AdamW (Liu et al. 2025, arXiv:2502.16982, eq. 4), so one rate and one weight decay serve both parts. The
    groups and the state of both parts are held in one place, so schedules and checkpoints see one optimizer.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        optim: Optim,
        rate: float,
        *,
        fused: bool = True,
    ) -> None:
        muon = torch.optim.Muon(
            list(matrices), lr=rate, weight_decay=optim.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.parts = (muon, _adamw(others, optim, rate, fused=fused))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all weights once; `closure` computes the gradients and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of both parts."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Give both parts the groups and the state of the whole, which loading replaces."""
        muon, rest = self.parts
        muon.param_groups, rest.param_groups = self.param_groups[:1], self.param_groups[1:]
        muon.state = rest.state = self.state


def _hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights of linear layers in stacks of blocks; embeddings and heads lie outside of them."""
    stacks = [own for own in module.modules() if isinstance(own, nn.ModuleList)]
    linear = [own for stack in stacks for own in stack.modules() if isinstance(own, nn.Linear)]
    weights = [own for layer in linear for own in layer.parameters() if own.ndim == 2]
    return list(dict.fromkeys(_trained(weights)))


def schedule(optimizer: torch.optim.Optimizer, optim: Optim, total_steps: int) -> LambdaLR:
    """Return the schedule, to be stepped once per optimizer step."""
    return LambdaLR(optimizer, lambda step: lr_share(step, total_steps, optim))


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [p for p in parameters if p.requires_grad]
