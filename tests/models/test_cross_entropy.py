"""Cross-entropy a block at a time is the plain one: value, gradients, what counts nothing, what is kept."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from toy_models import saved_tensors

from bench.models import cross_entropy
from bench.models.cross_entropy import IGNORED
from bench.models.transformer import Rope, RotatedHeads

N, D, V = 37, 6, 11


def inputs(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor, Tensor]:
    """States, weight, bias; targets, some of them ignored; weights."""
    generator = torch.Generator().manual_seed(0)
    shapes: Sequence[tuple[int, ...]] = ((N, D), (V, D), (V,))
    leaves = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    targets = torch.randint(V, (N,), generator=generator)
    targets[::5] = IGNORED
    return leaves, targets, torch.rand(N, generator=generator, dtype=dtype)


def plain(states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    return cross_entropy.nll_of_logits(states @ weight.T + bias, targets, weights)


@pytest.mark.parametrize("rows_per_width", [1, 2, 100], ids=["7 blocks", "4 blocks", "all at once"])
@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_change_neither_value_nor_gradients(
    rows_per_width: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cross_entropy, "ROWS_PER_WIDTH", rows_per_width)
    leaves, targets, weights = inputs()
    found = []
    for function in (plain, cross_entropy.nll_of_states):
        total = function(*leaves, targets, weights if weighted else None)
        found.append((total, *torch.autograd.grad(0.25 * total, leaves)))  # as after the division by counts
    for one, other in zip(*found, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert found[0][1].abs().max() > 1e-2


def test_states_of_any_shape_are_flattened_as_their_targets_are():
    leaves, targets, weights = inputs()
    states = leaves[0].detach()[:36].reshape(4, 9, D)
    shaped = cross_entropy.nll_of_states(
        states, *leaves[1:], targets[:36].reshape(4, 9), weights[:36].reshape(4, 9)
    )
    assert_close(shaped, plain(states.flatten(0, 1), *leaves[1:], targets[:36], weights[:36]))


def test_no_target_is_no_loss_and_no_gradient():
    leaves, targets, _ = inputs()
    for kept in (slice(0, 0), slice(0, 1)):  # none at all; one that is ignored
        total = cross_entropy.nll_of_states(leaves[0][kept], *leaves[1:], targets[kept])
        assert total == 0
        assert all(not gradient.any() for gradient in torch.autograd.grad(total, leaves))


def test_a_target_that_is_all_but_impossible_has_its_nats():
    """Its probability is below what a float can hold."""
    leaves, targets, _ = inputs(torch.float32)
    leaves = [leaf.detach() * scale for leaf, scale in zip(leaves, (50, 50, 1), strict=True)]
    states, weight, bias = (leaf.requires_grad_() for leaf in leaves)
    assert_close(
        cross_entropy.nll_of_states(states, weight, bias, targets), plain(states, weight, bias, targets, None)
    )
    assert plain(states, weight, bias, targets, None) > 100 * N


def test_nothing_as_large_as_the_logits_is_kept_for_backward():
    leaves, targets, _ = inputs()
    with saved_tensors() as kept:
        cross_entropy.nll_of_states(*leaves, targets)
    assert kept
    assert max(tensor.numel() for tensor in kept.values()) < N * V


def test_autocast_gives_what_it_gives_the_plain_way():
    leaves, targets, _ = inputs(torch.float32)
    found = []
    for function in (plain, cross_entropy.nll_of_states):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = function(*leaves, targets, None)
        found.append((total, *torch.autograd.grad(total, leaves)))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert_close(one, other, rtol=0.02, atol=0.02 * float(one.detach().abs().max()))


@pytest.mark.parametrize("at_once", [1, 5 * V, 2**28], ids=["row by row", "8 blocks", "all at once"])
def test_without_gradients_the_value_is_the_same(at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", at_once)
    leaves, targets, weights = inputs()
    with torch.no_grad():
        for given in (weights, None):
            assert_close(cross_entropy.nll_of_states(*leaves, targets, given), plain(*leaves, targets, given))
        assert cross_entropy.nll_of_states(leaves[0][:0], *leaves[1:], targets[:0]) == 0


def test_the_gradient_of_a_rotation_is_right_and_low_precision_stays_low():
    cos, sin = Rope(4, n_heads=2).tables(3)
    qkv = torch.randn(
        2, 3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: RotatedHeads.apply(x, cos.double(), sin.double()), qkv)
    turned = RotatedHeads.apply(qkv.detach(), cos, sin)
    low = RotatedHeads.apply(qkv.detach().bfloat16(), cos, sin)
    assert {part.dtype for part in low} == {torch.bfloat16}
    for one, other in zip(low, turned, strict=True):
        assert_close(one.double(), other, rtol=0, atol=0.03)
