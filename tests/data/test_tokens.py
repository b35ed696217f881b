"""Tokens: any text comes back, splits do not leak, budgets nest."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_data import SETTINGS, ToyText, assert_one_line, prepare, texts_of, toy_documents

from bench.data import shards
from bench.data.corpora.base import Document, Split, split_of
from bench.data.shards import TextData, TokenArray, prepare_text
from bench.data.tokenizer import BOS, EOS, MASK, MIN_VOCAB_SIZE, PAD, _short_words, train_tokenizer
from bench.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> TextData:
    return prepare(tmp_path_factory.mktemp("toy"))


# The tokenizer


def test_special_tokens_have_fixed_ids_and_every_byte_a_token() -> None:
    tokenizer = train_tokenizer(["a"], MIN_VOCAB_SIZE)
    assert [tokenizer.token_to_id(name) for name in ("[PAD]", "[EOS]", "[MASK]", "[BOS]")] == [
        PAD,
        EOS,
        MASK,
        BOS,
    ]
    assert (PAD, EOS, MASK, BOS) == (0, 1, 2, 3)
    assert tokenizer.get_vocab_size() == MIN_VOCAB_SIZE


@pytest.mark.parametrize(
    "text", ["plain", "  two  spaces\n\ttab ", "naïve 漢字 🙂 \x00", "[MASK] and [EOS]", "e\u0301"]
)
def test_any_text_comes_back_exactly_and_holds_no_special_token(toy: TextData, text: str) -> None:
    ids = toy.tokenizer().encode(text).ids
    assert min(ids) > BOS
    assert toy.tokenizer().decode(ids) == text


def test_the_vocabulary_may_be_smaller_than_asked_for_and_says_so(toy: TextData) -> None:
    assert toy.manifest["settings"]["vocab_size"] == 300
    assert toy.vocab_size == toy.tokenizer().get_vocab_size() <= 300


def test_the_tokenizer_learns_from_the_first_training_bytes_of_the_shuffle(toy: TextData) -> None:
    items = [d for d in toy_documents() if split_of(d.group) == "train"]
    wanted = texts_of(toy, toy.train(500))
    for order in (items, items[::-1]):
        assert shards.scan_documents(order, 500).sample == wanted
    assert len(shards.scan_documents(items, 1).sample) == 1


# Splits and budgets


def test_every_document_comes_back_once_in_the_split_of_its_group(toy: TextData) -> None:
    arrays: dict[Split, TokenArray] = {
        "train": toy.train(),
        "validation": toy.validation(),
        "test": toy.test(),
    }
    for split, array in arrays.items():
        expected = [d.text for d in toy_documents() if split_of(d.group) == split]
        assert sorted(texts_of(toy, array)) == sorted(expected)
        assert array.n_bytes == sum(len(text) for text in expected)
        assert array.n_documents == len(expected)


def test_equal_documents_never_lie_in_two_splits(tmp_path: Path) -> None:
    items = toy_documents() + [Document(text="everywhere", group=f"g{i}") for i in range(100)]
    data = prepare(tmp_path, items)
    found = [
        texts_of(data, array).count("everywhere") for array in (data.train(), data.validation(), data.test())
    ]
    assert sorted(found) == [0, 0, 1]
    assert data.manifest["duplicates"] == 99


def test_training_order_is_not_the_order_of_the_corpus_nor_depends_on_it(
    toy: TextData, tmp_path: Path
) -> None:
    corpus_order = [d.text for d in toy_documents() if split_of(d.group) == "train"]
    order = texts_of(toy, toy.train())
    assert order != corpus_order
    positions = [corpus_order.index(text) for text in order[:40]]
    assert max(positions) > 0.8 * len(corpus_order)  # a small budget is spread over the corpus
    assert min(positions) < 0.2 * len(corpus_order)
    backwards = prepare(tmp_path, toy_documents()[::-1])
    assert texts_of(backwards, backwards.train()) == order


def test_budgets_nest_and_are_the_longest_prefix_that_fits(toy: TextData) -> None:
    whole = texts_of(toy, toy.train())
    for budget_bytes in (50, 500, 501, toy.train().n_bytes):
        array = toy.train(budget_bytes)
        texts = texts_of(toy, array)
        assert texts == whole[: len(texts)]
        assert array.n_bytes == sum(map(len, texts)) <= budget_bytes
        if len(texts) < len(whole):
            assert array.n_bytes + len(whole[len(texts)]) > budget_bytes


def test_a_budget_that_cannot_be_met_says_what_there_is(toy: TextData) -> None:
    n_bytes = toy.train().n_bytes
    with pytest.raises(ConfigError) as caught:
        toy.train(n_bytes + 1)
    assert_one_line(caught.value, "budget.unique_bytes", str(n_bytes), "lower it", "budget.repeat=true")
    with pytest.raises(ConfigError) as caught:
        toy.train(3)
    assert_one_line(caught.value, "budget.unique_bytes=3", "or more")


def test_an_empty_split_or_corpus_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, [Document(text=str(i), group="one file") for i in range(9)])
    assert_one_line(caught.value, "corpus.text", "the split", "is empty", "give corpus.text more content")
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, [])
    assert_one_line(caught.value, "corpus.text", "no documents")
    assert not list(tmp_path.glob("*/"))  # nothing that looks prepared


@pytest.mark.parametrize("changes", [{"vocab_size": MIN_VOCAB_SIZE - 1}, {"train_bytes": 0}])
def test_tokenizer_settings_out_of_range_name_their_key(tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare_text(ToyText(toy_documents()), replace(SETTINGS, **changes), tmp_path)
    assert_one_line(caught.value, f"tokenizer.{next(iter(changes))}")


# Arrays


def test_reading_does_not_see_where_shards_end(
    toy: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_TOKENS", 37)
    monkeypatch.setattr(shards, "BATCH_DOCUMENTS", 5)
    small, whole = prepare(tmp_path).train(), toy.train()
    assert len(list(small.folder.glob("train.*.bin"))) == -(-whole.n_tokens // 37)
    for start, stop in [(0, 0), (0, 37), (30, 40), (36, 112), (0, whole.n_tokens)]:
        assert np.array_equal(small.read(start, stop), whole.read(start, stop))
    with pytest.raises(IndexError):
        small.read(0, whole.n_tokens + 1)


def test_arrays_pickle_as_paths(toy: TextData) -> None:
    array = toy.train()
    expected = array.read(0, array.n_tokens)
    copy = pickle.loads(pickle.dumps(array))  # noqa: S301
    assert len(pickle.dumps(array)) < 1500
    assert np.array_equal(copy.read(0, copy.n_tokens), expected)


def test_large_vocabularies_get_wider_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "NARROW_VOCAB_SIZE", 100)
    data = prepare(tmp_path)
    assert data.train().read(0, 1).dtype == np.uint32
    assert sorted(texts_of(data, data.train())) == sorted(
        d.text for d in toy_documents() if split_of(d.group) == "train"
    )


def test_the_manifest_tells_content_counts_and_source(toy: TextData) -> None:
    manifest = json.loads((toy.folder / "manifest.json").read_text())
    assert manifest == toy.manifest
    assert manifest["provenance"]["source"] == "toy"
    assert {len(manifest[name]) for name in ("content_sha256", "tokenizer_sha256")} == {64}
    assert sum(counts["documents"] for counts in manifest["splits"].values()) == 200
    assert shards.corpus_key(ToyText([]), toy.folder)["class"].endswith("ToyText")


def test_a_word_without_end_is_cut_before_a_tokenizer_is_trained_and_others_are_not() -> None:
    endless = "".join(chr(97 + i * i % 26) for i in range(2_500))
    assert list(_short_words(f"some words {endless}")) == [
        f"some words {endless[:1000]}",
        endless[1000:2000],
        endless[2000:],
    ]
    assert list(_short_words("some words")) == ["some words"]
    trained = train_tokenizer([f"some words {endless}"], 300)
    assert trained.decode(trained.encode(endless).ids) == endless
