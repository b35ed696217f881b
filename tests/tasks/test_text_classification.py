"""Text classification at label budgets: which items, what counts, and what the protocols make of them."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn
from toy_data import assert_one_line, prepare
from toy_models import SHAPES, make_strategy

from bench.data.corpora.base import Split, split_of
from bench.data.shards import SPLITS
from bench.errors import ConfigError, DataError
from bench.objectives.base import Attention, Objective
from bench.tasks import text_classification
from bench.tasks.base import Outcome, Setting
from bench.tasks.finetune import Course, Tuned
from bench.tasks.nltk_classification import MovieReviews, QuestionClasses
from bench.tasks.probe import FeatureCache
from bench.tasks.text_classification import (
    BudgetData,
    ClassificationOptions,
    LabelledTexts,
    TextClassification,
    Texts,
    budget_sizes,
    in_rounds,
    take,
)

ALL: dict[Split, dict[str, int]] = {split: {"a": 40, "b": 40, "c": 40} for split in SPLITS}
OPTIONS: dict[str, Any] = {
    "protocol": "probe",
    "attention": "own",
    "pooling": "own",
    "label_budgets": [12, 60, None],
    "max_labels": 200,
    "validation_items": 15,
    "test_items": 90,
}
TUNING: dict[str, Any] = {
    "steps": 12,
    "batch_size": 8,
    "lr_grid": [1e-2],
    "n_fits": 2,
    "validate_every": 4,
    "patience": 3,
}


PROBE: dict[str, Any] = {"inverse_penalties": [0.01, 0.1, 1.0]}
OF_PROTOCOL: dict[str, dict[str, Any]] = {"probe": PROBE, "finetune": TUNING, "layers": {}}


class Toy(TextClassification):
    """So many texts per split and class, each of which names its class."""

    def __init__(self, sizes: Mapping[Split, Mapping[str, int]] = ALL, **changes: Any) -> None:
        of_protocol = OF_PROTOCOL.get(changes.get("protocol", "probe"), {})
        super().__init__(ClassificationOptions(**OPTIONS | of_protocol | changes))
        self.sizes = sizes

    def examples(self, split: Split, setting: Setting) -> dict[str, list[str]]:
        return {name: [f"{name * 3} {split} {i}" for i in range(n)] for name, n in self.sizes[split].items()}


@pytest.fixture(scope="module")
def whole_setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    text = prepare(tmp_path_factory.mktemp("toy"))
    nothing: Any = None
    return Setting(text.tokenizer(), 16, nothing, nothing, Path(), 0, lambda: None)


@pytest.fixture
def setting(whole_setting: Setting) -> Setting:
    return replace(whole_setting, cache=FeatureCache())


@pytest.fixture(scope="module")
def model() -> Objective:
    return make_strategy("scratch", shapes=replace(SHAPES, vocab_size=300))


def values(outcome: Outcome, metric: str = "accuracy") -> dict[int | None, float]:
    return {m.n_labels: m.value for m in outcome.scores if m.metric == metric}


# Which items


def test_turns_deal_out_every_text_once_and_are_balanced_while_they_can_be():
    rounds = in_rounds([["a1", "a2", "a3"], ["b1"], ["c1", "c2"]], seed=0)
    assert [sorted(label for _, label in turn) for turn in rounds] == [[0, 1, 2], [0, 2], [0]]
    assert sorted(text for turn in rounds for text, _ in turn) == ["a1", "a2", "a3", "b1", "c1", "c2"]
    assert rounds == in_rounds([["a1", "a2", "a3"], ["b1"], ["c1", "c2"]], seed=0)
    assert len({str(in_rounds([list("abcdef"), list("ghijkl")], seed=seed)) for seed in range(5)}) == 5


def test_a_cut_takes_whole_turns_and_loses_nothing():
    rounds = in_rounds([list("abcd"), list("efg")], seed=0)
    for n in range(9):
        first, rest = take(rounds, n)
        assert len(first) == [0, 1, 2, 2, 4, 4, 6, 7, 7][n]
        assert first + [item for turn in rest for item in turn] == [item for turn in rounds for item in turn]
    assert take([], 3) == ([], [])


@pytest.mark.parametrize(
    ("budgets", "most", "expected"),
    [
        ([2, 4, None], 100, ([7, 4, 2], 0)),
        ([2, 5, 50, None], 100, ([7, 4, 2], 1)),  # 5 would have three of one class and two of the other
        ([50, 60], 100, ([7], 2)),
        ([None], 6, ([6], 0)),
        ([6, None], 6, ([6], 0)),
        ([1], 100, ([1], 0)),
    ],
)
def test_budgets_are_whole_turns_and_those_beyond_the_data_are_counted(
    budgets: list[int | None], most: int, expected: tuple[list[int], int]
):
    assert budget_sizes(in_rounds([list("abcd"), list("efg")], seed=0), budgets, most) == expected


def test_budgets_are_nested_balanced_and_apart_from_validation_and_test(setting: Setting):
    budgets, counts = Toy()._budgets(setting)
    assert counts == {}
    assert [budget.n_labels for budget in budgets] == [105, 60, 12]
    decoded = [
        {setting.tokenizer.decode(row.tolist()) for row in tokens}
        for tokens in (budgets[0].train.tokens, budgets[0].validation.tokens, budgets[0].test.tokens)
    ]
    assert [len(texts) for texts in decoded] == [105, 15, 90]
    assert not decoded[0] & decoded[1]
    assert not decoded[0] & decoded[2]
    for budget in budgets:
        assert budget.train.all_tokens is budgets[0].train.all_tokens
        assert torch.equal(budget.train.labels, budgets[0].train.labels[: budget.n_labels])
        assert budget.train.labels.bincount().tolist() == [budget.n_labels // 3] * 3
        assert len(budget.validation.labels) == min(15, budget.n_labels)
        for row, label in zip(budget.train.tokens, budget.train.labels, strict=True):
            assert setting.tokenizer.decode(row.tolist()).startswith("abc"[label] * 3)


def test_the_seed_draws_training_and_validation_items_and_never_test_items(setting: Setting):
    first, second = (Toy()._budgets(replace(setting, seed=seed))[0][0] for seed in (0, 1))
    assert not torch.equal(first.train.tokens, second.train.tokens)
    assert not torch.equal(first.validation.tokens, second.validation.tokens)
    assert torch.equal(first.test.tokens, second.test.tokens)


def test_training_texts_that_are_tested_and_empty_classes_are_counted():
    texts, counts = Texts.without_tested(
        {"a": ["x", "y", "y"], "b": ["z"], "c": ["v"]}, {"a": ["u"], "b": ["y", "z"], "d": ["w"]}
    )
    assert texts.train == [["x"], [], ["v"], []]
    assert texts.test == [["u"], ["y", "z"], [], ["w"]]
    assert counts == {
        "training text that is also a test text": 3,
        "class without training texts": 2,
        "class without test texts": 1,
    }


def test_what_could_not_count_is_told(setting: Setting, model: Objective):
    sizes: dict[Split, dict[str, int]] = {
        "train": {"a": 20, "b": 20, "c": 0, "d": 6},
        "test": {"a": 5, "b": 5, "c": 4, "d": 0},
    }
    outcome = Toy(sizes, label_budgets=[12, 100, None], validation_items=6).evaluate(model, setting)
    assert outcome.counts == {
        "class without training texts": 1,
        "class without test texts": 1,
        "label budget beyond the data": 1,
        "test item of a label unseen in training@12": 4,
        "test item of a label unseen in training@40": 4,
    }
    assert [m.n_labels for m in outcome.scores if m.metric == "accuracy"] == [40, 12]
    assert {m.n_items for m in outcome.scores if m.higher_is_better} == {14}  # none is dropped


@pytest.mark.parametrize(
    ("train", "test"),
    [({"a": 9, "b": 0}, {"a": 3, "b": 3}), ({"a": 9, "b": 9}, {"a": 0}), ({"a": 2, "b": 2}, {"a": 3})],
)
def test_too_few_texts_are_one_line_with_key_and_fix(
    train: dict[str, int], test: dict[str, int], setting: Setting, model: Objective
):
    with pytest.raises(DataError) as caught:
        Toy({"train": train, "test": test}).evaluate(model, setting)
    assert_one_line(caught.value, "Toy", "task.*.validation_items=15")


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "guess"},
        {"attention": "both"},
        {"pooling": "max"},
        {"label_budgets": []},
        {"label_budgets": [0]},
        {"label_budgets": [201]},
        {"max_labels": 0},
        {"validation_items": 0},
        {"test_items": 0},
        {"n_fits": 0, "protocol": "finetune"},
    ],
)
def test_options_out_of_range_name_their_key(changes: dict[str, Any]):
    with pytest.raises(ConfigError) as caught:
        Toy(**changes)
    key = next(iter(changes))
    assert re.fullmatch(rf"task\.\*\.{key}(\[\d\])?=.*: (use|choose|give) .*", str(caught.value))


# What counts


def budget_of(labels: list[int], test: list[int], n_classes: int) -> BudgetData:
    nothing = torch.zeros(0, 1)
    train, held_out = (LabelledTexts(nothing, torch.tensor(classes)) for classes in (labels, test))
    return BudgetData(train, held_out, held_out, n_classes, positive=0)


def test_a_class_that_was_not_seen_is_never_chosen():
    budget = budget_of([1, 3, 3, 1], [0, 1, 3, 3], n_classes=4)
    assert budget.seen.tolist() == [1, 3]
    scores = torch.tensor([[9.0, 1.0], [2.0, 1.0], [2.0, 1.0], [-5.0, -5.0]])
    assert budget.hits(scores, budget.test).tolist() == [0.0, 1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("labels", "test", "expected"),
    [
        ([0, 1, 2], [0, 0, 1, 2, 2, 2], 1 / 3),  # tied: a guess
        ([0, 0, 1, 2], [0, 0, 1, 2, 2, 2], 2 / 6),
        ([0, 1, 1, 2, 2], [0, 0, 1, 2, 2, 2], (1 / 2) * 4 / 6),
        ([0, 1], [2, 2], 0.0),
    ],
)
def test_chance_is_what_the_most_frequent_class_gets(labels: list[int], test: list[int], expected: float):
    measured = budget_of(labels, test, n_classes=3).measured("accuracy", np.array([1.0, 0.0]))
    assert measured.chance == pytest.approx(expected, abs=1e-12)
    assert (measured.value, measured.n_labels, measured.n_items) == (0.5, len(labels), len(test))


def test_an_oracle_gets_all_but_what_no_one_can_know(setting: Setting):
    assert set(values(Toy().ceiling(setting)).values()) == {1.0}
    sizes: dict[Split, dict[str, int]] = {
        "train": {"a": 20, "b": 20, "c": 0},
        "test": {"a": 5, "b": 3, "c": 2},
    }
    assert set(values(Toy(sizes).ceiling(setting)).values()) == {0.8}


# Protocols


@pytest.mark.parametrize("protocol", ["probe", "layers", "finetune"])
def test_what_a_text_says_is_learnt_and_permuted_labels_give_chance(
    protocol: str, setting: Setting, model: Objective
):
    task = Toy(protocol=protocol, label_budgets=[None])
    learnt = values(task.evaluate(model, setting))[105]
    permuted = values(task.evaluate(model, replace(setting, permutes_labels=True)))[105]
    low, high = binom.interval(0.999, 90, 1 / 3)
    assert learnt > high / 90
    assert low / 90 <= permuted <= high / 90


def test_every_protocol_fits_to_the_same_items_at_a_budget(
    setting: Setting, model: Objective, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Tensor] = []
    for name in ("_probe", "_layers", "_fine_tune"):

        def watched(self: Toy, model: Objective, budget: BudgetData, setting: Setting) -> Outcome:
            seen.append(torch.cat([budget.train.tokens[:12].flatten(), budget.train.labels[:12]]))
            return Outcome([])

        monkeypatch.setattr(Toy, name, watched)
    for protocol in ("probe", "layers", "finetune"):
        Toy(protocol=protocol, label_budgets=[12, None], max_labels=60).evaluate(model, setting)
    assert len(seen) == 6
    assert all(torch.equal(items, seen[0]) for items in seen)


def test_a_text_is_encoded_once_for_all_budgets_and_repeated_tasks(
    setting: Setting, model: Objective, monkeypatch: pytest.MonkeyPatch
):
    encoded: list[int] = []
    for method in ("features", "layer_states"):
        plain = getattr(Objective, method)

        def counted(self: Objective, tokens: Tensor, *how: Any, plain: Any = plain) -> Tensor:
            encoded.append(len(tokens))
            return plain(self, tokens, *how)  # type: ignore[no-any-return]

        monkeypatch.setattr(Objective, method, counted)
    first = Toy().evaluate(model, setting)
    once = 105 + 15 + 90  # for training, validation and testing
    assert sum(encoded) == once
    again = Toy(label_budgets=[60, None]).evaluate(model, setting)
    assert sum(encoded) == once
    assert values(again) == {n: value for n, value in values(first).items() if n != 12}
    Toy(protocol="layers").evaluate(model, setting)
    assert sum(encoded) == once
    Toy(pooling="last").evaluate(model, setting)
    assert sum(encoded) == 2 * once


def test_attention_and_pooling_reach_the_features(
    setting: Setting, model: Objective, monkeypatch: pytest.MonkeyPatch
):
    plain, asked = Objective.features, []

    def watched(
        self: Objective, tokens: Tensor, attention: Attention = "own", pooling: str = "own"
    ) -> Tensor:
        asked.append((attention, pooling))
        return plain(self, tokens, attention, pooling)

    monkeypatch.setattr(Objective, "features", watched)
    for protocol in ("probe", "finetune"):
        Toy(protocol=protocol, attention="causal", pooling="last").evaluate(model, setting)
    assert set(asked) == {("causal", "last")}


def test_the_layer_of_the_headline_is_the_one_that_validates_best(
    setting: Setting, model: Objective, monkeypatch: pytest.MonkeyPatch
):
    """Features of layer 1 tell the classes of validation items, those of layer 2 of test items."""
    task = Toy(protocol="layers", label_budgets=[None])
    budget = task._budgets(setting)[0][0]

    def told(model: Objective, tokens: Tensor, *how: Any, cache: FeatureCache) -> Tensor:
        knows = torch.zeros(len(tokens), 3, 4)  # (N, layers, D)
        labels = {105: budget.train.labels, 15: budget.validation.labels, 90: budget.test.labels}[len(tokens)]
        for layer in {105: (0, 1, 2), 15: (1,), 90: (2,)}[len(tokens)]:
            knows[torch.arange(len(tokens)), layer, labels] = 1.0
        return knows

    monkeypatch.setattr(text_classification, "layer_features", told)
    outcome = task.evaluate(model, setting)
    found = {m.metric: m.value for m in outcome.scores}
    assert list(found) == ["accuracy", "accuracy_layer_0", "accuracy_layer_1", "accuracy_layer_2"]
    assert found["accuracy_layer_2"] == 1.0
    assert found["accuracy"] == found["accuracy_layer_1"] == pytest.approx(1 / 3)
    assert set(outcome.items) == {f"{name}@105" for name in found}


def test_fits_are_averaged_and_their_spread_and_failures_told(
    setting: Setting, model: Objective, monkeypatch: pytest.MonkeyPatch
):
    """Three fits: one right on all items, one on those of class 0, one on none."""
    task = Toy(protocol="finetune", n_fits=3, label_budgets=[60])
    fits = [Tuned(model, nn.Identity(), 1e-2, Course(0.5), failed) for failed in (False, False, True)]
    right = [(0, 1, 2), (0, 0, 0), (1, 2, 0)]

    def scores(self: Toy, fit: Tuned, items: LabelledTexts) -> Tensor:
        chosen = torch.tensor(right[fits.index(fit)])[items.labels]
        return torch.eye(3)[chosen]

    monkeypatch.setattr(Toy, "_fits", lambda *_: fits)
    monkeypatch.setattr(Toy, "_scores", scores)
    outcome = task.evaluate(model, setting)
    assert outcome.items["accuracy@60"].shape == (3, 90)
    found = {m.metric: m for m in outcome.scores}
    assert list(found) == ["accuracy", "accuracy_fit_sd", "failed_fits"]
    assert found["accuracy"].value == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["accuracy_fit_sd"].value == pytest.approx(np.std([1, 1 / 3, 0], ddof=1))
    assert found["failed_fits"].value == pytest.approx(1 / 3)
    assert not found["failed_fits"].higher_is_better


def test_one_fit_has_no_spread(setting: Setting, model: Objective):
    outcome = Toy(protocol="finetune", n_fits=1, label_budgets=[12], steps=4).evaluate(model, setting)
    assert [m.metric for m in outcome.scores] == ["accuracy", "failed_fits"]


# Texts that come through NLTK


def unload_nltk() -> None:
    import nltk.corpus

    for name in ("qc", "movie_reviews"):
        getattr(nltk.corpus, name)._unload()


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import nltk.data

    folder = tmp_path / "nltk_data" / "corpora"
    folder.mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    unload_nltk()
    yield folder
    unload_nltk()


def options(cls: type[TextClassification]) -> TextClassification:
    return cls(ClassificationOptions(**OPTIONS | PROBE))


def test_questions_are_in_their_official_split_with_their_coarse_class(corpora: Path, setting: Setting):
    (corpora / "qc").mkdir()
    (corpora / "qc" / "train.txt").write_text("NUM:dist How far ?\nNUM:date When ?\nHUM:ind Who ?\n")
    (corpora / "qc" / "test.txt").write_text("HUM:desc Who was he ?\n")
    task = options(QuestionClasses)
    assert dict(task.examples("train", setting)) == {"NUM": ["How far ?", "When ?"], "HUM": ["Who ?"]}
    assert dict(task.examples("test", setting)) == {"HUM": ["Who was he ?"]}
    assert not task.examples("validation", setting)


@pytest.mark.parametrize("line", ["How far ?", "NUM:dist", ":dist How far ?", ""])
def test_a_damaged_question_is_named_by_its_line(line: str, corpora: Path, setting: Setting):
    (corpora / "qc").mkdir()
    (corpora / "qc" / "train.txt").write_text(f"NUM:date When ?\n{line}\nHUM:ind Who ?\n")
    (corpora / "qc" / "test.txt").write_text("HUM:desc Who was he ?\n")
    with pytest.raises(DataError) as caught:
        options(QuestionClasses).examples("train", setting)
    assert_one_line(caught.value, "task.qc_*", "qc/train.txt", "line 2", "python -m nltk.downloader")


def test_every_review_is_in_one_split_with_its_polarity(corpora: Path, setting: Setting):
    for name in ("neg", "pos"):
        (corpora / "movie_reviews" / name).mkdir(parents=True)
        for i in range(40):
            (corpora / "movie_reviews" / name / f"cv{i:03}_1.txt").write_text(f"{name} film {i}\n")
    found = {split: options(MovieReviews).examples(split, setting) for split in SPLITS}
    for split in SPLITS:
        for name in ("neg", "pos"):
            expected = [
                f"{name} film {i}\n" for i in range(40) if split_of(f"{name}/cv{i:03}_1.txt") == split
            ]
            assert found[split][name] == expected
    assert sum(len(texts) for classes in found.values() for texts in classes.values()) == 80


@pytest.mark.parametrize(
    ("cls", "corpus"), [(QuestionClasses, "qc"), (MovieReviews, "movie_reviews")], ids=["qc", "reviews"]
)
@pytest.mark.usefixtures("corpora")
def test_a_missing_corpus_is_named_with_the_line_that_gets_it(
    cls: type[TextClassification], corpus: str, setting: Setting
):
    with pytest.raises(DataError) as caught:
        options(cls).examples("train", setting)
    assert_one_line(caught.value, f"task.{corpus}_*", f"python -m nltk.downloader {corpus}")


@pytest.mark.slow
@pytest.mark.skipif("NLTK_DATA" not in os.environ, reason="no NLTK data named by NLTK_DATA")
def test_the_real_questions_and_reviews_are_those_of_their_papers(setting: Setting):
    unload_nltk()
    questions = {split: options(QuestionClasses).examples(split, setting) for split in SPLITS}
    assert Counter({name: len(texts) for name, texts in questions["test"].items()}) == {
        **{"DESC": 138, "NUM": 113, "ENTY": 94, "LOC": 81, "HUM": 65, "ABBR": 9}
    }
    assert sum(map(len, questions["train"].values())) == 5452
    assert Texts.without_tested(questions["train"], questions["test"])[1] == {
        "training text that is also a test text": 10,
        "class without training texts": 0,
        "class without test texts": 0,
    }
    reviews = [options(MovieReviews).examples(split, setting) for split in SPLITS]
    assert [sum(len(part[name]) for part in reviews) for name in ("neg", "pos")] == [1000, 1000]
