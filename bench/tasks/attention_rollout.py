"""Attention rollout for a given text (Abnar & Zuidema 2020, arXiv:2005.00928, sec. 3).

The rollout estimates how much of each token's last state comes from each token of the text, as if only
attention mixed them: the product over layers of 0.5 A + 0.5 I, where A is the layer's attention, averaged
over heads. It is descriptive; no value is better than another. Early tokens of a causal model attend to few
tokens, so compare only strategies with the same attention mask.
Shapes: T tokens, H heads.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from typing_extensions import override

from bench.errors import InapplicableError
from bench.objectives.base import Objective
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.options import AttentionRolloutOptions
from bench.tasks.probe import encode

BEFORE, END = "[before the text]", "[end]"  # BEFORE: a checkpoint's own first token, such as [CLS]
ROUNDING = 1e-4  # tolerance of a row's sum


@runtime_checkable
class Attentive(Protocol):
    """A backbone that exposes its attention weights."""

    n_before: int  # tokens that the backbone puts before every text

    def recorded_attention(self) -> AbstractContextManager[list[Tensor]]:
        """Yield a list that forward passes fill with the layers' weights, each (B, H, T, T)."""
        ...


class AttentionRollout(Task):
    """Describe one text under the strategy's own attention."""

    Options = AttentionRolloutOptions
    options: AttentionRolloutOptions

    @override
    @torch.no_grad()
    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        """Return means over tokens: the entropy of a rollout's row in bits, and two of its entries.

        The entries are those of the first token and of the token itself. T includes the closing token and
        tokens that a checkpoint puts before a text. The item `rollout` (T, T) holds the matrix, whose row i
        says where token i's state comes from; samples name the tokens, in order.
        """
        if not (model.has_weights and isinstance(model.backbone, Attentive)):
            raise InapplicableError("exposes no attention weights")
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
    """Return the rollout (T, T), whose rows sum to one, of the attention (T, T) of all layers in order."""
    identity = torch.eye(len(layers[0]), dtype=layers[0].dtype)
    mixed = identity
    for weights in layers:
        mixed = (0.5 * weights + 0.5 * identity) @ mixed  # the residual stream carries half of a state
    return mixed


def _means(layers: Sequence[Tensor], length: int) -> list[Tensor]:
    """Average weights (1, H, T', T') over heads and drop padding -> (T, T)."""
    found = [layer[0].mean(dim=0)[:length, :length].double().cpu() for layer in layers]
    is_whole = all((layer.sum(dim=-1) - 1).abs().max() < ROUNDING for layer in found)
    if not found or not is_whole or any(layer.shape != (length, length) for layer in found):
        raise InapplicableError("its architecture exposes no attention weights of whole texts")
    return found
