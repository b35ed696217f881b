"""Corpora: what they yield, and that every mistake is one line that names the key and the fix."""

import io
import json
import os
import tracemalloc
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from bench.build import build
from bench.corpora.base import PairCorpus, TextCorpus, split_of
from bench.corpora.docstrings import Docstrings
from bench.corpora.nltk import blocks, untagged
from bench.corpora.openmoji import TONE, concept
from bench.errors import BenchError, ConfigError, DataError

CONF = Path(__file__).parents[2] / "conf" / "corpus"


def text_corpus(stem: str, **changes: Any) -> TextCorpus:
    return build(_node("text", stem, changes), TextCorpus, "corpus.text")


def pair_corpus(stem: str, **changes: Any) -> PairCorpus:
    return build(_node("pairs", stem, changes), PairCorpus, "corpus.pairs")


def _node(kind: str, stem: str, changes: dict[str, Any]) -> dict[str, Any]:
    return yaml.safe_load((CONF / kind / f"{stem}.yaml").read_text()) | changes


def assert_one_line(error: BenchError, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


def texts_of(corpus: TextCorpus) -> list[str]:
    return [document.text for document in corpus.documents()]


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


def test_variants_of_one_concept_never_straddle_a_split(emoji_pairs: list[Any]) -> None:
    splits = defaultdict(set)
    for pair in emoji_pairs:
        splits[pair.labels["base"]].add(split_of(pair.group))
    assert all(len(found) == 1 for found in splits.values())
    tones = [pair for pair in emoji_pairs if TONE.search(pair.caption)]
    assert len(tones) > 1000
    assert all(TONE.sub("", pair.caption) == pair.labels["base"] for pair in tones)


def test_no_picture_and_no_caption_occurs_twice(emoji_pairs: list[Any]) -> None:
    assert len({pair.image.tobytes() for pair in emoji_pairs}) == len(emoji_pairs)
    assert len({pair.caption for pair in emoji_pairs}) == len(emoji_pairs)


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


def test_flags_and_skin_tones_come_only_when_asked_for() -> None:
    plain = {p.caption for p in pair_corpus("openmoji", image_size=8, skin_tones=False).pairs()}
    flagged = {p.caption for p in pair_corpus("openmoji", image_size=8, skin_tones=False, flags=True).pairs()}
    assert not any("skin tone" in caption for caption in plain)
    assert {"flag: Germany", "flag: Scotland"} <= flagged - plain


def test_an_image_size_out_of_range_names_its_key() -> None:
    with pytest.raises(ConfigError) as caught:
        pair_corpus("openmoji", image_size=4)
    assert_one_line(caught.value, "corpus.pairs.image_size")


# Text files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\r\n\r\nthree\n".encode())
    (tmp_path / "deep" / "b.txt").write_text("vier\n\n\nfünf\nsechs", encoding="utf-8")
    (tmp_path / "c.md").write_text("not this")
    return tmp_path


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("file", ["one\ntwo\n\nthree", "vier\n\n\nfünf\nsechs"]),
        ("line", ["one", "two", "three", "vier", "fünf", "sechs"]),
        ("paragraph", ["one\ntwo", "three", "vier", "fünf\nsechs"]),
    ],
)
def test_a_document_is_a_file_a_line_or_a_paragraph(folder: Path, document: str, expected: list[str]) -> None:
    assert texts_of(text_corpus("text_files", path=str(folder), document=document)) == expected


def test_a_path_is_a_folder_a_file_or_a_glob(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {}
    monkeypatch.setenv("HOME", str(folder))
    for path in (folder, folder / "a.txt", folder / "*" / "*.txt", "~/deep"):
        groups[str(path)] = {d.group for d in text_corpus("text_files", path=str(path)).documents()}
    assert list(groups.values()) == [{"a.txt", "deep/b.txt"}, {"a.txt"}, {"deep/b.txt"}, {"b.txt"}]


def test_split_by_document_gives_each_text_its_own_group(folder: Path) -> None:
    corpus = text_corpus("text_files", path=str(folder), document="line", split_by="document")
    assert len({document.group for document in corpus.documents()}) == 6


def test_the_fingerprint_follows_content_and_not_place(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = text_corpus("text_files", path=str(folder)).fingerprint()
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    folder.rename(moved)
    assert text_corpus("text_files", path=str(moved)).fingerprint() == before
    (moved / "a.txt").write_text("changed")
    assert text_corpus("text_files", path=str(moved)).fingerprint() != before


def test_bad_text_files_are_named_with_the_fix(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "empty" / "blank.txt").write_text("\n \n")
    (folder / "latin.txt").write_bytes(b"0123456\n" + "naïve".encode("latin-1"))
    cases = {
        "absent": ("no such file", "absent"),
        "*.xyz": ("no file matches", "corpus.text.pattern"),
        "empty": ("blank.txt", "no text"),
        "latin.txt": ("latin.txt", "not UTF-8 at byte 10", "iconv"),
    }
    for path, parts in cases.items():
        with pytest.raises(DataError) as caught:
            texts_of(text_corpus("text_files", path=str(folder / path)))
        assert_one_line(caught.value, "corpus.text.path", *parts)


@pytest.mark.parametrize("changes", [{"document": "word"}, {"split_by": "line"}])
def test_text_file_options_out_of_range_name_their_key(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        text_corpus("text_files", path="x", **changes)
    assert_one_line(caught.value, f"corpus.text.{next(iter(changes))}")


@pytest.mark.parametrize("document", ["line", "paragraph"])
def test_a_large_file_is_never_in_memory(tmp_path: Path, document: str) -> None:
    path = tmp_path / "large.txt"
    path.write_text(("twenty bytes of text\n" * 50 + "\n") * 10_000)  # 10 MB
    corpus = text_corpus("text_files", path=str(path), document=document)
    tracemalloc.start()
    n = sum(1 for _ in corpus.documents())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n == (500_000 if document == "line" else 10_000)
    assert peak_bytes < 2_000_000


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
        ("The jury said no evidence was found.", "brown/ca01", {"corpus": "brown", "category": "news"}),
        ("Fellow citizens of the Senate.", "inaugural/1789-A.txt", {"corpus": "inaugural"}),
        ("A second paragraph of it.", "inaugural/1789-A.txt", {"corpus": "inaugural"}),
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


# Hugging Face data sets


@pytest.fixture(params=[True, False], ids=["streaming", "on disk"])
def hf_options(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return {"streaming": request.param}


def png(colour: str, size: tuple[int, int] = (20, 10)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def write_pictures(path: Path, pictures: list[bytes]) -> str:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    captions = [f"picture {i}" for i in range(len(pictures))]
    rows = {"image": [{"bytes": data, "path": None} for data in pictures], "caption": captions}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return str(path)


def test_json_rows_are_documents(tmp_path: Path, hf_options: dict[str, Any]) -> None:
    rows = [{"body": "first", "kind": 1, "author": "a"}, {"body": None, "kind": 2, "author": "b"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = text_corpus(
        "hf_text", name="json", data_files=[str(path)], text_column="body", label_columns=["kind"],
        group_column="author", **hf_options,
    )  # fmt: skip
    assert [(d.text, d.group, d.labels) for d in corpus.documents()] == [("first", "a", {"kind": "1"})]
    assert corpus.labelled
    with pytest.raises(ConfigError) as caught:
        texts_of(text_corpus("hf_text", name="json", data_files=[str(path)], **hf_options))
    assert_one_line(caught.value, "corpus.text.text_column='text'", "body")


def test_parquet_pictures_are_squared(tmp_path: Path, hf_options: dict[str, Any]) -> None:
    path = write_pictures(tmp_path / "p.parquet", [png("red"), png("blue"), png("red")])
    corpus = pair_corpus("hf_image_text", name="parquet", data_files=[path], **hf_options)
    pairs = list(corpus.pairs())
    assert [tuple(pair.image[5, 5]) for pair in pairs] == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    assert pairs[0].image.shape == (32, 32, 3)
    assert pairs[0].group == pairs[2].group != pairs[1].group


def test_a_picture_that_does_not_decode_is_named_by_its_row(
    tmp_path: Path, hf_options: dict[str, Any]
) -> None:
    path = write_pictures(tmp_path / "p.parquet", [png("red"), png("red")[:40]])
    with pytest.raises(DataError) as caught:
        list(pair_corpus("hf_image_text", name="parquet", data_files=[path], **hf_options).pairs())
    assert_one_line(caught.value, "corpus.pairs.image_column", "row 1", "picture 1")


def test_json_pictures_are_paths(tmp_path: Path, hf_options: dict[str, Any]) -> None:
    (tmp_path / "a.png").write_bytes(png("lime"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"image": str(tmp_path / "a.png"), "caption": "green"}) + "\n")
    (pair,) = pair_corpus("hf_image_text", name="json", data_files=[str(rows)], **hf_options).pairs()
    assert (pair.caption, tuple(pair.image[0, 0])) == ("green", (0, 255, 0))


def test_a_data_set_that_does_not_load_names_the_key(tmp_path: Path, hf_options: dict[str, Any]) -> None:
    (tmp_path / "bad.json").write_text("{")
    for changes, key in [
        ({"name": "json", "data_files": [str(tmp_path / "none.json")]}, "corpus.text.data_files"),
        ({"name": "json", "data_files": [str(tmp_path / "bad.json")]}, "corpus.text.name"),
    ]:
        with pytest.raises(DataError) as caught:
            texts_of(text_corpus("hf_text", **changes, **hf_options))
        assert_one_line(caught.value, key)
