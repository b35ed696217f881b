"""Pairs: images stay with their captions, budgets nest."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from toy_data import ToyPairs, assert_one_line, prepare, toy_pairs

from bench.data.corpora.base import Pair, PairCorpus, split_of
from bench.data.pairs import PairArray, PairData, prepare_pairs
from bench.data.shards import TextData
from bench.data.tokenizer import EOS, PAD, load_tokenizer
from bench.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> TextData:
    return prepare(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def pair_data(toy: TextData, tmp_path_factory: pytest.TempPathFactory) -> PairData:
    return prepare_pairs(ToyPairs(toy_pairs()), toy.tokenizer_path, 6, tmp_path_factory.mktemp("pairs"))


def test_images_stay_with_their_captions_and_splits(pair_data: PairData) -> None:
    for split, array in (
        ("train", pair_data.train()),
        ("validation", pair_data.validation()),
        ("test", pair_data.test()),
    ):
        assert sorted(array.groups) == sorted(p.group for p in toy_pairs() if split_of(p.group) == split)
        assert [f"thing {image[0, 0, 0]}" for image in array.images] == array.texts
        assert array.images.shape == (len(array), 4, 4, 3)


def test_captions_end_in_eos_and_are_padded_or_cut(toy: TextData, tmp_path: Path) -> None:
    items = [*toy_pairs(), Pair(image=np.zeros((4, 4, 3), np.uint8), caption="thing " * 50, group="g0")]
    data = prepare_pairs(ToyPairs(items), toy.tokenizer_path, 9, tmp_path)
    tokenizer = load_tokenizer(toy.tokenizer_path)
    for array in (data.train(), data.validation(), data.test()):
        for text, row in zip(array.texts, array.captions, strict=True):
            ids = [*tokenizer.encode(text).ids[:8], EOS]
            assert row.tolist() == ids + [PAD] * (9 - len(ids))


def test_pair_budgets_nest_and_say_what_there_is(pair_data: PairData) -> None:
    whole = pair_data.train()
    small = pair_data.train(7)
    assert small.texts == whole.texts[:7]
    assert np.array_equal(small.images, whole.images[:7])
    assert whole.texts != [p.caption for p in toy_pairs() if split_of(p.group) == "train"]
    for n, parts in ((len(whole) + 1, [str(len(whole)), "lower it"]), (0, ["at least 1"])):
        with pytest.raises(ConfigError) as caught:
            pair_data.train(n)
        assert_one_line(caught.value, f"budget.unique_pairs={n}", *parts)


def test_pairs_are_prepared_once_for_a_tokenizer_and_length(toy: TextData, tmp_path: Path) -> None:
    corpus = ToyPairs(toy_pairs() + toy_pairs()[:3])
    first = prepare_pairs(corpus, toy.tokenizer_path, 6, tmp_path)
    again = prepare_pairs(corpus, toy.tokenizer_path, 6, tmp_path)
    assert (corpus.reads, again.manifest["duplicates"]) == (1, 3)
    assert first == again
    assert prepare_pairs(corpus, toy.tokenizer_path, 7, tmp_path).folder != first.folder
    array = pickle.loads(pickle.dumps(again.train()))  # noqa: S301
    assert isinstance(array, PairArray)
    assert array.texts == first.train().texts


def test_pairs_that_cannot_work_name_their_key(toy: TextData, tmp_path: Path) -> None:
    cases: list[tuple[PairCorpus, int, str]] = [
        (ToyPairs(toy_pairs()), 1, "caption_length"),
        (ToyPairs(toy_pairs(), image_size=8), 6, "corpus.pairs.image_size"),
        (ToyPairs([]), 6, "corpus.pairs"),
        (ToyPairs(toy_pairs()[:1]), 6, "corpus.pairs"),
    ]
    for corpus, length, part in cases:
        with pytest.raises((ConfigError, DataError)) as caught:
            prepare_pairs(corpus, toy.tokenizer_path, length, tmp_path)
        assert_one_line(caught.value, part)
