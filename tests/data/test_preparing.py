"""Preparing is done once, whole, the same each time, and in little memory."""

import multiprocessing
import os
import signal
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_data import SETTINGS, ToyText, assert_one_line, prepare, texts_of, toy_documents

from bench.config import schema
from bench.data import shards
from bench.data.cache import read_manifest
from bench.data.corpora.base import Document, split_of
from bench.data.shards import load_documents, prepare_text
from bench.errors import DataError
from bench.training.stopping import Stop


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_does_not_wait_for_the_end_of_preparing(tmp_path: Path, number: signal.Signals) -> None:
    class Stopped(ToyText):
        def documents(self) -> Iterator[Document]:
            os.kill(os.getpid(), number)
            yield from super().documents()

    stop = Stop([])
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        stop.listen()
        with pytest.raises(KeyboardInterrupt):
            prepare_text(Stopped(toy_documents()), SETTINGS, tmp_path)
        assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
        os.kill(os.getpid(), number)
        assert stop.requested  # its own way to stop is back
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


@pytest.mark.parametrize("victim", ["manifest.json", "train.00000.bin", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_damaged_cache_is_rebuilt_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, victim: str, damage: str
) -> None:
    data = prepare(tmp_path)
    path, expected = data.folder / victim, texts_of(data, data.train())
    before = {name: content for name, (_, content) in snapshot(tmp_path).items()}
    damaged = {"gone": None, "cut": path.read_bytes()[:-3], "flipped": flipped(path.read_bytes())}[damage]
    path.unlink() if damaged is None else path.write_bytes(damaged)
    again = prepare(tmp_path)
    [line] = [record.message for record in caplog.records]
    assert "\n" not in line
    assert victim in line
    assert texts_of(again, again.train()) == expected
    assert {name: content for name, (_, content) in snapshot(tmp_path).items()} == before


def flipped(content: bytes) -> bytes:
    """One other bit, in a digit where the file is text: as plausible as damage can be."""
    digits = [i for i, byte in enumerate(content) if byte in b"2468"]
    place = digits[len(digits) // 2] if digits else len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_corpus_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    class Restless(ToyText):
        def documents(self) -> Iterator[Document]:
            self.reads += 1
            yield from toy_documents(200 + self.reads)

    with pytest.raises(DataError) as caught:
        prepare_text(Restless([]), SETTINGS, tmp_path)
    assert_one_line(caught.value, "corpus.text changed", "run again")


@pytest.mark.slow
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
