"""Prepared corpora: splits do not leak, budgets nest, preparing is done once and whole."""

import json
import multiprocessing
import os
import pickle
import signal
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import schema, shards, tokens
from bench.cache import read_manifest
from bench.corpora.base import Document, Pair, PairCorpus, Split, TextCorpus, split_of
from bench.errors import BenchError, ConfigError, DataError
from bench.pairs import PairArray, PairData, prepare_pairs
from bench.tokens import TextData, TokenArray, load_documents, prepare_text
from bench.vocabulary import BOS, EOS, MASK, MIN_VOCAB_SIZE, PAD, load_tokenizer, train_tokenizer

SETTINGS = schema.Tokenizer(vocab_size=300, train_bytes=2000)


@dataclass
class ToyText(TextCorpus):
    """Documents as given; counts how often it is read."""

    items: list[Document]
    version: int = 1
    labelled: bool = False
    reads: int = 0

    def fingerprint(self) -> dict[str, Any]:
        return {"version": self.version}

    def provenance(self) -> dict[str, str]:
        return {"source": "toy", "licence": "none"}

    def documents(self) -> Iterator[Document]:
        self.reads += 1
        yield from self.items


@dataclass
class ToyPairs(PairCorpus):
    """Pairs as given; counts how often it is read."""

    items: list[Pair]
    image_size: int = 4
    reads: int = 0

    def fingerprint(self) -> dict[str, Any]:
        return {}

    def provenance(self) -> dict[str, str]:
        return {"source": "toy", "licence": "none"}

    def pairs(self) -> Iterator[Pair]:
        self.reads += 1
        yield from self.items


def toy_documents(n: int = 200) -> list[Document]:
    """Two documents per group; texts of 14 to 17 bytes."""
    return [Document(text=f"document no. {i}", group=f"g{i // 2}", labels={"i": str(i)}) for i in range(n)]


def toy_pairs(n: int = 100) -> list[Pair]:
    return [
        Pair(image=np.full((4, 4, 3), i, np.uint8), caption=f"thing {i}", group=f"g{i}") for i in range(n)
    ]


def prepare(folder: Path, items: list[Document] | None = None, **changes: Any) -> TextData:
    corpus = ToyText(toy_documents() if items is None else items, **changes)
    return prepare_text(corpus, SETTINGS, folder)


def texts_of(data: TextData, array: TokenArray) -> list[str]:
    """The documents of an array, in its order."""
    ids = array.read(0, array.n_tokens)
    pieces = [ids[start:stop] for start, stop in zip(array.offsets, array.offsets[1:], strict=False)]
    assert all(piece[-1] == EOS for piece in pieces)
    return [data.tokenizer().decode(piece[:-1].tolist(), skip_special_tokens=False) for piece in pieces]


def assert_one_line(error: BenchError, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


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
    assert_one_line(caught.value, "corpus.text", "split_by=document")
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


# Preparing once


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("labelled", [True, False])
def test_preparing_twice_does_nothing(tmp_path: Path, labelled: bool) -> None:
    corpus = ToyText(toy_documents(), labelled=labelled)
    prepare_text(corpus, SETTINGS, tmp_path)
    before, reads = snapshot(tmp_path), corpus.reads
    assert reads == (1 if labelled else 2)
    prepare_text(corpus, SETTINGS, tmp_path)
    assert snapshot(tmp_path) == before
    assert corpus.reads == reads


def test_other_content_or_settings_are_prepared_beside(tmp_path: Path) -> None:
    folders = {
        prepare(tmp_path).folder,
        prepare(tmp_path, version=2).folder,
        prepare_text(ToyText(toy_documents()), replace(SETTINGS, vocab_size=280), tmp_path).folder,
    }
    assert len(folders) == 3


def test_two_fresh_preparations_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = prepare(tmp_path / "a").folder, prepare(tmp_path / "b").folder
    contents = [{name: data for name, (_, data) in snapshot(folder).items()} for folder in (first, second)]
    assert contents[0] == contents[1]


def _prepare_at(barrier: Any, folder: Path, results: Any) -> None:
    corpus = ToyText(toy_documents(2000))
    barrier.wait()
    data = prepare_text(corpus, SETTINGS, folder)
    results.put((corpus.reads, data.manifest))


def test_two_processes_at_once_end_in_one_good_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_prepare_at, args=(barrier, tmp_path, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    (reads_a, manifest_a), (reads_b, manifest_b) = results.get(timeout=60), results.get(timeout=60)
    for worker in workers:
        worker.join()
    assert sorted([reads_a, reads_b]) == [0, 2]
    assert manifest_a == manifest_b
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert read_manifest(folder) == manifest_a


class Deadly(ToyText):
    """Kills its process in the second reading, when some shards are written."""

    def documents(self) -> Iterator[Document]:
        yield from super().documents()
        if self.reads == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_half_way_leaves_nothing_that_looks_prepared(tmp_path: Path) -> None:
    corpus = Deadly(toy_documents())
    worker = multiprocessing.get_context("fork").Process(
        target=prepare_text, args=(corpus, SETTINGS, tmp_path)
    )
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    (left,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert left.suffix == ".partial"
    assert read_manifest(left) is None
    corpus.reads = 10
    data = prepare_text(corpus, SETTINGS, tmp_path)
    assert data.train().n_documents > 100
    assert not left.exists()


@pytest.mark.parametrize("victim", ["manifest.json", "train.00000.bin", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_cache_is_rebuilt_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, victim: str, damage: str
) -> None:
    data = prepare(tmp_path)
    path, expected = data.folder / victim, texts_of(data, data.train())
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-3])
    again = prepare(tmp_path)
    assert [record.message.count("\n") for record in caplog.records] == [0]
    assert texts_of(again, again.train()) == expected


def test_a_corpus_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    class Restless(ToyText):
        def documents(self) -> Iterator[Document]:
            self.reads += 1
            yield from toy_documents(200 + self.reads)

    with pytest.raises(DataError) as caught:
        prepare_text(Restless([]), SETTINGS, tmp_path)
    assert_one_line(caught.value, "corpus.text changed", "run again")


def test_a_corpus_larger_than_memory_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(ToyText):
        def documents(self) -> Iterator[Document]:
            for i in range(3000):
                yield Document(text=f"{i} " + "some words of a long text " * 150, group=str(i))  # 12 MB

    monkeypatch.setattr(shards, "BATCH_BYTES", 2**16)
    monkeypatch.setattr(shards, "BATCH_DOCUMENTS", 16)
    tracemalloc.start()
    data = prepare_text(Large([]), schema.Tokenizer(vocab_size=300, train_bytes=50_000), tmp_path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(counts["bytes"] for counts in data.manifest["splits"].values()) > 11_000_000
    assert peak_bytes < 3_000_000


# Labelled documents


def test_labelled_documents_are_read_once_and_come_back_by_split(tmp_path: Path) -> None:
    odd = Document(text="line\u2028separator\r\n\u0085 ", group="odd", labels={"a": "ü"})
    corpus = ToyText([*toy_documents(), odd, odd], labelled=True)
    for split in shards.SPLITS:
        found = list(load_documents(corpus, tmp_path, split))
        assert found == [d for d in [*toy_documents(), odd] if split_of(d.group) == split]
    assert corpus.reads == 1
    assert len(list(load_documents(corpus, tmp_path))) == 201


def test_unlabelled_documents_are_never_copied(tmp_path: Path) -> None:
    corpus = ToyText(toy_documents())
    assert list(load_documents(corpus, tmp_path)) == toy_documents()
    assert not list(tmp_path.iterdir())


# Pairs


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


def test_the_manifest_tells_content_counts_and_source(toy: TextData) -> None:
    manifest = json.loads((toy.folder / "manifest.json").read_text())
    assert manifest == toy.manifest
    assert manifest["provenance"]["source"] == "toy"
    assert {len(manifest[name]) for name in ("content_sha256", "tokenizer_sha256")} == {64}
    assert sum(counts["documents"] for counts in manifest["splits"].values()) == 200
    assert tokens.corpus_key(ToyText([]))["class"].endswith("ToyText")
