"""What every strategy in conf/strategy keeps; a new YAML is tested without an edit here."""

import math
import statistics
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from toy_models import (
    OPTIM,
    SHAPES,
    equal_batches,
    generator,
    make_strategy,
    ragged_tokens,
    rows_for,
    stems,
    strategy_node,
)

from bench.config.build import build, find_class, listed_options
from bench.errors import ConfigError, InapplicableError
from bench.models import flops
from bench.objectives import optim
from bench.objectives.base import Objective
from bench.objectives.options import POOLINGS
from bench.training import checkpoint

STRATEGIES = stems("strategy")
N_STEPS = 60  # where a step's number of targets, or its objective, is drawn
SPREAD = 7  # every seventh step first, which shows whether anything is drawn
STEPS = sorted(range(N_STEPS), key=lambda i: (i % SPREAD, i))
TRAINED = [stem for stem in STRATEGIES if strategy_node(stem)["modality"] != "none"]
HERE = [s for s in STRATEGIES if find_class(strategy_node(s), Objective, s).has_weights]  # type: ignore[type-abstract]
every_strategy = pytest.mark.parametrize("stem", STRATEGIES)
every_strategy_here = pytest.mark.parametrize("stem", HERE)
every_trained = pytest.mark.parametrize("stem", TRAINED)


@every_strategy
def test_the_yaml_sets_every_option_and_no_other(stem: str):
    node = strategy_node(stem)
    options = find_class(node, Objective, "strategy").Options  # type: ignore[type-abstract]
    is_ours = node["_target_"].startswith("bench.")
    assert listed_options(node, "bench.objectives") is (options if is_ours else None)  # checked without torch
    assert set(node) - {"_target_"} == {field.name for field in fields(options)}
    for key in set(node) - {"_target_"}:
        with pytest.raises(ConfigError, match=key):
            make_strategy(stem, **{key: ["not", "this"]})
    with pytest.raises(ConfigError, match="nonsense"):
        make_strategy(stem, nonsense=1)


@every_strategy
def test_no_option_has_a_default_in_python(stem: str):
    node = strategy_node(stem)
    for key in set(node) - {"_target_"}:
        rest = {name: value for name, value in node.items() if name != key}
        with pytest.raises(ConfigError, match=key):
            build(rest, Objective, "strategy", shapes=SHAPES, optimizer=OPTIM)  # type: ignore[type-abstract]


@every_strategy_here
def test_the_backbone_has_the_parameters_that_the_budget_counts(stem: str):
    model = make_strategy(stem)
    counted = sum(p.numel() for p in model.backbone.parameters())
    vocab_size = SHAPES.vocab_size + model.n_extra_tokens(model.options, SHAPES)
    assert counted == flops.text_parameters(SHAPES.model, vocab_size)


@every_strategy_here
def test_the_seed_alone_decides_the_backbone(stem: str):
    reference = backbone_weights("scratch", seed=3)
    torch.manual_seed(99)  # the global state has no say
    same, other = backbone_weights(stem, seed=3), backbone_weights(stem, seed=4)
    assert_close(same, reference, rtol=0, atol=0)
    assert not torch.equal(other["embedding.weight"], reference["embedding.weight"])


def backbone_weights(stem: str, seed: int) -> dict[str, Tensor]:
    """The backbone's weights without the ids that only this strategy has."""
    weights = make_strategy(stem, seed=seed).backbone.state_dict()
    return weights | {"embedding.weight": weights["embedding.weight"][: SHAPES.vocab_size]}


@pytest.mark.slow
@every_trained
def test_the_loss_falls_on_a_batch_seen_again_and_again(stem: str):
    model = make_strategy(stem).train()
    batch = model.corrupt(rows_for(model, 8), generator())
    optimizer = optim.adamw(model, OPTIM, SHAPES.model.d_model)
    losses = []
    for _ in range(60):
        loss = model.loss(batch)
        mean = (loss.sum / loss.count).sum()
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        losses.append(float(mean.detach()))
    assert torch.isfinite(torch.tensor(losses)).all()
    assert losses[-1] < 0.5 * losses[0]


@every_trained
def test_every_parameter_is_trained(stem: str):
    model = make_strategy(stem).train()
    for seed in range(20):  # what is made of parts trains one at a time
        batch = model.corrupt_at(rows_for(model, 8), generator(seed), progress=seed / 20)
        model.loss(batch).sum.sum().backward()
    silent = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert silent == []


@every_trained
def test_the_generator_alone_decides_the_corruption(stem: str):
    model = make_strategy(stem)
    rows = rows_for(model, 8)
    torch.manual_seed(0)
    first = model.corrupt(rows, generator(1))
    torch.manual_seed(1)
    assert equal_batches(first, model.corrupt(rows, generator(1)))
    same = [equal_batches(first, model.corrupt(rows, generator(seed))) for seed in range(2, 12)]
    unused, used = torch.Generator(), torch.Generator()
    model.corrupt(rows, used)
    draws = not torch.equal(unused.get_state(), used.get_state())
    assert not all(same) if draws else all(same)


@every_trained
def test_corruption_leaves_its_input_alone(stem: str):
    model = make_strategy(stem)
    rows = rows_for(model, 8)
    before = {name: values.clone() for name, values in rows.items()}
    batch = model.corrupt(rows, generator())
    assert equal_batches(rows, before)
    model.loss(batch).sum.sum().backward()
    assert equal_batches(rows, before)


@every_trained
def test_the_rows_of_a_corrupted_batch_can_be_dealt_to_ranks(stem: str):
    model = make_strategy(stem)
    batch = model.corrupt(rows_for(model, 8), generator())
    assert {len(values) for values in batch.values()} == {8}


@pytest.mark.parametrize("stem", sorted(set(STRATEGIES) - set(HERE)))
def test_a_model_that_lies_elsewhere_has_no_weights_and_no_features(stem: str):
    model = make_strategy(stem)
    assert model.modality == "none"
    assert list(model.parameters()) == []
    with pytest.raises(InapplicableError):
        model.features(ragged_tokens([3, 7]))


@every_strategy_here
def test_saved_and_loaded_gives_the_same_features(stem: str, tmp_path: Path):
    model, other = make_strategy(stem, seed=0), make_strategy(stem, seed=1)
    tokens = ragged_tokens([3, 7, 16])
    assert not torch.allclose(model.features(tokens), other.features(tokens))
    checkpoint.write_weights(model, tmp_path / "weights.safetensors")
    assert load_model(other, tmp_path / "weights.safetensors") == (set(), [])
    assert_close(other.features(tokens), model.features(tokens), rtol=0, atol=0)
    assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


@every_strategy_here
@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_features_do_not_depend_on_padding_or_company(stem: str, pooling: str):
    model = make_strategy(stem, pooling=pooling)
    tokens = ragged_tokens([1, 3, 7, 16])
    together = model.features(tokens)
    assert torch.isfinite(together).all()
    assert together.shape == (4, SHAPES.model.d_model)
    assert (together.std(dim=0) > 1e-3).any()
    assert_close(model.features(F.pad(tokens, (0, 5))), together, atol=1e-5, rtol=0)
    for row, length, expected in zip(tokens, [1, 3, 7, 16], together, strict=True):
        assert_close(model.features(row[None, :length])[0], expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@every_trained
def test_flops_are_those_that_torch_counts(stem: str):
    model = make_strategy(stem).train()
    cost = model.step_cost(OPTIM.tokens_per_step)
    counted: list[int] = []
    for i in STEPS:
        if len(counted) == len(range(0, N_STEPS, SPREAD)) and len(set(counted)) == 1:
            break  # nothing is drawn
        rows = rows_for(model, cost.rows, seed=i)
        batch = model.corrupt_at(rows, generator(i), progress=i / N_STEPS)
        # The fused kernel on CPU is not counted; the plain one is made of matrix products, which are.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model.loss(batch).sum.sum().backward()
        counted.append(counter.get_total_flops())
    standard_error = statistics.stdev(counted) / math.sqrt(len(counted))
    assert standard_error <= 0.03 * cost.flops  # or nothing is tested
    assert abs(cost.flops - statistics.mean(counted)) <= 1e-3 * cost.flops + 4 * standard_error


@every_trained
def test_a_step_holds_the_tokens_that_it_says(stem: str):
    cost = make_strategy(stem).step_cost(OPTIM.tokens_per_step)
    assert OPTIM.tokens_per_step - cost.forward_tokens / cost.rows < cost.forward_tokens
    assert cost.forward_tokens <= OPTIM.tokens_per_step
    with pytest.raises(ConfigError, match=r"optim\.tokens_per_step=1 "):
        make_strategy(stem).step_cost(1)
