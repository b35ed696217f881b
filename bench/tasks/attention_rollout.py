"""Attention rollout for a chosen text (Abnar & Zuidema 2020, arXiv:2005.00928, sec. 3).

How much of each token's last state comes from each token of the text, if attention were all that mixes them:
the product over layers of 0.5 A + 0.5 I, A the layer's attention, mean over heads. It describes and is no
verdict: nothing is better or worse. A causal model's early tokens have few others to draw on: compare scores
among strategies that attend alike.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from omegaconf import MISSING
from torch import Tensor

from bench.errors import ConfigError, InapplicableError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.probe import encode

BEFORE, END = "[before the text]", "[end]"  # BEFORE: a checkpoint's own opening token, such as [CLS]
ROUNDING = 1e-4  # of a row's sum


@runtime_checkable
class Attentive(Protocol):
    """A backbone that shows its attention."""

    n_before: int  # tokens of its own that stand before every text

    def recorded_attention(self) -> AbstractContextManager[list[Tensor]]:
        """A list that passes inside fill with the layers' weights, each (B, H, T, T)."""
        ...


class AttentionRollout(Task):
    """One text, with the strategy's own attention."""

    @dataclass(frozen=True)
    class Options:
        """The text."""

        text: str = MISSING  # tokens past sequence_length are left out, and counted

        def __post_init__(self) -> None:
            if not self.text.strip():
                raise ConfigError("task.*.text is empty; give a text to look at")

    options: Options

    @torch.no_grad()
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Means over the text's T tokens: entropy in bits of what a token draws on, its shares from the first
        token and from itself.

        T counts the closing token, and what a checkpoint puts before a text. The matrix is the item
        `rollout`, (T, T): row i is what token i draws on; samples name the tokens, in order.
        """
        if not (model.has_weights and isinstance(model.backbone, Attentive)):
            raise InapplicableError("shows no attention")
        tokens = encode([self.options.text], setting.tokenizer, setting.sequence_length)
        before = model.backbone.n_before
        names = [BEFORE] * before + [setting.tokenizer.decode([i]) for i in tokens[0].tolist()[:-1]] + [END]
        model.eval()
        with model.backbone.recorded_attention() as layers:
            model.states(tokens.to(model.device))
        mixed = rollout(_means(layers, len(names)))  # (T, T)
        n_left_out = len(setting.tokenizer.encode(self.options.text).ids) - (tokens.shape[1] - 1)
        items = {
            "entropy_bits": torch.special.entr(mixed).sum(dim=1) / torch.log(torch.tensor(2.0)).double(),
            "share_from_first": mixed[:, 0],
            "share_from_self": mixed.diagonal(),
        }
        scores = [
            Measured(name, float(values.mean()), None, len(values), higher_is_better=None)
            for name, values in items.items()
        ]
        return Outcome(
            scores,
            {name: values.numpy() for name, values in items.items()} | {"rollout": mixed.numpy()},
            {"token past sequence_length": n_left_out} if n_left_out else {},
            [{"token": name} for name in names],
        )


def rollout(layers: Sequence[Tensor]) -> Tensor:
    """Attention of each layer (T, T), the first layer first -> their rollout (T, T), rows sum to one."""
    identity = torch.eye(len(layers[0]), dtype=layers[0].dtype)
    mixed = identity
    for weights in layers:
        mixed = (0.5 * weights + 0.5 * identity) @ mixed  # half of a state is what the residual carries
    return mixed


def _means(layers: Sequence[Tensor], length: int) -> list[Tensor]:
    """Weights (1, H, T', T') -> their means over heads (T, T), without padding."""
    found = [layer[0].mean(dim=0)[:length, :length].double().cpu() for layer in layers]
    is_whole = all((layer.sum(dim=-1) - 1).abs().max() < ROUNDING for layer in found)
    if not found or not is_whole or any(layer.shape != (length, length) for layer in found):
        raise InapplicableError("its architecture shows no attention of whole texts")
    return found
