"""Parameters, tokens, steps and FLOPs of models: pure functions, no torch.

Only matrix products are counted, a multiply-add as two FLOPs, as in `torch.utils.flop_counter`; backward
costs twice forward (Kaplan et al. 2020, arXiv:2001.08361, sec. 2.1). Attention is counted in full for causal
masks too, which is the common convention (Chowdhery et al. 2022, arXiv:2204.02311, app. B), and for masks
that keep attention within documents. The embedding
look-up is free; norms, softmax and activations are left out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.config.schema import Budget, Model, given_compute
from bench.errors import ConfigError

BACKWARD_OVER_FORWARD = 2


def block_parameters(model: Model) -> int:
    """Return the parameters of all blocks with their norms: attention 4 D^2, gated MLP 3 D F."""
    matrices = 4 * model.d_model**2 + 3 * model.d_model * model.d_ff
    norms = 2 * model.n_layers - 1 + 2  # none before the first attention; embedding and final norm
    return model.n_layers * matrices + norms * model.d_model


def text_parameters(model: Model, vocab_size: int) -> int:
    """Return the parameters of the text backbone with its embedding, without a head."""
    return vocab_size * model.d_model + block_parameters(model)


def blocks_flops(model: Model, length: int, read: float | None = None) -> float:
    """Return the forward FLOPs of the blocks on one sequence.

    Args:
        model: sizes of the blocks.
        length: tokens of the sequence.
        read: tokens whose states are read; None: all. After its attention the last block computes only these.
    """
    matrices = 2 * length * (4 * model.d_model**2 + 3 * model.d_model * model.d_ff)
    attention = 2 * 2 * length**2 * model.d_model  # scores, then the mix of values
    unread = 0 if read is None else length - read
    skipped = 2 * unread * (model.d_model**2 + 3 * model.d_model * model.d_ff)
    return model.n_layers * (matrices + attention) - skipped


def decoder_flops(model: Model, length: int, context: int) -> float:
    """Return the forward FLOPs of the decoder on `length` tokens that attend to `context` encoder tokens.

    In cross-attention (Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2.3) queries and outputs are those of
    the decoder's tokens, keys and values those of the encoder's.
    """
    matrices = 2 * (length + context) * 2 * model.d_model**2
    attention = 2 * 2 * length * context * model.d_model
    return blocks_flops(model, length) + model.n_layers * (matrices + attention)


def head_flops(model: Model, vocab_size: int, n_targets: float) -> float:
    """Return the forward FLOPs of the prediction head at `n_targets` tokens."""
    return 2 * n_targets * (model.d_model**2 + model.d_model * vocab_size)


def generator_flops(model: Model, generator: Model, vocab_size: int, length: int, n_targets: int) -> float:
    """Return the forward FLOPs of ELECTRA's generator (arXiv:2003.10555, sec. 3.2) on one sequence.

    Its blocks are narrower; projections map from the width of the shared embedding and, at targets, back.
    """
    projection = model.d_model * generator.d_model
    head = projection + model.d_model * vocab_size
    return blocks_flops(generator, length, n_targets) + 2 * (length * projection + n_targets * head)


def label_flops(model: Model, n_labels: int, n_tokens: int) -> int:
    """Return the forward FLOPs of a token classifier: ModernBERT's dense layer, then one output per label."""
    return 2 * n_tokens * (model.d_model**2 + model.d_model * n_labels)


def vision_flops(model: Model, image_size: int) -> float:
    """Return the forward FLOPs of the vision tower on one image."""
    patches = (image_size // model.patch_size) ** 2
    return patch_flops(model, image_size) + blocks_flops(model, patches)


def patch_flops(model: Model, image_size: int) -> int:
    """Return the forward FLOPs of the patch embedding of one image."""
    patches = (image_size // model.patch_size) ** 2
    return 2 * patches * 3 * model.patch_size**2 * model.d_model


@dataclass(frozen=True)
class StepCost:
    """Rows, tokens and FLOPs (forward and backward) of one optimizer step, over all ranks."""

    rows: int  # sequences, or pairs
    forward_tokens: int
    predicted_tokens: float  # the expected number where it is random
    flops: float

    @staticmethod
    def of_row(
        rows: int, tokens: int, targets: float, forward_flops: float, *, data_flops: float = 0
    ) -> "StepCost":
        """Return the cost of a step from the cost of one row.

        Args:
            rows: rows of the step.
            tokens: tokens of a row.
            targets: predicted tokens of a row.
            forward_flops: forward FLOPs of a row.
            data_flops: the part of them whose input is data, which needs no gradient of its input.
        """
        flops = (1 + BACKWARD_OVER_FORWARD) * forward_flops - data_flops
        return StepCost(rows, tokens * rows, targets * rows, flops * rows)

    @staticmethod
    def mean(costs: Sequence["StepCost"], shares: Sequence[float]) -> "StepCost":
        """Return the expected cost where each kind of step has a share; all kinds use the fewest rows of any.

        Args:
            costs: cost of each kind, proportional to its rows.
            shares: share of each kind, summing to one.
        """
        rows = min(cost.rows for cost in costs)

        def expected(part: Callable[[StepCost], float]) -> float:
            return sum(s * part(c) * rows / c.rows for c, s in zip(costs, shares, strict=True))

        return StepCost(
            rows,
            round(expected(lambda c: c.forward_tokens)),
            expected(lambda c: c.predicted_tokens),
            expected(lambda c: c.flops),
        )


def rows_per_step(tokens_per_step: int, tokens_per_row: int) -> int:
    """Return the rows of one step; raise ConfigError if a step is too small for one row."""
    rows = tokens_per_step // tokens_per_row
    if rows < 1:
        raise ConfigError(
            f"optim.tokens_per_step={tokens_per_step} holds no row of {tokens_per_row} tokens; raise it"
        )
    return rows


def n_steps(budget: Budget, cost: StepCost) -> int:
    """Return the steps that a compute budget allows: the nearest whole number, at least one."""
    per_step = {
        "tokens": cost.forward_tokens,
        "predicted_tokens": cost.predicted_tokens,
        "flops": cost.flops,
    }
    (key,) = given_compute(budget)
    return max(1, round(getattr(budget, key) / per_step[key]))


def n_epochs(rows_seen: int, unique_rows: int) -> float:
    """Return the passes over the unique data."""
    return rows_seen / unique_rows if unique_rows else math.nan
