"""Response selection: conversations, candidates, ranks, and what a fit or a likelihood makes of them."""

import math
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, t
from toy_data import ToyPairs, assert_one_line, prepare, toy_pairs
from toy_models import OPTIM, SHAPES, make_strategy

from bench.data.corpora.base import split_of
from bench.data.pairs import prepare_pairs
from bench.data.tokenizer import EOS, PAD
from bench.errors import ConfigError, DataError, InapplicableError, InterruptedRunError
from bench.objectives.base import Objective
from bench.objectives.likelihood import scored_tokens
from bench.objectives.scratch import Scratch
from bench.tasks import dialogue
from bench.tasks.base import Setting, Task
from bench.tasks.dialogue import (
    DialogueFitted,
    DialogueLikelihood,
    Exchange,
    candidates,
    harmonic,
    normal,
    of_split,
    read_exchanges,
    reciprocal_ranks,
)

pytestmark = pytest.mark.slow

VOCABULARY, LENGTH = 300, 40


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("data")
    text = prepare(folder)
    return Setting(
        tokenizer=text.tokenizer(),
        sequence_length=LENGTH,
        text=text,
        pairs=prepare_pairs(ToyPairs(toy_pairs()), text.tokenizer_path, SHAPES.caption_length, folder),
        data_dir=folder,
        seed=0,
        keep_going=lambda: None,
    )


def conversations() -> Iterator[list[str]]:
    """An answer is the question's four letters, turned round."""
    rng = random.Random(0)  # noqa: S311 - toy data
    for _ in range(2000):
        letters = rng.sample("abcdefghijklmnopqrstuvwxyz", 4)
        yield [" ".join(["?", *letters]), " ".join(["!", *reversed(letters)])]


@pytest.fixture(autouse=True)
def _toy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real" not in request.node.name:
        monkeypatch.setitem(dialogue.CORPORA, "overheard", conversations)


SHARED = {"corpus": "overheard", "context_turns": 3, "n_candidates": 10, "test_items": 300}


def fitted(**changes: Any) -> DialogueFitted:
    fit = {"train_items": 800, "steps": 60, "batch_size": 64, "lr_at_64": 1e-2, "temperature": 0.07}
    return DialogueFitted(DialogueFitted.Options(**(SHARED | fit | changes)))


def likelihood(**changes: Any) -> DialogueLikelihood:
    how = {"kind": "exact", "length_normalisation": "none", "batch_size": 64, "pmi": False}
    draws = {"samples": 1} if changes.get("kind") == "bound" else {}
    return DialogueLikelihood(DialogueLikelihood.Options(**(SHARED | how | draws | changes)))


class Letters(Scratch):
    """Features are sums of a random vector for each letter: what there is to know can be learnt from them."""

    def __init__(self) -> None:
        options = Scratch.Options(modality="none", attention="bidirectional", pooling="mean")
        super().__init__(options, shapes=replace(SHAPES, vocab_size=VOCABULARY), optimizer=OPTIM)
        self.likelihoods = frozenset({"exact", "bound", "pseudo"})

    def features(self, tokens, attention="own", pooling="own"):  # type: ignore[no-untyped-def]
        has = torch.zeros(len(tokens), VOCABULARY).scatter(1, tokens, 1.0)
        vectors = torch.randn(VOCABULARY, SHAPES.model.d_model, generator=torch.Generator().manual_seed(0))
        return has @ vectors

    def token_nll(self, tokens, kind, *, samples, generator, scored=None):  # type: ignore[no-untyped-def]
        """A token that its context holds costs one nat, any other three."""
        is_wanted = scored_tokens(tokens, scored)
        given = torch.cat([torch.ones_like(tokens[:, :1], dtype=torch.bool), ~is_wanted], dim=1)
        shown = tokens.masked_fill(~given, -1)
        known = (tokens[:, 1:, None] == shown[:, None, :]).any(dim=2)
        return torch.where(known, 1.0, 3.0) * is_wanted


class Even(Letters):
    """All tokens are equally likely, all features the same."""

    def features(self, tokens, attention="own", pooling="own"):  # type: ignore[no-untyped-def]
        return torch.ones(len(tokens), SHAPES.model.d_model)

    def token_nll(self, tokens, kind, *, samples, generator, scored=None):  # type: ignore[no-untyped-def]
        return scored_tokens(tokens, scored) * math.log(VOCABULARY)


def scores(task: Task, model: Objective, setting: Setting) -> dict[str, float]:
    return {m.metric: m.value for m in task.evaluate(model, setting).scores}


# Ranks


def test_a_reciprocal_rank_is_the_mean_over_all_orders_of_what_ties():
    rows = torch.tensor([[2.0, 3, 1, 0], [1, 1, 1, 0], [0, 5, 0, 4], [9, 1, 2, 3]])
    expected = []
    for row in rows.tolist():
        ranks = []
        for order in permutations(range(4)):
            ordered = sorted(range(4), key=lambda i: (-row[i], order.index(i)))
            ranks.append(1 / (1 + ordered.index(0)))
        expected.append(sum(ranks) / len(ranks))
    np.testing.assert_allclose(reciprocal_ranks(rows), expected)


@pytest.mark.parametrize("n", [2, 7, 10])
def test_a_constant_scores_chance_exactly_and_an_oracle_one(n: int, setting: Setting):
    options = {"n_candidates": n, "test_items": 20}
    zero_shot = (likelihood(**options, length_normalisation="tokens"), likelihood(**options, pmi=True))
    for task in (fitted(**options), *zero_shot):
        measured = task.evaluate(Even(), setting).scores
        assert [m.value for m in measured] == pytest.approx([1 / n, harmonic(n) / n], abs=1e-12)
        assert [m.chance for m in measured] == [1 / n, harmonic(n) / n]
        ceiling = task.ceiling(setting)
        assert {m.value for m in ceiling.scores} == {1.0}
        assert [m.n_items for m in ceiling.scores] == [20, 20]


# What can be known is found


def test_a_fit_finds_what_the_features_hold(setting: Setting):
    assert scores(fitted(), Letters(), setting)["recall_at_1"] > 0.9


@pytest.mark.slow
def test_permuted_training_pairs_teach_nothing(setting: Setting):
    """On average over permutations: all items share one fit, so that one spreads more than a binomial."""
    audited = [replace(setting, seed=seed, permutes_labels=True) for seed in range(10)]
    found = [scores(fitted(), Letters(), each)["recall_at_1"] for each in audited]
    low, high = t.interval(0.999, 9, np.mean(found), np.std(found, ddof=1) / math.sqrt(10))
    assert low <= 0.1 <= high
    assert np.mean(found) < 0.15


def test_a_fit_begins_without_an_opinion(setting: Setting):
    assert scores(fitted(lr_at_64=0.0), Letters(), setting)["recall_at_1"] == pytest.approx(0.1)


def test_training_items_are_drawn_by_the_seed_and_test_items_are_not(setting: Setting):
    first, other = (fitted()._drawn(replace(setting, seed=seed)) for seed in (0, 1))
    assert first != other
    assert {split_of(e.group) for e in first} == {"train"}
    assert {split_of(e.group) for e in fitted().selection().items} == {"test"}


def test_noise_scores_chance(setting: Setting):
    """Nats that depend on the context and on the response, but not on whether they belong together."""

    class Noise(Letters):
        def token_nll(self, tokens, kind, *, samples, generator, scored=None):  # type: ignore[no-untyped-def]
            hashed = (tokens * torch.arange(1, tokens.shape[1] + 1) * 7919 % 10007).sum(dim=1, keepdim=True)
            return scored_tokens(tokens, scored) * (hashed % 97 / 97)

    found = likelihood().evaluate(Noise(), setting).items["recall_at_1_exact"]
    low, high = binom.interval(0.999, len(found), 0.1)
    assert low <= found.sum() <= high


def test_the_likeliest_response_is_the_one_that_the_context_tells(setting: Setting):
    found = scores(likelihood(length_normalisation="tokens"), Letters(), setting)
    assert found["recall_at_1_exact"] > 0.9


@pytest.mark.parametrize("kind", ["exact", "bound", "pseudo"])
def test_the_kind_is_in_every_name(kind: str, setting: Setting):
    found = scores(likelihood(kind=kind, test_items=5), Letters(), setting)
    assert list(found) == [f"recall_at_1_{kind}", f"mrr_{kind}"]


def test_pmi_takes_off_what_a_response_costs_anywhere(setting: Setting):
    task, plain = likelihood(pmi=True, test_items=7), likelihood(test_items=7)
    selection, model = task.selection(), Letters()
    given, pmi = (t.scores(model, selection, setting) for t in (plain, task))
    n_tokens = torch.tensor(
        [[len(setting.tokenizer.encode(text).ids) for text in row] for row in selection.candidates]
    )
    torch.testing.assert_close(pmi, given + 3.0 * n_tokens)  # alone, every token costs three nats


def test_a_response_is_asked_after_its_context_and_alone_is_scored(setting: Setting):
    read: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Asked(Letters):
        def token_nll(self, tokens, kind, *, samples, generator, scored=None):  # type: ignore[no-untyped-def]
            read.append((tokens, scored))
            return super().token_nll(tokens, kind, samples=samples, generator=generator, scored=scored)

    task = likelihood(test_items=3)
    selection = task.selection()
    task.evaluate(Asked(), setting)
    texts, ends = set(), set()
    for tokens, scored in read:
        for row, marks in zip(tokens, scored, strict=True):
            ids = row[row != PAD]
            assert ids[0] == ids[-1] == EOS
            texts.add(setting.tokenizer.decode(ids[1:-1].tolist()))
            ends.add(setting.tokenizer.decode(row[marks].tolist()))
    expected = {
        ("\n".join([*item.context, text]), text)
        for item, row in zip(selection.items, selection.candidates, strict=True)
        for text in row
    }
    assert texts == {whole for whole, _ in expected}
    assert ends == {text for _, text in expected}


def test_what_does_not_fit_is_cut_alike_for_all_candidates(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    def long() -> Iterator[list[str]]:
        for i in range(200):
            yield [f"{i} " * 40, f"{i}" * (1 + i % 40)]

    monkeypatch.setitem(dialogue.CORPORA, "overheard", long)
    widths = []

    class Asked(Even):
        def token_nll(self, tokens, kind, *, samples, generator, scored=None):  # type: ignore[no-untyped-def]
            widths.append((tokens != PAD).sum(dim=1) - scored.sum(dim=1) - 2)
            assert tokens.shape[1] <= LENGTH
            assert int(scored.sum(dim=1).max()) <= (LENGTH - 2) // 2
            return super().token_nll(tokens, kind, samples=samples, generator=generator, scored=scored)

    likelihood(test_items=1, batch_size=10).evaluate(Asked(), setting)
    assert len(set(torch.cat(widths).tolist())) == 1


@pytest.mark.parametrize(("stem", "kind"), [("mlm", "exact"), ("clm", "pseudo"), ("endpoint", "exact")])
def test_a_strategy_that_cannot_is_told(stem: str, kind: str, setting: Setting):
    model = make_strategy(stem, shapes=replace(SHAPES, vocab_size=VOCABULARY))
    with pytest.raises(InapplicableError):
        likelihood(kind=kind, test_items=3).evaluate(model, setting)


def test_a_fit_stops_when_the_run_is_told_to(setting: Setting):
    def stop() -> None:
        raise InterruptedRunError

    for task in (fitted(), likelihood()):
        with pytest.raises(InterruptedRunError):
            task.evaluate(Letters(), replace(setting, keep_going=stop))


# Candidates


def exchange(context: str, response: str, group: str = "") -> Exchange:
    return Exchange((context,), response, group or context)


def test_no_distractor_is_right_alike_or_of_the_same_conversation():
    known = [
        exchange("how?", "Yes."),
        exchange("how?", "Fine!", "other"),
        exchange("when?", "yes"),
        exchange("who?", "FINE"),
        exchange("where?", "Here."),
        exchange("where else?", "here..."),
        exchange("what?", "There.", "how?"),
        exchange("why?", "So."),
    ]
    first = candidates(known, known, 3)[0]
    assert first[0] == "Yes."
    assert {normal(text) for text in first[1:]} == {"here", "so"}
    with pytest.raises(DataError) as raised:
        candidates(known, known, 4)
    assert_one_line(raised.value, "n_candidates=4", "lower it")


def test_candidates_are_the_same_every_time_and_differ_in_words():
    one, other = fitted().selection(), likelihood().selection()
    assert one.candidates == other.candidates
    assert all(len({normal(text) for text in row}) == 10 for row in one.candidates)
    assert [row[0] for row in one.candidates] == [item.response for item in one.items]
    few = fitted(test_items=10).selection()
    assert set(few.candidates) <= set(one.candidates)


def test_exchanges_are_read_turn_by_turn_and_once(monkeypatch: pytest.MonkeyPatch):
    said = [["a", "b", "c", "d"], ["A!", "b."], [], ["alone"], ["e", "..."]]
    monkeypatch.setitem(dialogue.CORPORA, "overheard", lambda: iter(said))
    found, left_out = read_exchanges("overheard", context_turns=2)
    assert found == [
        Exchange(("a",), "b", "a"),
        Exchange(("a", "b"), "c", "a"),
        Exchange(("b", "c"), "d", "a"),
    ]
    assert left_out == {
        "exchange that is there already": 1,
        "conversation of less than two turns, or not one turn a line": 2,
        "turn without words": 1,
    }


# The corpora


@pytest.fixture
def overheard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import nltk.corpus
    import nltk.data

    folder = tmp_path / "corpora" / "webtext"
    folder.mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    nltk.corpus.webtext._unload()
    yield folder / "overheard.txt"
    nltk.corpus.webtext._unload()


def test_real_format_of_overheard_is_read_by_speaker(overheard: Path):
    overheard.write_text("Guy #1: So: what?\nGirl: No.\n\nA line of nobody\nMan: Yes.\n\nMan: Alone.\n")
    found, left_out = read_exchanges("overheard", 3)
    assert found == [Exchange(("So: what?",), "No.", "so what")]
    assert left_out == {"conversation of less than two turns, or not one turn a line": 2}


def test_real_overheard_that_is_missing_is_named_with_the_line_that_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import nltk.corpus
    import nltk.data

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    nltk.corpus.webtext._unload()
    with pytest.raises(DataError) as raised:
        fitted().selection()
    assert_one_line(raised.value, "task.*.corpus", "python -m nltk.downloader webtext")


@pytest.mark.skipif("NLTK_DATA" not in os.environ, reason="no NLTK data named by NLTK_DATA")
def test_the_real_overheard_has_hundreds_of_test_items():
    import nltk.corpus

    nltk.corpus.webtext._unload()
    found, _ = read_exchanges("overheard", 3)
    assert len(found) > 7000
    assert 600 < len(of_split(found, "test")) < 900
    assert len(fitted(test_items=50).selection().candidates) == 50


def test_the_real_chatterbot_has_answers_and_no_copies():
    found, _ = read_exchanges("chatterbot", 3)
    assert len({e.key() for e in found}) == len(found) > 800
    assert len(of_split(found, "test")) > 70
    by_words = {normal(e.response): e for e in found}
    assert by_words["1963"].context == ("What year was President John F. Kennedy assassinated?",)
    assert max(len(e.context) for e in found) == 3
    assert not any("Restart your router" in e.response or "```" in e.response for e in found)


@pytest.mark.parametrize(
    ("key", "value"), [("corpus", "ubuntu"), ("n_candidates", 1), ("context_turns", 0), ("test_items", 0)]
)
def test_an_option_that_cannot_work_is_named(key: str, value: object):
    for make in (fitted, likelihood):
        with pytest.raises(ConfigError) as raised:
            make(**{key: value})
        assert_one_line(raised.value, f"{key}={value!r}")
