"""Canaries: planted exactly as often as stated, and exposure by hand."""

import json
import math
import random
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus_builders import text_corpus
from torch import Tensor
from toy_data import SETTINGS, ToyPairs, ToyText, assert_one_line, prepare, texts_of, toy_documents, toy_pairs
from toy_models import OPTIM, SHAPES, make_strategy

from bench.data.batches import TextRows
from bench.data.corpora.base import Document
from bench.data.corpora.canaries import CanaryDocstrings, CanaryOptions, canaries, spell
from bench.data.pairs import prepare_pairs
from bench.data.planting import Planted, Planting, place
from bench.data.shards import TextData, prepare_text
from bench.data.tokenizer import EOS
from bench.errors import ConfigError, DataError, InapplicableError
from bench.objectives.base import Likelihood, Objective
from bench.objectives.likelihood import scored_tokens
from bench.objectives.scratch import Scratch
from bench.tasks.base import Outcome, Setting
from bench.tasks.canaries import Canaries, chance_exposure, exposure

OPTIONS = CanaryOptions(counts=[0, 1, 4, 16], per_count=3, digits=4, within_bytes=6000, canary_seed=0)
BUDGETS = (6000, 7000, None)


@dataclass
class ToyCanaries(ToyText):
    """Toy documents with canaries."""

    canary_options: CanaryOptions = OPTIONS

    def planting(self) -> Planting:
        return Planting(canaries(self.canary_options), self.canary_options.within_bytes)


def planted_data(folder: Path, options: CanaryOptions = OPTIONS) -> TextData:
    return prepare_text(ToyCanaries(toy_documents(600), canary_options=options), SETTINGS, folder / "planted")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TextData:
    return planted_data(tmp_path_factory.mktemp("canaries"))


def setting_of(text: TextData, **changes: Any) -> Setting:
    folder = text.folder.parent
    setting = Setting(
        tokenizer=text.tokenizer(),
        sequence_length=64,
        text=text,
        pairs=prepare_pairs(ToyPairs(toy_pairs()), text.tokenizer_path, SHAPES.caption_length, folder),
        data_dir=folder,
        seed=0,
        keep_going=lambda: None,
    )
    return replace(setting, **changes)


@pytest.fixture(scope="module")
def setting(data: TextData) -> Setting:
    return setting_of(data)


# The corpus


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_budget_holds_each_canary_exactly_as_often_as_stated(data: TextData, budget: int | None):
    found = Counter(texts_of(data, data.train(budget)))
    assert {c.text: found[c.text] for c in canaries(OPTIONS)} == {c.text: c.copies for c in canaries(OPTIONS)}


@pytest.mark.parametrize("budget", BUDGETS)
def test_whole_rows_hold_every_copy(data: TextData, budget: int | None):
    rows = TextRows(data.train(budget), 64)
    tokens = rows.read(np.arange(len(rows)))["tokens"].flatten().tolist()
    text = data.tokenizer().decode(tokens, skip_special_tokens=False)
    assert all(text.count(canary.text) == canary.copies for canary in canaries(OPTIONS))


def test_no_canary_is_held_out(data: TextData):
    held_out = {*texts_of(data, data.validation()), *texts_of(data, data.test())}
    assert not held_out & {canary.text for canary in canaries(OPTIONS)}


def test_all_else_is_the_corpus_without_canaries(data: TextData, tmp_path: Path):
    clean = prepare(tmp_path, toy_documents(600))
    planted = {canary.text for canary in canaries(OPTIONS)}
    others = [text for text in texts_of(data, data.train()) if text not in planted]
    assert others == texts_of(clean, clean.train())
    for split in ("validation", "test"):
        for path in clean.folder.glob(f"{split}.*"):
            assert path.read_bytes() == (data.folder / path.name).read_bytes()
    assert clean.manifest["tokenizer_sha256"] == data.manifest["tokenizer_sha256"]
    assert clean.manifest["content_sha256"] != data.manifest["content_sha256"]
    assert "planted" not in clean.manifest


def test_copies_of_one_canary_are_spread_and_never_neighbours(data: TextData):
    texts = texts_of(data, data.train(6000))
    planted = {canary.text for canary in canaries(OPTIONS)}
    for canary in canaries(OPTIONS):
        at = [i for i, text in enumerate(texts) if text == canary.text]
        for first, second in pairwise(at):
            assert not set(texts[first + 1 : second]) <= planted
        if canary.copies == 16:
            assert at[0] < len(texts) / 8
            assert at[-1] > len(texts) * 3 / 4


def test_places_by_hand():
    planting = Planting([Planted("a", 2), Planted("b", 0)], within_bytes=80)
    order = place(np.array([2, 0, 3, 1]), np.array([20, 20, 20, 20, 5, 5]), planting)
    # 72 of 80 bytes, 10 of them for the copies, leave three documents: copies at 0.62 of each half of these
    assert order.tolist() == [2, 4, 0, 3, 4, 1]


def test_a_budget_that_cannot_hold_all_copies_is_refused(data: TextData):
    with pytest.raises(ConfigError) as caught:
        data.train(5999)
    assert_one_line(caught.value, "budget.unique_bytes=5999", "corpus.text.within_bytes=6000")


def test_canaries_that_leave_no_room_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        planted_data(tmp_path, replace(OPTIONS, within_bytes=2500))
    assert_one_line(caught.value, "corpus.text.within_bytes=2500", "63 planted copies")


def test_secrets_are_drawn_by_their_seed_and_spelt_in_full():
    assert canaries(OPTIONS) == canaries(OPTIONS)
    other = canaries(replace(OPTIONS, canary_seed=1))
    assert not {c.text for c in other} & {c.text for c in canaries(OPTIONS)}
    assert len({c.text.rpartition(" is ")[0] for c in canaries(OPTIONS)}) == 12
    assert spell(7, 4) == "0 0 0 7"


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": [1, 4]},
        {"counts": [0]},
        {"counts": [0, 1, 1]},
        {"per_count": 0},
        {"digits": 0},
        {"within_bytes": 0},
    ],
)
def test_options_out_of_range_name_their_key(changes: dict[str, Any]):
    with pytest.raises(ConfigError) as caught:
        text_corpus("docstrings_canaries", **changes)
    assert_one_line(caught.value, f"corpus.text.{next(iter(changes))}")


def test_the_shipped_canaries_fit_and_tell_what_they_are():
    corpus = text_corpus("docstrings_canaries")
    assert isinstance(corpus, CanaryDocstrings)
    planting = corpus.planting()
    n_bytes = sum(item.copies * len(item.text) for item in planting.texts)
    assert n_bytes < 0.1 * planting.within_bytes
    assert "256 copies" in corpus.provenance()["canaries"]
    other = text_corpus("docstrings_canaries", canary_seed=1)
    assert other.fingerprint() != corpus.fingerprint()
    assert text_corpus("docstrings").planting() is None


# Exposure


def test_exposure_by_hand():
    nats = np.array([[1.0, 2, 3, 4], [4, 1, 2, 3], [2, 1, 2, 3]])
    tied = 2 - (math.log2(2) + math.log2(3)) / 2  # second or third, equally likely
    assert exposure(nats).tolist() == pytest.approx([2, 0, tied])


@pytest.mark.parametrize("n", [2, 8, 256])
def test_a_constant_model_and_a_random_rank_have_chance(n: int):
    assert exposure(np.ones((1, n)))[0] == pytest.approx(chance_exposure(n), abs=1e-12)
    ranks = [exposure(np.array([[r + 0.5, *range(n - 1)]]))[0] for r in range(-1, n - 1)]
    assert np.mean(ranks) == pytest.approx(chance_exposure(n), abs=1e-12)


class Knowing(Scratch):
    """Finds these texts likelier than all others; keeps what it was asked."""

    likelihoods = frozenset[Likelihood]({"exact", "bound", "pseudo"})

    def __init__(self, setting: Setting, known: set[str]) -> None:
        options = Scratch.Options(modality="none", attention="causal", pooling="mean")
        super().__init__(options, shapes=SHAPES, optimizer=OPTIM)
        self.setting, self.known = setting, known
        self.asked: list[list[str]] = []
        self.drawn: list[Tensor] = []

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
        assert (tokens[:, 0] == EOS).all()
        is_scored = scored_tokens(tokens, scored)
        texts = self.setting.tokenizer.decode_batch(tokens.tolist())
        for row, text, mine in zip(tokens[:, 1:], texts, is_scored, strict=True):
            end = self.setting.tokenizer.decode(row[mine].tolist())
            assert text.endswith(end)
            assert 2 * OPTIONS.digits - 1 <= len(end) <= 2 * OPTIONS.digits  # the secret, its space at most
        self.asked.append(texts)
        self.drawn.append(torch.rand(len(tokens), generator=generator))
        return is_scored * self.nats(texts)[:, None]

    def nats(self, texts: list[str]) -> Tensor:
        return torch.tensor([0.0 if text in self.known else 1.0 for text in texts])


class Noisy(Knowing):
    """Random likelihoods."""

    def nats(self, texts: list[str]) -> Tensor:
        return torch.tensor([random.Random(text).random() for text in texts])  # noqa: S311


def task(kind: str = "exact", candidates: int = 32) -> Canaries:
    return Canaries(
        Canaries.Options(kind=kind, candidates=candidates, samples=2 if kind == "bound" else None)
    )


def values(outcome: Outcome) -> dict[str, float]:
    return {m.metric: m.value for m in outcome.scores}


def test_one_that_remembers_what_was_planted_has_maximal_exposure_and_none_of_the_controls(setting: Setting):
    planted = [c for c in canaries(OPTIONS) if c.copies]
    outcome = task().evaluate(Knowing(setting, {c.text for c in planted}), setting)
    chance = chance_exposure(32)
    counts = [m.metric for m in outcome.scores]
    assert counts == [f"exposure_exact_at_{count}" for count in (16, 4, 1, 0)]
    assert list(values(outcome).values()) == pytest.approx([5, 5, 5, chance], abs=1e-12)
    assert {(m.chance, m.n_items, m.higher_is_better) for m in outcome.scores} == {(chance, 3, False)}
    assert {name: len(bits) for name, bits in outcome.items.items()} == dict.fromkeys(counts, 3)
    assert outcome.samples[-1]["copies"] == "16"
    assert outcome.samples[-1]["canary"].endswith(outcome.samples[-1]["likeliest secret"])


def test_the_ceiling_is_what_one_that_knows_every_secret_gets(setting: Setting):
    knowing = Knowing(setting, {c.text for c in canaries(OPTIONS)})
    assert values(task().ceiling(setting)) == values(task().evaluate(knowing, setting))


def test_noise_scores_chance(tmp_path: Path):
    many = replace(OPTIONS, counts=[0, 1], per_count=50)
    setting = setting_of(planted_data(tmp_path, many))
    outcome = task().evaluate(Noisy(setting, set()), setting)
    spread = np.std([5 - math.log2(rank) for rank in range(1, 33)]) / math.sqrt(50)
    for measured in outcome.scores:
        assert abs(measured.value - chance_exposure(32)) < 3 * spread


def test_candidates_are_distinct_and_as_long_as_the_planted_secret(setting: Setting):
    model = Knowing(setting, set())
    task().evaluate(model, setting)
    texts = [text for asked in model.asked for text in asked]
    for canary in canaries(OPTIONS):
        before = canary.text.removesuffix(canary.labels["secret"])
        own = [text for text in texts if text.startswith(before)]
        assert len(own) == len(set(own)) == 32
        assert own[0] == canary.text
        lengths = {len(setting.tokenizer.encode(text).ids) for text in own}
        assert lengths == {len(setting.tokenizer.encode(canary.text).ids)}


def test_a_bound_draws_the_same_for_all_candidates_of_a_canary(setting: Setting):
    model = Knowing(setting, set())
    task("bound").evaluate(model, setting)
    draws: dict[str, set[float]] = {}
    for texts, drawn in zip(model.asked, model.drawn, strict=True):
        for text, number in zip(texts, drawn.tolist(), strict=True):
            draws.setdefault(text.rpartition(" is ")[0], set()).add(number)
    assert len(draws) == 12
    assert all(len(numbers) == 1 for numbers in draws.values())


def test_a_corpus_without_canaries_and_a_strategy_without_the_likelihood_do_not_apply(
    setting: Setting, tmp_path: Path
):
    clean = setting_of(prepare(tmp_path))
    with pytest.raises(InapplicableError, match="no canaries in the corpus"):
        task().evaluate(make_strategy("clm"), clean)
    with pytest.raises(InapplicableError, match="an exact likelihood only"):
        task("pseudo").evaluate(make_strategy("clm"), setting)
    with pytest.raises(InapplicableError, match="no likelihood"):
        task().evaluate(make_strategy("scratch"), setting)


def test_too_few_secrets_or_too_short_rows_say_what_to_change(setting: Setting, tmp_path: Path):
    with pytest.raises(DataError) as caught:
        task().evaluate(Knowing(setting, set()), replace(setting, sequence_length=8))
    assert_one_line(caught.value, "sequence_length=8")
    few = setting_of(planted_data(tmp_path, replace(OPTIONS, digits=1)))
    with pytest.raises(DataError) as caught:
        task().evaluate(Knowing(few, set()), few)
    assert_one_line(caught.value, "task.canaries_exact.candidates=32", "corpus.text.digits=1")


@pytest.mark.parametrize("changes", [{"kind": "nearly"}, {"candidates": 1}, {"samples": 0}])
def test_task_options_out_of_range_name_their_key(changes: dict[str, Any]):
    with pytest.raises(ConfigError) as caught:
        Canaries.Options(**{"kind": "exact", "candidates": 8} | changes)
    assert_one_line(caught.value, f"task.*.{next(iter(changes))}")


def test_a_likelihood_that_is_not_finite_is_no_score(setting: Setting):
    model = Knowing(setting, set())
    model.nats = lambda texts: torch.full((len(texts),), math.nan)  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="diverged"):
        task().evaluate(model, setting)


# A model that is trained on them


def fitted(stem: str, text: TextData, steps: int) -> Objective:
    torch.set_num_threads(1)
    shapes = replace(SHAPES, vocab_size=text.vocab_size, sequence_length=64)
    model = make_strategy(stem, shapes=shapes).train()
    rows = TextRows(text.train(), 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.randint(len(rows), (16,), generator=generator).numpy()
        loss = model.loss(model.corrupt(rows.read(index), generator))
        optimizer.zero_grad()
        (loss.sum / loss.count).sum().backward()
        optimizer.step()
    return model


@pytest.mark.slow
def test_a_causal_model_remembers_what_it_reads_often(tmp_path: Path):
    options = CanaryOptions(counts=[0, 64], per_count=4, digits=4, within_bytes=30_000, canary_seed=0)
    rng = random.Random(0)  # noqa: S311
    documents = [Document(f"document no. {i} {rng.random()}", group=f"g{i}", labels={}) for i in range(1200)]
    text = prepare_text(ToyCanaries(documents, canary_options=options), SETTINGS, tmp_path)
    setting = setting_of(text)
    found = values(task().evaluate(fitted("clm", text, 150), setting))
    assert found["exposure_exact_at_64"] > 4
    assert found["exposure_exact_at_0"] < 3


def test_the_record_of_what_was_planted_is_json(data: TextData):
    kept = json.loads((data.folder / "manifest.json").read_text())["planted"]
    assert [Planted(**item) for item in kept["texts"]] == canaries(OPTIONS)
