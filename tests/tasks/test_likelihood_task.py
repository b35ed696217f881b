"""Bits per byte, on corpora whose entropy is known and with models that can be done by hand."""

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_data import ToyPairs, ToyText, assert_one_line, toy_pairs
from toy_models import OPTIM, SHAPES, make_strategy

from bench.config import schema
from bench.data.corpora.base import Document
from bench.data.pairs import prepare_pairs
from bench.data.shards import prepare_text
from bench.data.tokenizer import EOS, MIN_VOCAB_SIZE
from bench.errors import ConfigError, DataError, InapplicableError, InterruptedRunError
from bench.objectives.base import Likelihood, TextNLL
from bench.objectives.scratch import Scratch
from bench.tasks.base import Measured, Setting
from bench.tasks.likelihood import BitsPerByte

BYTES_ONLY = schema.Tokenizer(vocab_size=MIN_VOCAB_SIZE, train_bytes=2000)  # one token a byte
T = 16


class Toy(Scratch):
    """A model that can give every kind, and keeps what it was asked."""

    likelihoods = frozenset[Likelihood]({"exact", "bound", "pseudo"})

    def __init__(self) -> None:
        options = Scratch.Options(modality="none", attention="causal", pooling="mean")
        super().__init__(options, shapes=SHAPES, optimizer=OPTIM)
        self.asked: list[tuple[Tensor, int]] = []
        self.drawn: list[float] = []

    def token_nll(
        self,
        tokens: Tensor,
        kind: Likelihood,
        *,
        samples: int,
        generator: torch.Generator,
        scored: Tensor | None = None,
    ) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.asked.append((tokens, samples))
        self.drawn.append(float(torch.rand((), generator=generator)))
        return self.nats(tokens[:, 1:])

    def nats(self, tokens: Tensor) -> Tensor:
        """Each token's surprise: uniform over the vocabulary."""
        return torch.full(tokens.shape, math.log(MIN_VOCAB_SIZE), dtype=torch.float64)


class Coin(Toy):
    """Knows that a text is tosses of a fair coin, and where it ends."""

    def nats(self, tokens: Tensor) -> Tensor:
        return math.log(2) * (tokens != EOS).double()


class Elsewhere(Toy):
    """A model whose weights are not here: two nats a byte."""

    has_weights = False

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def text_nll(self, texts: list[str], data_dir: Path) -> TextNLL:
        self.texts += texts
        n_bytes = sum(len(text.encode()) for text in texts)
        return TextNLL(2.0 * n_bytes, n_bytes)


def setting_of(folder: Path, texts: list[str]) -> Setting:
    items = [Document(text=text, group=f"g{i}", labels={}) for i, text in enumerate(texts)]
    text = prepare_text(ToyText(items), BYTES_ONLY, folder)
    return Setting(
        tokenizer=text.tokenizer(),
        sequence_length=T,
        text=text,
        pairs=prepare_pairs(ToyPairs(toy_pairs()), text.tokenizer_path, SHAPES.caption_length, folder),
        data_dir=folder,
        seed=0,
        keep_going=lambda: None,
    )


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Tosses of a coin; texts of 30 to 50 bytes."""
    rng = random.Random(0)  # noqa: S311 - a coin
    texts = ["".join(rng.choices("01", k=30 + i % 21)) for i in range(1000)]
    return setting_of(tmp_path_factory.mktemp("coin"), texts)


def task(**changes: object) -> BitsPerByte:
    draws = {"samples": 3} if changes.get("kind") == "bound" else {}
    options = {"kind": "exact", "windows": 40, "batch_size": 16} | draws | changes
    return BitsPerByte(BitsPerByte.Options(**options))  # type: ignore[arg-type]


def score(model: Toy, setting: Setting, **changes: object) -> Measured:
    (measured,) = task(**changes).evaluate(model, setting).scores
    return measured


def asked(model: Toy) -> Tensor:
    return torch.cat([tokens for tokens, _ in model.asked])


def test_a_uniform_model_scores_the_bits_of_its_vocabulary_by_tokens_and_bytes(setting: Setting):
    model = Toy()
    measured = score(model, setting)
    n_tokens, n_bytes = 40 * (T - 1), int((asked(model)[:, 1:] != EOS).sum())
    assert n_bytes < n_tokens  # EOS is a token without bytes
    expected = math.log2(MIN_VOCAB_SIZE) * n_tokens / n_bytes
    assert measured.value == pytest.approx(expected, rel=1e-12)
    assert measured.chance == pytest.approx(expected, rel=1e-12)


def test_an_oracle_scores_the_entropy_of_the_source(setting: Setting):
    measured = score(Coin(), setting)
    assert measured.value == pytest.approx(1.0, rel=1e-12)  # a toss is a byte
    assert measured.n_items == 40
    assert not measured.higher_is_better


def test_bytes_are_those_of_utf_8(tmp_path: Path):
    texts = [f"{i:03d}" + "ñ" * (T - 3) for i in range(200)]  # 3 + 26 bytes and EOS: 30 tokens
    whole = replace(setting_of(tmp_path, texts), sequence_length=30)
    assert score(Toy(), whole).value == pytest.approx(math.log2(MIN_VOCAB_SIZE) * 29 / 28, rel=1e-12)


@pytest.mark.parametrize("kind", ["exact", "bound", "pseudo"])
def test_a_kind_is_in_the_name_of_its_metric(kind: str, setting: Setting):
    assert score(Toy(), setting, kind=kind).metric == f"bits_per_byte_{kind}"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pseudo"}, "a pseudo-likelihood only"),
        ({"bound", "pseudo"}, "a bound and a pseudo-likelihood only"),
        (set(), "no likelihood of a text"),
    ],
)
def test_a_strategy_without_the_kind_is_told_what_it_has(given: set[str], says: str, setting: Setting):
    model = Toy()
    model.likelihoods = frozenset(given)  # type: ignore[arg-type]
    with pytest.raises(InapplicableError, match=f"^{says}$"):
        score(model, setting)
    assert model.asked == []


def test_a_real_strategy_is_sorted_by_what_it_computes(setting: Setting):
    assert score_of("prefix_lm", "exact", setting) > 0
    assert score_of("mlm", "pseudo", setting) > 0
    with pytest.raises(InapplicableError, match="a pseudo-likelihood only"):
        score_of("mlm", "exact", setting)
    with pytest.raises(InapplicableError, match="an exact likelihood only"):
        score_of("prefix_lm", "bound", setting)
    with pytest.raises(InapplicableError, match="no likelihood"):
        score_of("clip", "exact", setting)


def score_of(stem: str, kind: str, setting: Setting) -> float:
    model = make_strategy(stem, shapes=replace(SHAPES, vocab_size=MIN_VOCAB_SIZE))
    return task(kind=kind, windows=2).evaluate(model, setting).scores[0].value


# Windows and draws


def test_windows_are_spread_over_the_test_split_and_none_is_read_twice(setting: Setting):
    split = setting.text.test()
    n_rows = split.n_tokens // T
    rows = torch.from_numpy(split.read(0, n_rows * T).astype(np.int64)).view(n_rows, T)
    few, all_rows = Toy(), Toy()
    assert score(few, setting, windows=4).n_items == 4
    assert torch.equal(asked(few), rows[[i * n_rows // 4 for i in range(4)]])
    assert score(all_rows, setting, windows=10**6).n_items == n_rows
    assert torch.equal(asked(all_rows), rows)


def test_every_strategy_and_every_seed_gets_the_same_windows_and_draws(setting: Setting):
    one, other = Toy(), Coin()
    score(one, setting, kind="bound")
    score(other, replace(setting, seed=7), kind="bound")
    assert torch.equal(asked(one), asked(other))
    assert one.drawn == other.drawn
    assert len(set(one.drawn)) == len(one.drawn) == 3  # 40 windows by 16
    assert {samples for _, samples in one.asked} == {3}


def test_the_score_stops_when_the_run_is_told_to(setting: Setting):
    def stop() -> None:
        raise InterruptedRunError

    for model in (Toy(), Elsewhere()):
        with pytest.raises(InterruptedRunError):
            score(model, replace(setting, keep_going=stop))
        assert model.asked == []


def test_a_likelihood_that_is_not_finite_is_no_score(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    model = Toy()
    monkeypatch.setattr(model, "nats", lambda tokens: torch.full(tokens.shape, math.nan))
    with pytest.raises(FloatingPointError, match="diverged"):
        score(model, setting)


def test_a_model_elsewhere_is_given_texts_and_counts_its_own_bytes(setting: Setting):
    here, elsewhere = Toy(), Elsewhere()
    score(here, setting)
    assert score(elsewhere, setting).value == pytest.approx(2 / math.log(2))
    tokenizer = setting.tokenizer
    for tokens, text in zip(asked(here).tolist(), elsewhere.texts, strict=True):
        spelt = tokenizer.decode(tokens, skip_special_tokens=False)
        assert text == spelt.removeprefix("[EOS]").removesuffix("[EOS]").replace("[EOS]", "\n\n")
    with pytest.raises(InapplicableError, match="an exact likelihood only"):
        score(elsewhere, setting, kind="bound")


# What cannot work


@pytest.mark.parametrize(
    ("key", "value"), [("kind", "perplexity"), ("windows", 0), ("samples", 0), ("batch_size", 0)]
)
def test_an_option_that_cannot_work_is_named(key: str, value: object):
    with pytest.raises(ConfigError) as raised:
        task(**{key: value})
    assert_one_line(raised.value, f"{key}={value!r}")


def test_a_split_without_a_whole_window_is_named(setting: Setting):
    too_long = replace(setting, sequence_length=setting.text.test().n_tokens + 1)
    with pytest.raises(DataError) as raised:
        score(Toy(), too_long)
    assert_one_line(raised.value, "test split", "sequence_length")
