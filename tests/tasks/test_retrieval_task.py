"""Retrieval counts every true partner as right, and pays for its passes through a vision tower."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_squares import FIT, Seer, make_setting, make_task

from bench.data.pairs import PairArray
from bench.models.flops import vision_flops
from bench.tasks.base import Setting
from bench.tasks.meter import Meter
from bench.tasks.probe import hits
from bench.tasks.retrieval import any_hit, partners, recalls


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("squares"))


def test_passes_through_a_vision_tower_are_counted(setting: Setting) -> None:
    seer = Seer(setting)
    tower = vision_flops(seer.shapes.model, seer.shapes.image_size)
    n_test = len(partners(setting.pairs.test()).images)
    n_fit = 3 * FIT["steps"] * FIT["batch_size"]  # backward is twice forward
    for name, fit, n_passes in (
        ("retrieval_zero_shot", {}, n_test),
        ("retrieval_fitted", FIT, n_test + n_fit),
    ):
        metered = replace(setting, meter=Meter())
        make_task(name, **fit).evaluate(seer, metered)
        assert metered.meter.flops == n_passes * tower


def test_distinct_images_are_ranked_against_distinct_captions(tmp_path: Path):
    red, blue = np.zeros((1, 1, 3), np.uint8), np.ones((1, 1, 3), np.uint8)
    np.save(tmp_path / "test.images.npy", np.stack([red, blue, red, blue]))
    np.save(tmp_path / "test.captions.npy", np.array([[5], [6], [7], [5]]))
    found = partners(PairArray(tmp_path, "test", 4))
    assert found.images.flatten(1).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert found.captions.tolist() == [[5], [6], [7]]
    assert found.belong.tolist() == [[True, False, True], [True, True, False]]


def test_any_true_partner_is_a_hit_and_a_perfect_model_reaches_one():
    belong = torch.eye(4).repeat_interleave(5, dim=1).bool()  # four images of five captions each
    found = {score.metric: score for score in recalls(belong.double(), belong).scores}
    assert all(score.value == 1 for score in found.values())
    assert found["image_to_text_recall_at_1"].chance == pytest.approx(5 / 20)
    assert found["text_to_image_recall_at_1"].chance == pytest.approx(1 / 4)
    assert (found["image_to_text_recall_at_1"].n_items, found["text_to_image_recall_at_1"].n_items) == (4, 20)


def test_the_items_of_the_headline_are_images_whose_mean_is_the_score():
    belong = torch.tensor([[1, 1, 0], [0, 1, 1]]).bool()  # the second caption is of both images
    scores = torch.tensor([[0.0, 3, 2], [5, 0, 4]])
    outcome = recalls(scores, belong)
    assert outcome.scores[0].metric == "recall_at_5"
    assert outcome.items["recall_at_5"].shape == (2,)
    assert outcome.items["image_to_text_recall_at_1"].tolist() == [1, 0]
    assert outcome.items["text_to_image_recall_at_1"].tolist() == [0, 1, 1]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_count_their_expectation_over_all_orders(k: int):
    scores = torch.tensor([[3.0, 1, 1, 1, 0]])  # the best is wrong; two of three tied ones are right
    belong = torch.tensor([[False, True, True, False, True]])
    orders = list(combinations([1, 2, 3], k - 1))  # which of the tied ones get a place
    expected = sum(1 in drawn or 2 in drawn for drawn in orders) / len(orders)
    assert any_hit(scores, belong, k) == pytest.approx([expected])


def test_with_one_partner_each_it_is_the_same_to_the_last_bit():
    scores = torch.randint(4, (30, 30), generator=torch.Generator().manual_seed(0)).double()
    for k in (1, 5, 10):
        assert (any_hit(scores, torch.eye(30).bool(), k) == hits(scores, torch.arange(30), k)).all()


def test_the_stated_chance_of_single_partners_is_k_of_n_to_the_last_bit():
    for n in range(11, 200):
        assert recalls(torch.zeros(n, n), torch.eye(n).bool()).scores[0].chance == 5 / n
