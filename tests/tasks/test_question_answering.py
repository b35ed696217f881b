"""The task of extractive question answering, on files in SQuAD's format."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor
from toy_questions import (
    Spelling,
    chances,
    entry,
    make_task,
    model,
    paragraphs,
    squad_task,
    toy_setting,
    values,
    within_binomial,
    write,
)

from bench.data.corpora.base import split_of
from bench.objectives.base import Attention
from bench.objectives.scratch import Scratch
from bench.tasks.audit import Constant
from bench.tasks.base import Setting


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return toy_setting(tmp_path_factory.mktemp("qa"))


@pytest.mark.parametrize("with_impossible", [False, True])
def test_one_who_knows_scores_1(tmp_path: Path, setting: Setting, with_impossible: bool):
    found = paragraphs("test", 30, with_impossible=with_impossible)
    ceiling = squad_task(tmp_path, found, found).ceiling(setting)
    assert ceiling is not None
    assert set(values(ceiling).values()) == {1.0}
    suffixes = ("", "_answerable", "_unanswerable") if with_impossible else ("",)
    assert set(values(ceiling)) == {f"{metric}{suffix}" for metric in ("em", "f1") for suffix in suffixes}


@pytest.mark.parametrize("with_impossible", [False, True])
def test_pointers_find_what_the_states_show(tmp_path: Path, setting: Setting, with_impossible: bool):
    parts = [paragraphs(split, 60, with_impossible=with_impossible) for split in ("train", "test")]
    outcome = squad_task(tmp_path, *parts).evaluate(model(Spelling, 300), setting)
    assert outcome.scores[0].metric == "em"
    assert set(values(outcome).values()) == {1.0}
    assert outcome.items[f"em@{outcome.scores[0].n_labels}"].shape == (60,)


def test_labels_of_other_questions_teach_nothing(tmp_path: Path, setting: Setting):
    task = squad_task(tmp_path, paragraphs("train", 90), paragraphs("test", 100))
    permuted = task.evaluate(model(Spelling, 300), replace(setting, permutes_labels=True))
    for score in permuted.scores:
        assert score.chance is not None
        assert within_binomial(score.value, score.chance, score.n_items), score


def test_without_knowledge_no_answer_is_as_likely_as_each_span(tmp_path: Path, setting: Setting):
    # two tokens, so three spans; one question has an answer, "x", and one has none
    test = [entry("xy", ("q", "x")), entry("zv", ("r", None))]
    task = squad_task(tmp_path, [*paragraphs("train", 20), *test], test)
    outcome = task.evaluate(model(Constant), setting)
    expected = {"em": 1 / 4, "em_answerable": 1 / 4, "em_unanswerable": 1 / 4}
    expected |= {key.replace("em", "f1"): value for key, value in expected.items()}
    assert values(outcome) == pytest.approx(expected, abs=1e-12)
    assert chances(outcome) == pytest.approx(expected, abs=1e-12)


def test_small_budgets_come_last_and_are_told_apart(tmp_path: Path, setting: Setting):
    task = squad_task(tmp_path, paragraphs("train", 40), paragraphs("test", 9), label_budgets=[4, 8, None])
    outcome = task.evaluate(model(Spelling, 300), setting)
    n_labels = [score.n_labels for score in outcome.scores]
    assert n_labels[0] is not None
    assert 8 < n_labels[0] <= 40
    assert n_labels[2:] == [8, 8, 4, 4]
    assert set(outcome.items) == {f"{metric}@{n}" for metric in ("em", "f1") for n in n_labels}


def test_a_budget_beyond_the_data_is_one_with_the_largest_and_counted(tmp_path: Path, setting: Setting):
    task = squad_task(tmp_path, paragraphs("train", 10), paragraphs("test", 9), label_budgets=[4, 50, None])
    outcome = task.evaluate(model(Spelling, 300), setting)
    assert len({score.n_labels for score in outcome.scores}) == 2
    assert outcome.counts["label budget beyond the data"] == 1


def test_fine_tuning_learns_what_the_probe_does(tmp_path: Path, setting: Setting):
    train, test = paragraphs("train", 90), paragraphs("test", 30)
    paths = {
        f"{name}_path": str(write(tmp_path / name, part)) for name, part in (("train", train), ("test", test))
    }
    how = {"steps": 60, "batch_size": 16, "lr_grid": [3e-2], "n_fits": 2, "validate_every": 60}
    task = make_task("squad_finetune", **paths, validation_items=10, attention="bidirectional", **how)
    outcome = task.evaluate(model(Scratch), setting)
    found = values(outcome)
    assert found["em"] > 0.9
    assert found["failed_fits"] == 0
    assert {"em_fit_sd", "f1_fit_sd"} <= set(found)
    assert next(iter(outcome.items.values())).shape == (2, 30)


def test_the_asked_attention_reaches_the_model(tmp_path: Path, setting: Setting):
    asked = []

    class Listening(Spelling):
        def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
            asked.append(attention)
            return super().states(tokens, attention)

    some = paragraphs("test", 20)
    squad_task(tmp_path, some, some, attention="causal").evaluate(model(Listening, 300), setting)
    assert set(asked) == {"causal"}


def test_what_cannot_count_is_counted(tmp_path: Path, setting: Setting):
    long = entry("x" * 70, ("how long?", "x" * 50))
    moved = entry("here or there", ("where?", "there"))
    moved["qas"][0]["answers"][0]["answer_start"] = 3
    inside = entry("preheat", ("what?", "heat"))
    outcome = squad_task(tmp_path, [*paragraphs("train", 30), moved, long], [moved, long, inside]).evaluate(
        model(Spelling, 300), setting
    )
    assert split_of(moved["context"]) == split_of(long["context"]) == "train"
    assert outcome.counts["training answer not where the data says"] == 1
    assert outcome.counts["training answer whole in no window"] == 1
    assert outcome.counts["test answer not where the data says"] == 1
    assert outcome.counts["test answer whole in no window"] == 1
    assert outcome.counts["test answer longer than max_answer_tokens"] >= 1
    assert len(outcome.samples) == 3
