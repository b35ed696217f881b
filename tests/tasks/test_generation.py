"""Continuations of held-out documents: which prompts, and what each metric makes of texts that are known."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sacrebleu.metrics.bleu import BLEU
from torch import Tensor
from toy_data import ToyPairs, ToyText, assert_one_line, toy_pairs
from toy_models import MODEL, N_SPECIAL, OPTIM, SHAPES, make_strategy

from bench.config import schema
from bench.data.corpora.base import Document, split_of
from bench.data.pairs import prepare_pairs
from bench.data.shards import prepare_text
from bench.data.tokenizer import EOS, MIN_VOCAB_SIZE, PAD
from bench.errors import ConfigError, DataError, InapplicableError, InterruptedRunError
from bench.objectives.sampling import Sampling, ended, unigram_texts
from bench.objectives.scratch import Scratch
from bench.tasks.base import Outcome, Setting
from bench.tasks.generation import HEADLINE, Generation, continuations, token_shares, training_texts
from bench.tasks.meter import Meter
from bench.tasks.text_metrics import distinct, repetition, self_bleu, words

BYTES_ONLY = schema.Tokenizer(vocab_size=MIN_VOCAB_SIZE, train_bytes=2000)  # one token a byte
P, N = 10, 30
WORDS = ["red", "green", "blue", "old", "new", "cat", "dog", "sees", "likes", "the", "a", "it"]
Writer = Callable[[Tensor, int, torch.Generator], Tensor]


class Writes(Scratch):
    """A model that continues prompts as it is told, and keeps what it was asked."""

    def __init__(self, writer: Writer) -> None:
        options = Scratch.Options(modality="none", attention="causal", pooling="mean")
        super().__init__(options, shapes=SHAPES, optimizer=OPTIM)
        self.writer = writer
        self.asked: list[tuple[Tensor, Sampling]] = []

    def generate(self, prompts: Tensor, n_new: int, sampling: Sampling, generator: torch.Generator) -> Tensor:
        assert not self.training
        self.asked.append((prompts, sampling))
        return ended(self.writer(prompts, n_new, generator))


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 16)))


def setting_of(folder: Path, texts: list[str]) -> Setting:
    items = [Document(text=text, group=text, labels={}) for text in texts]
    text = prepare_text(ToyText(items), BYTES_ONLY, folder)
    return Setting(
        tokenizer=text.tokenizer(),
        sequence_length=P + N,
        text=text,
        pairs=prepare_pairs(ToyPairs(toy_pairs()), text.tokenizer_path, SHAPES.caption_length, folder),
        data_dir=folder,
        seed=0,
        keep_going=lambda: None,
    )


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(0)  # noqa: S311 - a toy language
    return sorted({sentence(rng) for _ in range(400)})


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Setting:
    return setting_of(tmp_path_factory.mktemp("words"), texts)


def task(**changes: object) -> Generation:
    options = {
        "prompts": 12,
        "prompt_tokens": P,
        "new_tokens": N,
        "temperature": 0.0,
        "batch_size": 5,
        "ngram_order": 4,
        "ngram_bytes": 100_000,
        "samples": 3,
    }
    nucleus = {"top_p": 1.0} if changes.get("temperature") else {}
    options |= nucleus | changes
    return Generation(Generation.Options(**options))  # type: ignore[arg-type]


def values(outcome: Outcome) -> dict[str, float]:
    return {m.metric: m.value for m in outcome.scores}


def loop(setting: Setting, text: str) -> Writer:
    """Writes one text again and again."""
    tokens = torch.tensor(setting.tokenizer.encode(text, add_special_tokens=False).ids)
    return lambda prompts, n_new, _: tokens.repeat(n_new)[:n_new].expand(len(prompts), -1)


def remembers(setting: Setting) -> Writer:
    """Knows the test split by heart."""
    test = setting.text.test()
    whole = test.read(0, test.n_tokens).astype(np.int64)
    known = {tuple(whole[s : s + P].tolist()): whole[s + P :] for s in test.offsets[:-1].tolist()}
    return lambda prompts, n_new, _: torch.tensor(
        np.stack([known[tuple(prompt)][:n_new] for prompt in prompts.tolist()])
    )


def test_one_that_knows_the_held_out_text_gets_the_ceiling_and_not_the_best_there_is(setting: Setting):
    outcome, ceiling = task().evaluate(Writes(remembers(setting)), setting), task().ceiling(setting)
    assert ceiling is not None
    assert values(outcome) == values(ceiling)
    np.testing.assert_equal(dict(outcome.items), dict(ceiling.items))
    assert 0 < values(ceiling)["self_bleu"] < 1
    assert values(ceiling)["ngram_perplexity"] > 1
    for row in outcome.samples:
        assert row["continuation"] == row["held-out text"]


def test_one_that_draws_tokens_by_their_frequency_scores_chance_and_worse_than_the_text(setting: Setting):
    def frequencies(prompts: Tensor, n_new: int, generator: torch.Generator) -> Tensor:
        return unigram_texts(token_shares(setting), len(prompts), n_new, generator)

    outcome = task().evaluate(Writes(frequencies), setting)
    assert [m.value for m in outcome.scores] == [m.chance for m in outcome.scores]
    ceiling = task().ceiling(setting)
    assert ceiling is not None
    assert values(outcome)["ngram_perplexity"] > 2 * values(ceiling)["ngram_perplexity"]


@pytest.mark.parametrize("text", [" a cat", "e", " the old dog sees a red cat"])
def test_a_text_that_goes_round_in_circles_loses_against_words_drawn_at_random(text: str, setting: Setting):
    def at_random(prompts: Tensor, n_new: int, generator: torch.Generator) -> Tensor:
        rng = random.Random(0)  # noqa: S311 - a toy language
        texts = [" ".join(rng.choice(WORDS) for _ in range(n_new)) for _ in prompts]
        ids = [setting.tokenizer.encode(text, add_special_tokens=False).ids[:n_new] for text in texts]
        return torch.tensor(ids)

    circles = values(task().evaluate(Writes(loop(setting, text)), setting))
    modest = values(task().evaluate(Writes(at_random), setting))
    ceiling = task().ceiling(setting)
    assert ceiling is not None
    assert values(ceiling)[HEADLINE] < modest[HEADLINE] < circles[HEADLINE]
    assert circles["reverse_perplexity"] > 2 * modest["reverse_perplexity"]


def test_a_text_that_goes_round_in_circles_is_found_out_by_every_description(setting: Setting):
    found = values(task().evaluate(Writes(loop(setting, " a cat")), setting))
    ceiling = task().ceiling(setting)
    assert ceiling is not None
    human = values(ceiling)
    assert found["distinct_1"] < 0.5 * human["distinct_1"]
    assert found["distinct_2"] < 0.5 * human["distinct_2"]
    assert found["repetition_4"] > human["repetition_4"]
    assert found["self_bleu"] == pytest.approx(1.0)


def test_who_writes_nothing_pays_for_the_end_and_is_counted(setting: Setting):
    silent = Writes(lambda prompts, n_new, _: torch.full((len(prompts), n_new), EOS))
    outcome = task().evaluate(silent, setting)
    found = values(outcome)
    n = outcome.scores[0].n_items
    assert outcome.counts == {"continuation without a word": n, "continuation too short to repeat": n}
    ceiling = task().ceiling(setting)
    assert ceiling is not None
    assert found["ngram_perplexity"] > values(ceiling)["ngram_perplexity"]
    assert [found[f"distinct_{i}"] for i in (1, 2, 3)] == [0.0] * 3
    assert (found["repetition_4"], found["self_bleu"]) == (0.0, 0.0)
    assert "continuation without a word" not in ceiling.counts


def test_scores_are_made_of_their_items(setting: Setting):
    outcome = task().evaluate(Writes(remembers(setting)), setting)
    found = values(outcome)
    assert {len(values) for values in outcome.items.values()} == {outcome.scores[0].n_items} == {11}
    for name in (HEADLINE, "ngram_perplexity"):
        assert np.exp(outcome.items[name].mean()) == pytest.approx(found[name])
    for name in ("repetition_4", "self_bleu"):
        assert outcome.items[name].mean() == pytest.approx(found[name])
    better = {m.metric: m.higher_is_better for m in outcome.scores}
    assert [name for name, is_higher in better.items() if is_higher is not None] == [HEADLINE]


# Prompts


def test_prompts_begin_held_out_documents_that_go_on_and_are_the_same_for_all_seeds(
    setting: Setting, texts: list[str]
):
    model = Writes(loop(setting, "x"))
    task().evaluate(model, setting)
    asked = torch.cat([prompts for prompts, _ in model.asked])
    assert [len(prompts) for prompts, _ in model.asked] == [5, 5, 1]
    assert {sampling for _, sampling in model.asked} == {Sampling(0.0, 1.0)}
    long = {text[:P] for text in texts if split_of(text) == "test" and len(text) >= P + N}
    prompts = setting.tokenizer.decode_batch(asked.tolist())
    assert set(prompts) <= long
    assert len(prompts) == min(12, len(long) // 2)  # the other half is held out again
    other = Writes(loop(setting, "x"))
    task().evaluate(other, replace(setting, seed=5))
    assert torch.equal(torch.cat([prompts for prompts, _ in other.asked]), asked)


def test_the_seed_draws_the_text(setting: Setting):
    def noise(prompts: Tensor, n_new: int, generator: torch.Generator) -> Tensor:
        return torch.randint(N_SPECIAL, MIN_VOCAB_SIZE, (len(prompts), n_new), generator=generator)

    a, b, c = (task().evaluate(Writes(noise), replace(setting, seed=seed)).samples for seed in (0, 0, 1))
    assert a == b != c


def test_samples_are_prompt_continuation_and_the_text_itself(setting: Setting, texts: list[str]):
    rows = task().evaluate(Writes(loop(setting, "xy")), setting).samples
    assert len(rows) == 3
    for row in rows:
        assert row["continuation"] == "xy" * (N // 2)
        assert any(text.startswith(row["prompt"] + row["held-out text"]) for text in texts)
    assert task(samples=0).evaluate(Writes(loop(setting, "xy")), setting).samples == []


def test_a_character_that_the_prompt_cuts_belongs_to_the_continuation(setting: Setting):
    whole = torch.tensor(setting.tokenizer.encode("né ü", add_special_tokens=False).ids)[None]  # 6 bytes
    assert whole.shape == (1, 6)
    found = continuations(whole[:, :2], torch.cat([whole[:, 2:], torch.tensor([[EOS, PAD]])], dim=1), setting)
    assert (found.before, found.texts, found.are_closed) == (["n"], ["é ü"], [True])
    cut = continuations(whole[:, :1], whole[:, 1:2], setting)
    assert (cut.texts, cut.are_closed) == (["\ufffd"], [False])


def test_the_judge_reads_the_training_documents_alone(setting: Setting, texts: list[str]):
    everything = list(training_texts(setting, 10**6))
    assert sorted(everything) == [text for text in texts if split_of(text) == "train"]
    first, second = everything[:2]
    assert list(training_texts(setting, len(first) + 5)) == [first, second[:4]]
    assert list(training_texts(setting, len(first) + 1)) == [first]
    shares = token_shares(setting)
    letters = "".join(everything)
    token = setting.tokenizer.encode("e", add_special_tokens=False).ids[0]
    assert float(shares[token]) == pytest.approx(letters.count("e") / (len(letters) + len(everything)))
    assert float(shares.sum()) == pytest.approx(1)


# Metrics


def test_distinct_and_repetition_by_hand():
    a, b = ["x", "y", "x", "y", "x", "y"], ["x", "y", "z"]
    assert distinct([a, b], 1) == 3 / 9
    assert distinct([a, b], 2) == 3 / 7  # xy, yx, yz
    assert distinct([a, b], 4) == 2 / 3
    assert distinct([], 1) == 0
    assert repetition([a, b, []], 2).tolist() == pytest.approx([1 - 2 / 5, 0, 0])
    assert repetition([a, b], 4).tolist() == pytest.approx([1 - 2 / 3, 0])


def test_words_leave_out_punctuation():
    assert words(["It's red, the cat.", ""]) == [["It's", "red", ",", "the", "cat", "."], []]


def test_self_bleu_is_that_of_sacrebleu_against_all_others():
    texts = ["the cat sees the dog", "the cat likes the dog", "it is new"]
    expected = [
        BLEU(effective_order=True).sentence_score(texts[0], [texts[1], texts[2]]).score,
        BLEU(effective_order=True).sentence_score(texts[1], [texts[0], texts[2]]).score,
        BLEU(effective_order=True).sentence_score(texts[2], [texts[0], texts[1]]).score,
    ]
    found = self_bleu(texts)
    assert found.tolist() == pytest.approx([score / 100 for score in expected])
    assert found[0] > found[2]


# Cost and bad input


def test_the_heads_of_a_writer_are_counted(setting: Setting):
    model = make_strategy("clm", shapes=replace(SHAPES, vocab_size=MIN_VOCAB_SIZE))
    meter = Meter()
    task(new_tokens=1, batch_size=12).evaluate(model, replace(setting, meter=meter))
    assert meter.flops == 12 * 2 * (MODEL.d_model**2 + MODEL.d_model * MIN_VOCAB_SIZE)


def test_who_writes_no_text_is_told_so(setting: Setting):
    with pytest.raises(InapplicableError, match="writes no text"):
        task().evaluate(make_strategy("scratch"), setting)


def test_it_stops_between_batches(setting: Setting):
    def stop() -> None:
        raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        task().evaluate(Writes(loop(setting, "x")), replace(setting, keep_going=stop))


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": 1},
        {"prompt_tokens": 0},
        {"new_tokens": 0},
        {"batch_size": 0},
        {"ngram_bytes": 0},
        {"ngram_order": 9},
        {"ngram_order": 0},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"samples": -1},
    ],
)
def test_options_out_of_range_name_their_key(changes: dict[str, float]):
    with pytest.raises(ConfigError) as caught:
        task(**changes)
    assert_one_line(caught.value, f"task.*.{next(iter(changes))}")


def test_more_than_a_sequence_is_refused_and_so_are_too_few_documents(setting: Setting):
    model = Writes(loop(setting, "x"))
    with pytest.raises(ConfigError) as caught:
        task(new_tokens=N + 1).evaluate(model, setting)
    assert_one_line(caught.value, "task.*.prompt_tokens=10", "new_tokens=31", "sequence_length=40")
    with pytest.raises(DataError) as missing:
        task(new_tokens=900).evaluate(model, replace(setting, sequence_length=1000))
    assert_one_line(missing.value, "0 documents of more than 910 tokens", "task.*.new_tokens")
