"""Corpora that come with packages, and NLTK's: what they yield; mistakes are one line with key and fix."""

import os
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from multiprocessing import active_children
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_builders import assert_one_line, pair_corpus, text_corpus, texts_of

from bench.data.corpora import docstrings
from bench.data.corpora.base import split_of
from bench.data.corpora.docstrings import Docstrings
from bench.data.corpora.nltk import blocks, untagged
from bench.data.corpora.openmoji import TONE, concept
from bench.errors import ConfigError, DataError

pytestmark = pytest.mark.slow

# Docstrings


def test_docstrings_are_read_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "toy_package"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text('"""The toy package."""\nraise RuntimeError("imported")\n')
    (package / "tests" / "test_a.py").write_text('"""A test module."""\n')
    (package / "broken.py").write_text("def (:\n")
    (package / "shapes.py").write_text(
        'class Cube:\n    """A cube.\n\n    With six sides.\n    """\n\n'
        '    def roll(self):\n        """Roll it."""\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    documents = list(text_corpus("docstrings", packages=["toy_package"], min_chars=1).documents())
    assert [(d.text, d.group, d.labels["kind"], d.labels["name"]) for d in documents] == [
        ("The toy package.", "toy_package/__init__.py", "module", "toy_package"),
        ("A cube.\n\nWith six sides.", "toy_package/shapes.py", "class", "toy_package.shapes.Cube"),
        ("Roll it.", "toy_package/shapes.py", "function", "toy_package.shapes.Cube.roll"),
    ]


def parsers() -> list[BaseProcess]:
    """Living processes of this one that parse."""
    return [process for process in active_children() if isinstance(process, SpawnProcess)]


@pytest.mark.slow
def test_many_files_are_parsed_in_processes_with_the_same_documents_in_the_same_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus = text_corpus("docstrings", packages=["rich", "networkx"])
    side_by_side = iter(corpus.documents())
    first = next(side_by_side)
    assert parsers()
    in_processes = [first, *side_by_side]
    assert not parsers()
    monkeypatch.setattr(docstrings, "FEW_FILES", 10**6)
    assert in_processes == list(corpus.documents())


def test_whoever_stops_reading_leaves_no_process_behind() -> None:
    documents = text_corpus("docstrings", packages=["rich", "networkx"]).documents()
    next(documents)
    documents.close()  # type: ignore[attr-defined]
    assert not parsers()


def test_a_parser_that_dies_is_one_line() -> None:
    documents = text_corpus("docstrings", packages=["sympy"]).documents()
    next(documents)
    for process in parsers():
        process.kill()
    with pytest.raises(DataError) as caught:
        list(documents)
    assert_one_line(caught.value, "corpus.text", "run again")


def test_short_docstrings_are_left_out() -> None:
    assert min(map(len, texts_of(text_corpus("docstrings", packages=["emoji"], min_chars=60)))) >= 60


def test_a_missing_package_is_named_with_the_line_that_installs_it() -> None:
    with pytest.raises(ConfigError) as caught:
        text_corpus("docstrings", packages=["no_such_package"]).fingerprint()
    assert_one_line(caught.value, "corpus.text.packages", "pip install no_such_package")


@pytest.mark.parametrize("changes", [{"packages": []}, {"min_chars": 0}])
def test_docstring_options_out_of_range_name_their_key(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        text_corpus("docstrings", **changes)
    assert_one_line(caught.value, f"corpus.text.{next(iter(changes))}")


def test_the_fingerprint_follows_the_options() -> None:
    first, second = (text_corpus("docstrings", min_chars=n).fingerprint() for n in (80, 81))
    assert first != second
    assert Docstrings.labelled


# Pictures


@pytest.fixture(scope="module")
def emoji_pairs() -> list[Any]:
    return list(pair_corpus("openmoji", image_size=16).pairs())


@pytest.mark.slow
def test_variants_of_one_concept_never_straddle_a_split(emoji_pairs: list[Any]) -> None:
    splits = defaultdict(set)
    for pair in emoji_pairs:
        splits[pair.labels["base"]].add(split_of(pair.group))
    assert all(len(found) == 1 for found in splits.values())
    tones = [pair for pair in emoji_pairs if TONE.search(pair.caption)]
    assert len(tones) > 1000
    assert all(TONE.sub("", pair.caption) == pair.labels["base"] for pair in tones)


@pytest.mark.slow
def test_no_picture_and_no_caption_occurs_twice(emoji_pairs: list[Any]) -> None:
    assert len({pair.image.tobytes() for pair in emoji_pairs}) == len(emoji_pairs)
    assert len({pair.caption for pair in emoji_pairs}) == len(emoji_pairs)


@pytest.mark.slow
def test_pictures_are_drawn_on_white(emoji_pairs: list[Any]) -> None:
    pictures = np.stack([pair.image for pair in emoji_pairs])
    assert pictures.dtype == np.uint8
    assert pictures.shape[1:] == (16, 16, 3)
    assert (pictures[:, 0, 0] == 255).all(axis=1).mean() > 0.9
    assert pictures.reshape(len(pictures), -1).std(axis=1).min() > 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("waving hand medium-dark skin tone", "waving hand"),
        ("woman astronaut dark skin tone", "person astronaut"),
        ("man running facing right", "person running"),
        ("kiss woman man light skin tone dark skin tone", "kiss"),
        ("woman and man holding hands", "people holding hands"),
        ("mango", "mango"),
    ],
)
def test_a_concept_has_no_tone_gender_or_direction(name: str, expected: str) -> None:
    assert concept(name) == expected


@pytest.mark.slow
def test_flags_and_skin_tones_come_only_when_asked_for() -> None:
    plain = {p.caption for p in pair_corpus("openmoji", image_size=8, skin_tones=False).pairs()}
    flagged = {p.caption for p in pair_corpus("openmoji", image_size=8, skin_tones=False, flags=True).pairs()}
    assert not any("skin tone" in caption for caption in plain)
    assert {"flag: Germany", "flag: Scotland"} <= flagged - plain


def test_an_image_size_out_of_range_names_its_key() -> None:
    with pytest.raises(ConfigError) as caught:
        pair_corpus("openmoji", image_size=4)
    assert_one_line(caught.value, "corpus.pairs.image_size")


# NLTK


def test_long_blocks_are_cut_at_line_ends() -> None:
    assert list(blocks(["ab", "cd", "", "", "ef", "much longer"], 5)) == ["ab\ncd", "ef", "much longer"]


def test_brown_becomes_running_text() -> None:
    tagged = "\tThe/at jury/nn said/vbd ``/`` no/at 1/2/cd evidence/nn ''/'' ,/, why/wrb ?/. ?/."
    assert untagged(tagged).strip() == 'The jury said "no 1/2 evidence", why?'


def unload_nltk() -> None:
    """NLTK's readers remember where they found their files."""
    import nltk.corpus

    for name in ("brown", "inaugural", "abc"):
        getattr(nltk.corpus, name)._unload()


@pytest.fixture
def nltk_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A toy Brown as a folder, a toy Inaugural as an archive, and nothing else."""
    import nltk.data

    corpora = tmp_path / "nltk_data" / "corpora"
    (corpora / "brown").mkdir(parents=True)
    (corpora / "brown" / "ca01").write_text(
        "\n\tThe/at jury/nn said/vbd no/at evidence/nn was/bedz found/vbn ./.\n"
    )
    (corpora / "brown" / "cats.txt").write_text("ca01 news\n")
    with zipfile.ZipFile(corpora / "inaugural.zip", "w") as archive:
        archive.writestr(
            "inaugural/1789-A.txt", "Fellow citizens of the Senate.\n\nA second paragraph of it.\n"
        )
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    unload_nltk()
    yield corpora
    unload_nltk()


@pytest.mark.usefixtures("nltk_folder")
def test_nltk_corpora_are_read_from_folders_and_archives() -> None:
    corpus = text_corpus("nltk", names=["brown", "inaugural"])
    assert [(d.text, d.group, d.labels) for d in corpus.documents()] == [
        ("The jury said no evidence was found.", "brown/ca01#0", {"corpus": "brown", "category": "news"}),
        ("Fellow citizens of the Senate.", "inaugural/1789-A.txt#0", {"corpus": "inaugural"}),
        ("A second paragraph of it.", "inaugural/1789-A.txt#0", {"corpus": "inaugural"}),
    ]
    assert corpus.fingerprint() != text_corpus("nltk", names=["brown"]).fingerprint()


@pytest.mark.usefixtures("nltk_folder")
def test_a_missing_nltk_corpus_is_named_with_the_line_that_gets_it() -> None:
    with pytest.raises(DataError) as missing:
        text_corpus("nltk", names=["abc"]).fingerprint()
    assert_one_line(missing.value, "corpus.text.names", "python -m nltk.downloader abc", "NLTK_DATA")
    with pytest.raises(ConfigError) as unknown:
        texts_of(text_corpus("nltk", names=["bronw"]))
    assert_one_line(unknown.value, "corpus.text.names", "'bronw'")


@pytest.mark.skipif("NLTK_DATA" not in os.environ, reason="no NLTK data named by NLTK_DATA")
def test_the_users_nltk_corpora_have_text_without_tags() -> None:
    unload_nltk()
    documents = list(text_corpus("nltk", names=["brown", "inaugural"]).documents())
    assert sum(len(d.text) for d in documents) > 5_000_000
    assert not any("/at " in d.text for d in documents)
