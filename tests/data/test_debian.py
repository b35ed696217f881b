"""Corpora of Debian packages: what is kept of them, and that they are downloaded once."""

from pathlib import Path

import pytest
from corpus_builders import assert_one_line, pair_corpus, text_corpus
from toy_archive import PROSE, ToyArchive
from toy_data import SETTINGS

from bench.data.corpora.base import Document, Pair, PairCorpus, Skipped, TextCorpus
from bench.data.debian import licence_of
from bench.data.pairs import prepare_pairs
from bench.data.shards import load_documents, prepare_text
from bench.errors import ConfigError, DataError


def docs(*packages: str, **changes: object) -> TextCorpus:
    exclude = ["usr/share/doc/toy-doc/html/skipped/*"]
    return text_corpus("debian_docs", packages=list(packages), exclude=exclude, max_chars=200, **changes)


def read(corpus: TextCorpus, folder: Path) -> list[Document]:
    return list(load_documents(corpus, folder))


def test_english_prose_is_kept_once_and_code_translations_and_sources_are_not(
    toy_archive: ToyArchive, tmp_path: Path
) -> None:
    documents = read(docs("toy-doc", "toy-dict", documents_per_group=10), tmp_path)
    first = PROSE.format("start")
    pages = [PROSE.format(f"page {i}") for i in range(30)]
    assert "\n\n".join(d.text for d in documents).split("\n\n") == [
        first,
        *pages,
        f"Abjure, v. t. 1. {PROSE.format('oath')}",
    ]
    assert documents[1].text == "\n\n".join(pages[:2])  # as many paragraphs as fit into 200 characters
    page = "toy-doc/usr/share/doc/toy-doc/html"
    assert [d.group for d in documents[:12]] == [
        f"{page}/a.html#0",
        *[f"{page}/b.html#0"] * 10,
        f"{page}/b.html#1",
    ]
    assert documents[-1].labels == {"package": "toy-dict"}


def test_a_package_is_downloaded_once_and_then_needs_no_apt(
    toy_archive: ToyArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare_text(docs("toy-doc", documents_per_group=1), SETTINGS, tmp_path)
    assert [call for call in toy_archive.calls() if "download" in call] == ["download toy-doc=1.0-2"]
    assert data.manifest["provenance"] == {
        "source": "Debian packages: toy-doc 1.0-2",
        "licence": "toy-doc: GPL-2, others for some files",
    }
    monkeypatch.setenv("PATH", "")
    again = prepare_text(docs("toy-doc", documents_per_group=1), SETTINGS, tmp_path)
    assert again.manifest == data.manifest


@pytest.mark.parametrize(
    ("packages", "parts"),
    [
        (["toy-dco"], ["corpus.text.packages", "'toy-dco'", "apt-get update", "apt-cache search"]),
        (["toy-empty"], ["corpus.text.packages", "toy-empty", ".bin", "remove it"]),
    ],
)
def test_a_package_that_cannot_be_used_is_one_line(
    toy_archive: ToyArchive, tmp_path: Path, packages: list[str], parts: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        read(docs(*packages), tmp_path)
    assert_one_line(caught.value, *parts)


def test_without_apt_the_line_says_where_to_get_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError) as caught:
        read(docs("toy-doc"), tmp_path)
    assert_one_line(
        caught.value, "corpus.text.packages", "apt-cache is missing", "debian-toy-doc", "paths.data"
    )


def test_an_archive_that_cannot_be_reached_is_one_line(
    toy_packages: ToyArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in (
        ("apt-cache", "echo 'Version: 1'"),
        ("apt-get", "echo 'W: x\nE: Failed to fetch' >&2; exit 100"),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/bin:/usr/bin")
    with pytest.raises(DataError) as caught:
        read(docs("toy-doc"), tmp_path)
    assert_one_line(caught.value, "corpus.text.packages", "E: Failed to fetch", "apt-get update", "network")


def test_a_name_that_apt_would_take_for_an_option_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        docs("-oDir=/")
    assert_one_line(caught.value, "corpus.text.packages", "name of a Debian package")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("See /usr/share/common-licenses/GPL-2.", "refers to GPL-2, see usr/share/doc/x/copyright"),
        ("Do as you like.", "see usr/share/doc/x/copyright"),
        ("", "see the copyright file of its source package"),
    ],
)
def test_a_licence_that_is_not_machine_readable_is_referred_to(text: str, expected: str) -> None:
    assert licence_of(text, "x") == expected


# Drawings


def drawings(folder: Path) -> PairCorpus:
    corpus = pair_corpus("openclipart", image_size=16, exclude=["stars/*"])
    corpus.keep_downloads_in(folder)
    return corpus


def test_drawings_have_english_captions_and_variants_share_a_group(
    toy_archive: ToyArchive, tmp_path: Path
) -> None:
    items = list(drawings(tmp_path).pairs())
    pairs = {item.caption: item for item in items if isinstance(item, Pair)}
    assert set(pairs) == {
        "Black cat; A cat of the bar; animal",
        "Black cat; animal",
        "animal",
        "red bar",
    }
    first, second = pairs["Black cat; A cat of the bar; animal"], pairs["Black cat; animal"]
    assert first.group == second.group != pairs["animal"].group
    assert first.image.shape == (16, 16, 3)
    assert (first.image[4, 1] == [255, 0, 0]).all()  # a bar of 3 by 9 pixels
    assert (first.image[4, 5] == [255, 255, 255]).all()
    assert sum(isinstance(item, Pair) and item.caption == "red bar" for item in items) == 8
    places = {item.place.rpartition("/")[2]: item.reason for item in items if isinstance(item, Skipped)}
    assert places == {
        "gatto.svg": "drawing without an English caption",
        "broken.svg": "drawing without an English caption",
        "same.svg": "drawing that looks like another at this size",
        "white.svg": "drawing that is empty or cannot be rendered",
    }


def test_the_share_of_the_test_split_is_an_option(tmp_path: Path) -> None:
    from toy_data import ToyPairs, prepare, toy_pairs

    tokenizer = prepare(tmp_path).tokenizer_path
    shares = {}
    for share in (0.1, 0.5):
        corpus = ToyPairs(toy_pairs())
        corpus.test_share = share
        data = prepare_pairs(corpus, tokenizer, 8, tmp_path / str(share))
        shares[share] = {name: set(getattr(data, name)().texts) for name in ("train", "validation", "test")}
    assert shares[0.1]["test"] < shares[0.5]["test"]
    assert 0.35 < len(shares[0.5]["test"]) / 100 < 0.65
    assert 0 < len(shares[0.5]["validation"]) < 25
    assert sum(map(len, shares[0.5].values())) == 100
