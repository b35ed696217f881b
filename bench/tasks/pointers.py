"""Linear pointers to the start and the end of an answer, on a model's states. windows -> logits (W, C, 2).

Shapes: W windows, B of them in a batch, C candidates of a window (see `bench.tasks.answer_windows`), D
features.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data.tokenizer import PAD
from bench.objectives.base import Attention, Objective
from bench.tasks import probe
from bench.tasks.answer_windows import Windows
from bench.tasks.meter import Meter

PENALTY = 1 / (2 * 0.1)  # of squared weights beside the summed loss: as in the probe of classification
MAX_STEPS = 100
TOLERANCE = 1e-3  # nats by weight, on a sum over windows


def states_at(model: Objective, windows: Windows, index: Tensor, attention: Attention) -> Tensor:
    """States of the candidates of windows `index` (B,) -> (B, C, D), on the model's device."""
    width = int((windows.tokens[index] != PAD).sum(dim=1).max())
    states = model.states(windows.tokens[index, :width].to(model.device), attention)  # (B, T, D)
    columns, _ = windows.candidates(index)
    return states[torch.arange(len(index))[:, None], columns]


@torch.no_grad()
def frozen_states(model: Objective, windows: Windows, attention: Attention) -> Tensor:
    """(W, C, D) on CPU, zero where padded; in batches of similar length."""
    model.eval()
    found = torch.zeros(len(windows), windows.n_candidates, model.shapes.model.d_model)
    for index in windows.length.argsort(stable=True).split(probe.EVALUATION_BATCH):
        states = states_at(model, windows, index, attention).cpu()
        _, is_real = windows.candidates(index)
        found[index, : states.shape[1]] = states * is_real[:, :, None]
    return found


@torch.no_grad()
def pointer_logits(model: Objective, head: nn.Module, windows: Windows, attention: Attention) -> Tensor:
    """(W, C, 2) of a fine-tuned model and its head; padding has no meaning."""
    found = torch.zeros(len(windows), windows.n_candidates, 2)
    for index in windows.length.argsort(stable=True).split(probe.EVALUATION_BATCH):
        logits = head(states_at(model, windows, index, attention)).cpu()
        found[index, : logits.shape[1]] = logits
    return found


def pointer_loss(logits: Tensor, is_real: Tensor, targets: Tensor) -> Tensor:
    """Summed nats of both pointers over windows.

    Args:
        logits: (B, C, 2); is_real: (B, C); targets: (B, 2) candidates.
    """
    masked = logits.masked_fill(~is_real[:, :, None], -torch.inf)
    return F.cross_entropy(masked, targets, reduction="sum")


@dataclass(frozen=True)
class Pointers:
    """Fitted to frozen states: standardised, then one weight vector each for start and end."""

    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    weight: Tensor  # (D, 2)

    def __call__(self, states: Tensor) -> Tensor:
        """(W, C, D) -> (W, C, 2)."""
        return ((states - self.mean) / self.std) @ self.weight


def fit_pointers(states: Tensor, windows: Windows, targets: Tensor, meter: Meter) -> Pointers:
    """The pointers of least penalised loss: a convex fit from zero, so nothing in it is random.

    Args:
        states: (W', C, D) of the first W' windows.
        targets: (W', 2) candidates.
        meter: told of every pass over the states.
    """
    _, is_real = windows.candidates(torch.arange(len(states)))
    states = states[:, : is_real.shape[1]]
    real = states[is_real]  # (P, D)
    mean, std = real.mean(dim=0), real.std(dim=0)
    std = torch.where(std > 1e-6 * mean.abs() + 1e-12, std, torch.ones_like(std))  # a constant says nothing
    standard = (states - mean) / std
    weight = torch.zeros(states.shape[2], 2, requires_grad=True)
    fit = torch.optim.LBFGS(
        [weight], max_iter=MAX_STEPS, tolerance_grad=TOLERANCE, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        fit.zero_grad()
        value = pointer_loss(standard @ weight, is_real, targets) + PENALTY * weight.square().sum()
        value.backward()
        meter.add(2 * real.numel() * 2)  # a multiply-add for each feature and pointer
        return value

    with torch.enable_grad():
        fit.step(loss)
    return Pointers(mean, std, weight.detach())
