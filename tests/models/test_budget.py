"""What a step costs and how many a budget buys, by hand."""

import math
from dataclasses import replace

import pytest

from bench.config.schema import Budget, Model
from bench.errors import ConfigError
from bench.models import flops
from bench.models.flops import StepCost, n_epochs, n_steps, rows_per_step

ONE = Model(d_model=2, n_layers=1, n_heads=1, d_ff=3, patch_size=4)
COST = StepCost(rows=4, forward_tokens=100, predicted_tokens=30, flops=1e6)


def bought(**limits: float) -> int:
    return n_steps(Budget(repeat=True, **limits), COST)  # type: ignore[arg-type]


def test_parameters_by_hand():
    # One block: attention 4 x 2 x 2, feed-forward 3 x 2 x 3, and three norms of 2.
    assert flops.block_parameters(ONE) == 16 + 18 + 6
    assert flops.block_parameters(replace(ONE, n_layers=2)) == 2 * (16 + 18) + 10
    assert flops.text_parameters(ONE, 10) == 20 + 40


def test_forward_flops_by_hand():
    # Five positions: 2 FLOPs per weight and position, then scores and mix: 2 x 2 x 5 x 5 x 2.
    assert flops.blocks_flops(ONE, 5) == 2 * 5 * 34 + 200
    assert flops.blocks_flops(replace(ONE, n_layers=3), 5) == 3 * (2 * 5 * 34 + 200)
    # Of which three are read: two are spared the last block's output matrix and its feed-forward.
    spared = 2 * 2 * (2 * 2 + 3 * 2 * 3)
    assert flops.blocks_flops(ONE, 5, 3) == flops.blocks_flops(ONE, 5) - spared
    assert flops.blocks_flops(replace(ONE, n_layers=3), 5, 3) == 3 * (2 * 5 * 34 + 200) - spared
    assert flops.head_flops(ONE, 10, 3) == 2 * 3 * (4 + 20)
    # Four patches of 48 values.
    assert flops.patch_flops(ONE, 8) == 2 * 4 * 48 * 2
    assert flops.vision_flops(ONE, 8) == 768 + flops.blocks_flops(ONE, 4)


def test_a_decoder_adds_cross_attention():
    # Three positions written, five read: queries and output of 3, keys and values of 5; then 3 x 5 scores.
    cross = 2 * 3 * 8 + 2 * 5 * 8 + 2 * 2 * 3 * 5 * 2
    assert flops.decoder_flops(ONE, 3, 5) == flops.blocks_flops(ONE, 3) + cross
    assert flops.decoder_flops(replace(ONE, n_layers=2), 3, 5) == 2 * flops.decoder_flops(ONE, 3, 5)


def test_a_generator_is_narrow_blocks_between_projections():
    narrow = replace(ONE, d_model=1, d_ff=2)
    # Five positions in, three targets out: 2 x 1 weights each way, then 2 x 10 of the embedding.
    expected = flops.blocks_flops(narrow, 5, 3) + 2 * 5 * 2 + 2 * 3 * (2 + 20)
    assert flops.generator_flops(ONE, narrow, 10, 5, 3) == expected
    assert flops.label_flops(ONE, 1, 5) == 2 * 5 * (4 + 2)


def test_a_step_is_forward_and_twice_that_backward_but_data_has_no_gradient():
    assert StepCost.of_row(4, 25, 7.5, 1000.0) == StepCost(4, 100, 30.0, 12_000.0)
    assert StepCost.of_row(4, 25, 7.5, 1000.0, data_flops=100).flops == 4 * (3000 - 100)


@pytest.mark.parametrize(("tokens", "steps"), [(1000, 10), (1049, 10), (1051, 11), (1, 1)])
def test_tokens_buy_the_nearest_number_of_steps_and_at_least_one(tokens: int, steps: int):
    assert bought(tokens=tokens) == steps


@pytest.mark.parametrize(("flops", "steps"), [(2e6, 2), (2.4e6, 2), (2.6e6, 3), (1.0, 1)])
def test_flops_buy_the_nearest_number_of_steps_and_at_least_one(flops: float, steps: int):
    assert bought(flops=flops) == steps


def test_rows_are_as_many_as_fit():
    assert [rows_per_step(n, 64) for n in (64, 127, 128)] == [1, 1, 2]
    with pytest.raises(ConfigError, match=r"optim\.tokens_per_step=63 .*64"):
        rows_per_step(63, 64)


def test_epochs_are_passes_over_unique_rows():
    assert n_epochs(30, 20) == 1.5
    assert math.isnan(n_epochs(30, 0))
