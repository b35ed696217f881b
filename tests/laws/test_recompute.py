"""Activations computed again in backward: the same gradients, bit for bit, from fewer saved bytes."""

import pytest
import torch
from torch import Tensor
from toy_models import make_strategy, rows_for, saved_tensors, stems, strategy_node

from bench.objectives.base import Objective
from bench.pretrain import recompute_activations

TRAINED = [stem for stem in stems("strategy") if strategy_node(stem)["modality"] != "none"]


def step(model: Objective) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients and the bytes that autograd keeps for them."""
    batch = model.corrupt_at(rows_for(model, 8), torch.Generator().manual_seed(0), 0.9)
    with saved_tensors() as kept:
        total = model.loss(batch).sum.sum()
    n_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    total.backward()
    return total.detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}, n_bytes


@pytest.mark.parametrize("stem", TRAINED)
def test_a_step_that_recomputes_has_the_same_gradients_from_fewer_bytes(stem: str):
    plain, frugal = make_strategy(stem).train(), make_strategy(stem).train()
    recompute_activations(frugal)
    assert frugal.state_dict().keys() == plain.state_dict().keys()
    (loss, gradients, n_bytes), (again, others, fewer) = step(plain), step(frugal)
    assert torch.equal(loss, again)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())
    assert fewer < 0.8 * n_bytes
