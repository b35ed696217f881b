"""The user's own data, as files or Hugging Face data sets: mistakes are one line with key and fix."""

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from corpus_builders import assert_one_line, pair_corpus, text_corpus, texts_of
from PIL import Image

from bench.config.schema import Tokenizer
from bench.data.corpora.base import CUT, MAX_TEXT_CHARS, Document, Pair, Skipped
from bench.data.shards import prepare_text
from bench.errors import ConfigError, DataError

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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lines_end_at_cr_lf_and_crlf_and_a_byte_order_mark_gives_the_encoding(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("één\rtwo\x85and\xa0a half\r\nthree\u2028and\n\rfour".encode(encoding))
    found = texts_of(text_corpus("text_files", path=str(path), document="line"))
    assert found == ["één", "two\x85and\xa0a half", "three\u2028and", "four"]
    paragraphs = texts_of(text_corpus("text_files", path=str(path), document="paragraph"))
    assert paragraphs == ["één\ntwo\x85and\xa0a half\nthree\u2028and", "four"]


@pytest.mark.parametrize("document", ["file", "line", "paragraph"])
def test_a_very_long_line_is_cut_counted_and_never_in_memory(tmp_path: Path, document: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789" * 3_000_000 + b"\n\nshort")  # 30 MB
    tracemalloc.start()
    cut, sizes = 0, []
    for item in text_corpus("text_files", path=str(path), document=document).documents():
        cut += item == Skipped(CUT, "a.txt")
        sizes += [len(item.text)] if isinstance(item, Document) else []
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) - (document == "file") * 2 == 30_000_005
    assert max(sizes) < 1.1 * MAX_TEXT_CHARS
    assert cut == 30_000_000 // MAX_TEXT_CHARS
    assert peak_bytes < 10_000_000


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


@pytest.mark.slow
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
    assert list(corpus.documents()) == [
        Document("first", "a", {"kind": "1"}),
        Skipped("row without a text", "row 1"),
    ]
    assert corpus.labelled
    with pytest.raises(ConfigError) as caught:
        texts_of(text_corpus("hf_text", name="json", data_files=[str(path)], **hf_options))
    assert_one_line(caught.value, "corpus.text.text_column='text'", "body")


def test_words_for_null_in_csv_are_words_and_labels_are_as_written(
    tmp_path: Path, hf_options: dict[str, Any]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,kind\nnull,1\nNA,\nNone,02\n,3\n7,nan\n")
    corpus = text_corpus(
        "hf_text", name="csv", data_files=[str(path)], label_columns=["kind"], **hf_options
    )  # fmt: skip
    assert [(i.text, i.labels) if isinstance(i, Document) else i for i in corpus.documents()] == [
        ("null", {"kind": "1"}),
        ("NA", {}),
        ("None", {"kind": "02"}),
        Skipped("row without a text", "row 3"),
        ("7", {"kind": "nan"}),
    ]


@pytest.mark.parametrize("corpus", [text_corpus, pair_corpus])
def test_a_null_label_is_no_label_and_whole_numbers_beside_nulls_stay_whole(
    corpus: Any, tmp_path: Path, hf_options: dict[str, Any]
) -> None:
    import pandas

    rows = {"text": ["a", "b", "c"], "image": [png("red"), png("blue"), png("lime")], "caption": "words"}
    frame = pandas.DataFrame(
        rows | {"kind": [1, None, 2], "word": ["x", None, "None"], "half": [0.5, 1, None]}
    )
    frame.to_parquet(tmp_path / "rows.parquet")
    stem = "hf_text" if corpus is text_corpus else "hf_image_text"
    made = corpus(
        stem, name="parquet", data_files=[str(tmp_path / "rows.parquet")],
        label_columns=["kind", "word", "half"], group_column="word", **hf_options,
    )  # fmt: skip
    items = list(made.documents() if corpus is text_corpus else made.pairs())
    assert [item.labels for item in items] == [
        {"kind": "1", "word": "x", "half": "0.5"}, {"half": "1"}, {"kind": "2", "word": "None"},
    ]  # fmt: skip
    assert items[0].group == "x"
    assert len(items[1].group) == 64  # its own, not that of all nulls


def test_texts_that_vanish_are_counted_beside_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}" if i % 2 else None}) + "\n" for i in range(100)))
    for label_columns in ([], ["text"]):
        corpus = text_corpus("hf_text", name="json", data_files=[str(path)], label_columns=label_columns)
        manifest = prepare_text(corpus, Tokenizer(vocab_size=300, train_bytes=999), tmp_path).manifest
        assert manifest["skipped"] == {"row without a text": 50}
        assert manifest["provenance"]["skipped"].startswith("row without a text: 50 (row 0, row 2,")
        assert sum(split["documents"] for split in manifest["splits"].values()) == 50
    assert caplog.text.count("corpus.text: skipped row without a text: 50") == 2


def test_parquet_pictures_are_squared(tmp_path: Path, hf_options: dict[str, Any]) -> None:
    path = write_pictures(tmp_path / "p.parquet", [png("red"), png("blue"), png("red")])
    corpus = pair_corpus("hf_image_text", name="parquet", data_files=[path], **hf_options)
    pairs = list(corpus.pairs())
    assert [tuple(pair.image[5, 5]) for pair in pairs] == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    assert pairs[0].image.shape == (32, 32, 3)
    assert pairs[0].group == pairs[2].group != pairs[1].group


def test_a_picture_that_does_not_decode_is_told_by_its_row(
    tmp_path: Path, hf_options: dict[str, Any]
) -> None:
    cut, other = png("red")[:40], b"no picture"
    path = write_pictures(tmp_path / "p.parquet", [cut, png("red"), other])
    items = list(pair_corpus("hf_image_text", name="parquet", data_files=[path], **hf_options).pairs())
    assert [item for item in items if isinstance(item, Skipped)] == [
        Skipped("image that does not decode", "row 0"),
        Skipped("image that does not decode", "row 2"),
    ]
    assert [item.caption for item in items if isinstance(item, Pair)] == ["picture 1"]


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
