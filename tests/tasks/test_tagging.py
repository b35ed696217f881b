"""Words in windows, and what taggings learn: oracle, chance, budgets, what could not count."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from tokenizers import Tokenizer, normalizers
from torch import Tensor
from torch.testing import assert_close
from toy_data import assert_one_line
from toy_models import CONF, OPTIM, SHAPES, make_strategy

from bench.config.build import build
from bench.config.schema import Model
from bench.data.corpora.base import Split
from bench.data.tokenizer import EOS, PAD, train_tokenizer
from bench.errors import ConfigError, DataError
from bench.objectives.base import Attention, Shapes
from bench.objectives.scratch import Scratch
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.probe import beats_tag_frequencies
from bench.tasks.tagging import Sentence, Tagging
from bench.tasks.word_states import NOT_READ, WordWindows, all_words, windows

WORDS = ["saw", "Ann", "Lee", "in", "Rome", "and", "left", "¤", "extraordinarily"]
TAG_OF = {"Ann": "B-PER", "Lee": "I-PER", "Rome": "B-LOC"}
LENGTH = 12


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Bytes, and a few pieces of the words."""
    return train_tokenizer([" ".join(WORDS)] * 3, 270)


def toy_windows(tokenizer: Tokenizer, sentences: list[list[str]], **changes: Any) -> WordWindows:
    options = {"first_only": False, "context_share": 0.25} | changes
    return windows(sentences, tokenizer, LENGTH, **options)


# Words in windows

SENTENCES = [
    ["saw", "Ann"],
    ["extraordinarily"],
    ["left", "Rome", "and", "extraordinarily", "saw", "Ann", "Lee", "in"],
]


@pytest.mark.parametrize("context_share", [0.0, 0.25, 0.5])
def test_every_word_is_read_once_and_windows_fit(tokenizer: Tokenizer, context_share: float):
    text = toy_windows(tokenizer, SENTENCES, context_share=context_share)
    assert text.tokens.shape == text.owner.shape
    assert text.tokens.shape[1] <= LENGTH
    assert ((text.tokens == EOS).sum(dim=1) == 1).all()
    assert text.starts.tolist() == [0, 2, 3, 11]
    assert text.has_state.all()
    places = {(int(w), row) for row, owners in enumerate(text.owner) for w in owners if w != NOT_READ}
    assert sorted(word for word, _ in places) == list(range(11))
    assert (text.owner[(text.tokens == PAD) | (text.tokens == EOS)] == NOT_READ).all()


def test_tokens_belong_to_the_word_that_they_spell(tokenizer: Tokenizer):
    text = toy_windows(tokenizer, SENTENCES)
    flat = [word for words in SENTENCES for word in words]
    for i, word in enumerate(flat):
        spelt = tokenizer.decode(text.tokens[text.owner == i].tolist()).strip()
        assert spelt == word or (len(word) > LENGTH and word.startswith(spelt) and spelt)


def test_a_further_window_starts_with_the_end_of_the_one_before(tokenizer: Tokenizer):
    words = ["saw", "Ann", "Lee", "in", "Rome", "and", "left", "Rome"]
    plain, text = (toy_windows(tokenizer, [words], context_share=share) for share in (0.0, 0.5))
    assert len(text.tokens) > len(plain.tokens) > 1
    read = [tokenizer.decode(row[row > EOS].tolist()).split() for row in text.tokens]
    for i, row in enumerate(read[1:], start=1):
        new = [words[w] for w in text.owner[i].unique().tolist() if w != NOT_READ]
        context = row[: len(row) - len(new)]
        assert row[len(context) :] == new
        assert "".join(context)
        assert "".join(read[i - 1]).endswith("".join(context))
    apart = [tokenizer.decode(row[row > EOS].tolist()).split() for row in plain.tokens]
    assert [word for row in apart for word in row] == words


def test_a_first_token_is_one_per_word(tokenizer: Tokenizer):
    mean, first = (toy_windows(tokenizer, SENTENCES, first_only=only) for only in (False, True))
    assert_close(first.tokens, mean.tokens)
    owners = first.owner[first.owner != NOT_READ].tolist()
    assert sorted(owners) == list(range(11))
    for word in owners:
        assert (first.owner == word).nonzero().tolist() == (mean.owner == word).nonzero()[:1].tolist()


@pytest.mark.parametrize("first_only", [False, True])
def test_a_words_state_is_that_of_its_tokens(tokenizer: Tokenizer, first_only: bool):
    model = make_strategy("mlm", shapes=replace(SHAPES, vocab_size=300, sequence_length=LENGTH))
    text = toy_windows(tokenizer, [["Rome", "left"]], first_only=first_only)
    states = all_words(model, text, "own")
    ids = tokenizer.encode("Rome left", add_special_tokens=False)
    hidden = model.states(torch.tensor([[*ids.ids, EOS]]))[0]
    of_rome = [i for i, (_, stop) in enumerate(ids.offsets) if stop <= 4]
    assert len(of_rome) > 1
    expected = hidden[0] if first_only else hidden[of_rome].mean(dim=0)
    assert_close(states[0], expected, rtol=0, atol=1e-5)


def test_a_word_of_which_nothing_is_left_has_no_state(tokenizer: Tokenizer):
    text = toy_windows(without_sign(tokenizer), [["saw", "¤", "Ann"]])
    assert text.has_state.tolist() == [True, False, True]


def without_sign(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that drops a sign, as those of some checkpoints do."""
    copied = Tokenizer.from_str(tokenizer.to_str())
    copied.normalizer = normalizers.Replace("¤", "")
    return copied


# Tasks on a toy language: a word's tag is a function of the word


class OneLayer(Scratch):
    """A strategy whose states are the same in all layers."""

    def layer_states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        return self.states(tokens, attention)[None]


class Reader(OneLayer):
    """A strategy that knows a token, and nothing of where it stands."""

    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        return F.one_hot(tokens, self.shapes.model.d_model).float()


class Noise(OneLayer):
    """A strategy whose states say nothing of the tokens."""

    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        random = torch.Generator().manual_seed(int(tokens.sum()))
        return torch.randn(*tokens.shape, self.shapes.model.d_model, generator=random)


def judged(outcome: Outcome) -> list[Measured]:
    """The scores without those that only describe the probe."""
    return [m for m in outcome.scores if m.higher_is_better is not None]


def strategy(cls: type[Scratch], d_model: int) -> Scratch:
    model = Model(d_model=d_model, n_layers=1, n_heads=1, d_ff=8, patch_size=4)
    shapes = Shapes(model=model, vocab_size=300, sequence_length=LENGTH, caption_length=6, image_size=8)
    options = Scratch.Options(modality="none", attention="bidirectional", pooling="mean")
    return cls(options, shapes=shapes, optimizer=OPTIM)


def toy_sentences(split: Split, n: int = 150) -> list[Sentence]:
    rng = np.random.default_rng(["train", "validation", "test"].index(split))
    usual = WORDS[:7]
    drawn = [[usual[i] for i in rng.integers(len(usual), size=rng.integers(1, 8))] for _ in range(n)]
    return [Sentence(words, [TAG_OF.get(word, "O") for word in words]) for words in drawn]


def toy_task(monkeypatch: pytest.MonkeyPatch, stem: str = "ner_ieer", **changes: Any) -> Tagging:
    node = OmegaConf.to_container(OmegaConf.load(CONF / "task" / f"{stem}.yaml"))[stem]  # type: ignore[index,call-overload]
    quick = {"label_budgets": [100], "test_items": 150}
    if node["protocol"] == "finetune":
        quick |= {"steps": 4, "lr_grid": [1e-3], "validate_every": 1}
    task = build(node | quick | changes, Task, f"task.{stem}")  # type: ignore[type-abstract]
    assert isinstance(task, Tagging)
    monkeypatch.setattr(type(task), "sentences", lambda self, split: toy_sentences(split))
    return task


@pytest.fixture
def setting(tokenizer: Tokenizer, tmp_path: Path) -> Setting:
    nothing: Any = None
    return Setting(tokenizer, LENGTH, nothing, nothing, tmp_path, seed=0, keep_going=lambda: None)


@pytest.mark.parametrize("stem", ["ner_ieer", "pos_treebank"])
def test_one_who_can_tell_the_words_gets_the_ceiling(
    stem: str, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    task = toy_task(monkeypatch, stem)
    ceiling = task.ceiling(setting).scores
    found = judged(task.evaluate(strategy(Reader, 300), setting))
    assert ceiling[0].value == 1.0
    assert [(m.metric, m.value, m.n_items, m.n_labels) for m in found] == [
        (m.metric, m.value, m.n_items, m.n_labels) for m in ceiling
    ]


@pytest.mark.parametrize("stem", ["ner_ieer", "pos_treebank"])
def test_words_without_a_token_lower_the_ceiling_and_are_counted(
    stem: str, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    task = toy_task(monkeypatch, stem)
    odd = Sentence(["¤", "Rome", "saw", "¤"], ["B-LOC", "I-LOC", "O", "O"])
    plain = Sentence(["Ann", "Lee", "in", "Rome"], ["B-PER", "I-PER", "O", "B-LOC"])
    monkeypatch.setattr(type(task), "sentences", lambda self, split: [odd] + [plain] * 4)
    bare = replace(setting, tokenizer=without_sign(setting.tokenizer))
    expected = 18 / 20 if stem == "pos_treebank" else 2 * 8 / (9 + 9)
    assert task.ceiling(bare).scores[0].value == pytest.approx(expected, abs=1e-12)
    found = task.evaluate(strategy(Reader, 300), bare)
    assert found.counts["test word without a token"] == 2
    assert found.counts["training word without a token@5"] == 2
    assert found.scores[0].value <= expected


@pytest.mark.parametrize(("cls", "permutes"), [(Noise, False), (Reader, True)])
def test_what_says_nothing_scores_chance(
    cls: type[Scratch], permutes: bool, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    audited = replace(setting, permutes_labels=permutes)
    model = strategy(cls, 300 if permutes else 4)
    spans = toy_task(monkeypatch).evaluate(model, audited).scores[0]
    assert spans.chance == 0.0
    assert spans.value < 2 * (1 / spans.n_items) ** 0.5
    accuracy = toy_task(monkeypatch, "pos_treebank").evaluate(model, audited).scores[0]
    assert accuracy.chance is not None
    sd = (accuracy.chance * (1 - accuracy.chance) / accuracy.n_items) ** 0.5
    assert 0.4 < accuracy.chance < 0.7
    assert abs(accuracy.value - accuracy.chance) < 3 * sd


@pytest.mark.parametrize(("cls", "permutes"), [(Noise, False), (Reader, True)])
def test_a_probe_of_nothing_is_the_constant_where_no_tag_has_the_most(
    cls: type[Scratch], permutes: bool, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    """Without its check it takes one frequent tag for the other, and misses chance by more than luck."""
    audited = replace(setting, permutes_labels=permutes)
    told = [Sentence(s.words, [f"T{WORDS.index(w)}" for w in s.words]) for s in toy_sentences("train")]
    model = strategy(cls, 300)
    found = []
    for share in (0.0, 0.2):
        task = toy_task(monkeypatch, "pos_treebank", held_out_share=share)
        monkeypatch.setattr(type(task), "sentences", lambda self, split: told)
        found.append(task.evaluate(model, audited).scores[0])
    unchecked, checked = found
    assert checked.value == checked.chance
    assert unchecked.value != checked.value


def test_a_state_that_tells_the_tag_beats_tag_frequencies():
    labels = torch.arange(60) % 3
    assert beats_tag_frequencies(F.one_hot(labels).float(), labels, 0.2)
    assert not beats_tag_frequencies(torch.ones(60, 3), labels, 0.2)
    assert not beats_tag_frequencies(F.one_hot(labels).float(), labels * 0, 0.2)  # one tag: nothing to learn


def test_chance_is_what_a_constant_says_of_every_word(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    task = toy_task(monkeypatch, "pos_treebank")
    test = toy_sentences("test")
    share = np.mean([tag == "O" for s in test for tag in s.tags])
    assert task.evaluate(strategy(Noise, 4), setting).scores[0].chance == pytest.approx(share, abs=1e-12)


def test_a_constant_inside_tag_is_one_span_a_sentence(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    """As in chunking, where the most frequent tag is I-NP."""
    task = toy_task(monkeypatch, "chunking_conll2000")
    whole = Sentence(["saw", "Ann", "Lee", "in"], ["B-NP", "I-NP", "I-NP", "I-NP"])
    told = [whole, Sentence(["left", "in"], ["O", "B-NP"])]
    monkeypatch.setattr(type(task), "sentences", lambda self, split: told * 4)
    assert task.evaluate(strategy(Noise, 4), setting).scores[0].chance == 2 * 4 / (8 + 8)


def test_a_score_is_made_of_its_items_at_every_budget(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    task = toy_task(monkeypatch, label_budgets=[2, 8, None])
    outcome = task.evaluate(strategy(Reader, 300), setting)
    scores = judged(outcome)
    assert [m.n_labels for m in scores] == [150, 8, 2]  # null means all, and comes first
    for m in scores:
        names = ("true_positives", "predicted", "gold")
        right, found, real = (outcome.items[f"f1.{name}@{m.n_labels}"] for name in names)
        assert right.shape == found.shape == real.shape == (150,)
        assert m.value == pytest.approx(2 * right.sum() / (found.sum() + real.sum()), abs=1e-12)
        assert m.n_items == real.sum()
    assert len({m.value for m in scores}) > 1


def test_a_budget_is_a_prefix_of_the_seeds_draw(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    few, many, other = (
        toy_task(monkeypatch)._draw("train", n, replace(setting, seed=seed)).sentences
        for n, seed in ((5, 0), (50, 0), (50, 1))
    )
    assert few == many[:5]
    assert other[:5] != few
    tests = [
        toy_task(monkeypatch, test_items=20)._test(replace(setting, seed=seed)).sentences for seed in (0, 1)
    ]
    assert tests[0] == tests[1]


def test_labels_unseen_in_training_are_counted_and_wrong(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    task = toy_task(monkeypatch, "pos_treebank")
    odd = [Sentence(["Rome", "and"], ["X", "O"])] * 5
    monkeypatch.setattr(
        type(task), "sentences", lambda self, split: odd if split == "test" else toy_sentences(split)
    )
    outcome = task.evaluate(strategy(Reader, 300), setting)
    assert outcome.counts["test word with a label unseen in training@100"] == 5
    assert outcome.scores[0].value == 0.5


def test_training_sentences_of_one_tag_teach_that_tag(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    task = toy_task(monkeypatch)
    plain = [Sentence(["saw", "in"], ["O", "O"])] * 5
    monkeypatch.setattr(
        type(task), "sentences", lambda self, split: plain if split == "train" else toy_sentences(split)
    )
    found = task.evaluate(strategy(Reader, 300), setting).scores[0]
    assert (found.value, found.chance) == (0.0, 0.0)


@pytest.mark.slow
def test_fine_tuning_reports_its_fits(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    model = make_strategy("mlm", shapes=replace(SHAPES, vocab_size=300, sequence_length=LENGTH))
    task = toy_task(monkeypatch, "ner_ieer_finetune", steps=60, lr_grid=[1e-2], n_fits=3, validate_every=30)
    outcome = task.evaluate(model, setting)
    f1, spread, failed = outcome.scores
    assert (f1.metric, spread.metric, failed.metric) == ("f1", "f1_fit_sd", "failed_fits")
    items = outcome.items
    assert {rows.shape for rows in items.values()} == {(3, 150)}
    right, found, real = (items[f"f1.{k}@100"].sum(axis=1) for k in ("true_positives", "predicted", "gold"))
    values = 2 * right / (found + real)
    assert f1.value == pytest.approx(values.mean(), abs=1e-12)
    assert f1.value > 0.5
    assert spread.value == pytest.approx(values.std(ddof=1), abs=1e-12)
    assert failed.value == 0.0


def test_fine_tuning_that_learns_nothing_is_the_constant_and_failed(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    model = make_strategy("mlm", shapes=replace(SHAPES, vocab_size=300, sequence_length=LENGTH))
    task = toy_task(monkeypatch, "ner_ieer_finetune", steps=1, lr_grid=[1e-9], n_fits=2)
    scores = {m.metric: m for m in task.evaluate(model, setting).scores}
    assert scores["f1"].value == scores["f1"].chance == 0.0
    assert scores["failed_fits"].value == 1.0


def test_no_test_sentences_is_one_line(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    task = toy_task(monkeypatch)
    monkeypatch.setattr(type(task), "sentences", lambda self, split: [])
    with pytest.raises(DataError) as caught:
        task.evaluate(strategy(Noise, 4), setting)
    assert_one_line(caught.value, "Ieer", "train")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"protocol": "zero_shot"}, "protocol"),
        ({"label_budgets": []}, "label_budgets"),
        ({"label_budgets": [32, 0]}, "label_budgets"),
        ({"test_items": 0}, "test_items"),
        ({"validation_items": 0}, "validation_items"),
        ({"max_labels": 0}, "max_labels"),
        ({"label_budgets": [513]}, "label_budgets"),
        ({"held_out_share": -0.1}, "held_out_share"),
        ({"word_state": "last"}, "word_state"),
        ({"context_share": 0.9}, "context_share"),
        ({"attention": "both"}, "attention"),
    ],
)
def test_an_option_that_cannot_work_is_named(
    changes: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ConfigError) as caught:
        toy_task(monkeypatch, **changes)
    assert re.fullmatch(rf"task\.\w+\.{key}(\[\d\])?=.*: (use|choose|give) .*", str(caught.value))
