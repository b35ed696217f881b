"""Strategies made of others: one set of weights, shares that are kept, phases that begin where they say."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from toy_models import OPTIM, SHAPES, equal_batches, generator, make_strategy, strategy_node, text_rows

from bench.errors import ConfigError
from bench.models import flops
from bench.models.flops import StepCost
from bench.objectives import optim
from bench.objectives.combined import PART, Mixture

CLM, MLM = strategy_node("clm"), strategy_node("mlm")


def mixture(shares: dict[str, float] | None = None, parts: dict[str, Any] | None = None) -> Mixture:
    shares = {"clm": 0.25, "mlm": 0.75} if shares is None else shares
    model = make_strategy(
        "mixture", parts={"clm": CLM, "mlm": MLM} if parts is None else parts, shares=shares
    )
    assert isinstance(model, Mixture)
    return model


# One set of weights


@pytest.mark.parametrize("stem", ["mixture", "gpt_bert", "clm_then_mlm"])
def test_parts_of_the_core_alone_add_no_parameters(stem: str):
    alone = sum(p.numel() for p in make_strategy("mlm").parameters())
    assert sum(p.numel() for p in make_strategy(stem).parameters()) == alone
    assert not make_strategy(stem).has_idle_weights


def test_all_parts_train_the_same_tensors():
    model = mixture()
    before = [p.clone() for p in model.part("clm").parameters()]
    optimizer = optim.adamw(model, OPTIM, SHAPES.model.d_model)
    loss = model.part("mlm").loss(model.part("mlm").corrupt(text_rows(8), generator()))
    loss.sum.backward()
    optimizer.step()
    after = list(model.part("clm").parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["clm", "mlm"])
def test_a_step_has_the_loss_and_gradient_of_its_part_alone(name: str):
    model, alone = mixture(), make_strategy(name)
    batch = model.corrupt_as(name, text_rows(8), generator(3))
    expected = alone.loss(alone.corrupt(text_rows(8), generator(3)))
    loss = model.loss(batch)
    assert_close(loss.sum, expected.sum, rtol=0, atol=0)
    assert int(loss.count) == int(expected.count)
    loss.sum.backward()
    expected.sum.backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    for parameter_name, parameter in alone.named_parameters():
        assert_close(gradients[parameter_name], parameter.grad, rtol=0, atol=0)


def test_a_mixture_of_one_is_that_one():
    model, alone = mixture({"mlm": 1.0}, parts={"mlm": MLM}), make_strategy("mlm")
    drawn = model.corrupt(text_rows(8), generator())
    assert_close(model.loss(drawn).sum / alone.loss(drawn).sum, torch.tensor(1.0), rtol=0, atol=0)
    assert model.step_cost(128) == alone.step_cost(128)


# Which part a step trains


def test_a_mixture_keeps_its_shares():
    model, rows = mixture(), text_rows(2)
    drawn = Counter(int(model.corrupt(rows, generator(i))[PART][0]) for i in range(2000))
    clm = drawn[model.names.index("clm")] / 2000
    assert abs(clm - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5


def test_all_rows_of_a_step_have_one_part_so_that_ranks_agree():
    model = mixture()
    for seed in range(10):
        assert len(set(model.corrupt(text_rows(8), generator(seed))[PART].tolist())) == 1


def test_the_order_of_keys_decides_nothing():
    one = mixture({"clm": 0.25, "mlm": 0.75})
    other = mixture({"mlm": 0.75, "clm": 0.25}, parts={"mlm": MLM, "clm": CLM})
    assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    for seed in range(10):
        batches = [model.corrupt(text_rows(4), generator(seed)) for model in (one, other)]
        assert equal_batches(*batches)


@pytest.mark.parametrize(
    ("share", "steps", "first_mlm"),
    [(0.5, 10, 5), (0.3, 10, 3), (0.25, 10, 3), (0.1 + 0.2, 10, 3), (0.9, 7, 7)],
)
def test_a_phase_begins_at_the_first_step_that_is_not_before_its_share(share, steps, first_mlm):
    model = make_strategy("clm_then_mlm", shares={"clm": share, "mlm": 1 - share})
    names = [model.phase_at(step / steps) for step in range(steps)]
    assert names == ["clm"] * first_mlm + ["mlm"] * (steps - first_mlm)


def test_phases_follow_their_order_and_are_validated_by_the_last():
    model = make_strategy("clm_then_mlm", order=["mlm", "clm"])
    assert [model.phase_at(p) for p in (0.0, 0.49, 0.5, 1.0)] == ["mlm", "mlm", "clm", "clm"]
    batch = model.corrupt(text_rows(4), generator())
    assert model.names[int(batch[PART][0])] == "clm"


@pytest.mark.parametrize(("order", "kind"), [(["clm", "mlm"], "pseudo"), (["mlm", "clm"], "exact")])
def test_after_phases_only_the_last_one_scores_texts(order: list[str], kind: str):
    model = make_strategy("clm_then_mlm", order=order)
    assert model.likelihoods == {kind}
    assert model.scorers == order[-1:]
    assert model.writer() is model.part(order[-1])


# What it costs


def test_the_cost_is_the_mean_of_the_parts_by_their_shares():
    clm, mlm = (make_strategy(name).step_cost(128) for name in ("clm", "mlm"))
    cost = mixture().step_cost(128)
    assert cost.rows == clm.rows == mlm.rows
    assert cost.flops == pytest.approx(0.25 * clm.flops + 0.75 * mlm.flops)
    assert cost.predicted_tokens == pytest.approx(0.25 * clm.predicted_tokens + 0.75 * mlm.predicted_tokens)


def test_parts_whose_rows_are_longer_take_fewer_and_the_mean_follows():
    short, long = StepCost(8, 80, 8, 800.0), StepCost(4, 80, 40, 400.0)
    # Four rows of each: half of short's step, all of long's.
    assert StepCost.mean([short, long], [0.5, 0.5]) == StepCost(4, 60, 22, 400.0)


def test_budgets_may_be_matched_on_any_of_three():
    cost = StepCost(8, 128, 32, 1e6)
    for key, value in (("tokens", 1280), ("predicted_tokens", 320), ("flops", 1e7)):
        assert flops.n_steps(flops.Budget(**{key: value}, repeat=True), cost) == 10


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": {"clm": 0.5, "mlm": 0.4}}, r"strategy\.shares=.* sum to 0\.9"),
        ({"shares": {"clm": 1.5, "mlm": -0.5}}, r"strategy\.shares"),
        ({"shares": {"clm": 1.0}}, r"name the same parts"),
        ({"shares": {}, "parts": {}}, r"strategy\.shares"),
        ({"parts": {"clm": CLM, "mlm": strategy_node("clip")}}, r"strategy\.parts\.mlm\.modality='pairs'"),
        ({"parts": {"clm": CLM, "mlm": MLM | {"mask_rate": 2.0}}}, r"strategy\.parts\.mlm\.mask_rate=2\.0"),
        ({"parts": {"clm": CLM, "mlm": strategy_node("gpt_bert")}}, r"strategy\.parts\.mlm\.parts="),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_key(changes, message):
    shares = {"clm": 0.5, "mlm": 0.5}
    with pytest.raises(ConfigError, match=message) as caught:
        mixture(**({"shares": shares} | changes))
    assert "\n" not in str(caught.value)


def test_an_order_names_every_phase_once():
    with pytest.raises(ConfigError, match=r"strategy\.order"):
        make_strategy("clm_then_mlm", order=["clm", "clm"])
