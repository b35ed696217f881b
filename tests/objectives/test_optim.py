"""The learning rate's rule and schedule, and what is decayed."""

import math
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from toy_models import MODEL, OPTIM, make_strategy, stems

from bench.objectives import optim
from bench.objectives.optim import lr_peak, lr_share

TOTAL = 200
COSINE = replace(OPTIM, schedule="cosine", warmup_share=0.1, final_lr_share=0.1)
WSD = replace(OPTIM, schedule="wsd", warmup_share=0.1, cooldown_share=0.2, final_lr_share=0.0)


def test_the_peak_rate_is_inverse_to_the_width():
    rule = replace(OPTIM, lr_peak=4e-3, lr_width=64)
    assert [lr_peak(rule, width) for width in (32, 64, 256)] == [8e-3, 4e-3, 1e-3]


@pytest.mark.parametrize("shape", [COSINE, WSD])
def test_warmup_is_linear_from_above_zero_to_the_peak(shape):
    assert [lr_share(step, TOTAL, shape) for step in range(20)] == [(step + 1) / 20 for step in range(20)]
    assert lr_share(20, TOTAL, shape) == 1.0


def test_cosine_falls_by_half_a_wave_to_its_final_share():
    shares = [lr_share(step, TOTAL, COSINE) for step in range(20, TOTAL + 1)]
    assert all(a > b for a, b in pairwise(shares))
    assert shares[90] == pytest.approx(0.1 + 0.9 / 2)  # half-way
    assert shares[45] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert shares[-1] == pytest.approx(0.1)
    assert shares[-2] == pytest.approx(0.1, abs=1e-4)


def test_wsd_is_constant_and_then_cools_as_one_minus_a_root():
    assert {lr_share(step, TOTAL, WSD) for step in range(20, 161)} == {1.0}
    for done in range(41):
        assert lr_share(160 + done, TOTAL, WSD) == pytest.approx(1 - math.sqrt(done / 40))
    assert lr_share(TOTAL, TOTAL, replace(WSD, final_lr_share=0.25)) == 0.25


@pytest.mark.parametrize("shape", [COSINE, WSD])
@pytest.mark.parametrize("total", [1, 2, 3, 10])
def test_a_short_run_has_a_rate_above_zero_at_every_step(shape, total: int):
    shares = [lr_share(step, total, shape) for step in range(total)]
    assert all(0 < share <= 1 for share in shares)
    assert max(shares) == 1


def test_the_optimizer_follows_the_schedule():
    module = torch.nn.Linear(2, 2)
    optimizer = optim.adamw(module, COSINE, d_model=64)
    schedule = optim.schedule(optimizer, COSINE, 10)
    for step in range(10):
        expected = lr_peak(COSINE, 64) * lr_share(step, 10, COSINE)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected, expected])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("stem", stems("strategy"))
def test_matrices_are_decayed_and_vectors_are_not_and_none_is_left_out(stem: str):
    model = make_strategy(stem)
    decayed, spared = optim.adamw(model, OPTIM, MODEL.d_model).param_groups
    assert decayed["weight_decay"] == OPTIM.weight_decay
    assert spared["weight_decay"] == 0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in spared["params"])
    ids = [id(p) for group in (decayed, spared) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())


def test_what_is_frozen_is_not_optimised():
    module = torch.nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    assert [len(group["params"]) for group in optim.adamw(module, OPTIM, 64).param_groups] == [0, 1]


MUON = replace(OPTIM, name="muon")


def trained(optimizer: torch.optim.Optimizer, model: torch.nn.Module, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_muon_updates_the_matrices_of_blocks_and_adamw_all_else():
    model = make_strategy("mlm")
    optimizer = optim.optimizer_of(model, MUON, MODEL.d_model)
    names = {id(p): name for name, p in model.named_parameters()}
    matrices, *others = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert {name.rpartition(".")[0].split(".")[-1] for name in matrices} == {"Wqkv", "Wo", "Wi"}
    assert "backbone.embedding.weight" in others[0]
    assert sorted([*matrices, *others[0], *others[1]]) == sorted(names.values())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(optimizer, model, range(1))
    name = matrices[0]
    change = (model.get_parameter(name).detach() - before[name] * (1 - 0.1 * lr_peak(OPTIM, 32))).double()
    values = torch.linalg.svdvals(change)
    assert values.max() / values.min() < 3  # orthogonal up to the error of five Newton-Schulz steps
    assert change.pow(2).mean().sqrt() == pytest.approx(0.2 * lr_peak(OPTIM, 32), rel=0.2)


def test_muon_resumes_to_the_same_bits_at_the_scheduled_rate():
    whole, resumed = make_strategy("clm"), make_strategy("clm")
    resumed.load_state_dict(whole.state_dict())
    first = optim.optimizer_of(whole, MUON, MODEL.d_model)
    rates = optim.schedule(first, COSINE, 10)
    trained(first, whole, range(2))
    rates.step()
    saved = deepcopy(first.state_dict()), deepcopy(whole.state_dict())
    trained(first, whole, range(2, 5))
    second = optim.optimizer_of(resumed, MUON, MODEL.d_model)
    resumed.load_state_dict(saved[1])
    second.load_state_dict(saved[0])
    trained(second, resumed, range(2, 5))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len({group["lr"] for group in second.param_groups}) == 1
