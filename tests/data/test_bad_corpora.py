"""Texts and data sets that are none: one line with file or key and the fix, and no run."""

import os
from pathlib import Path

import pytest
from bad_inputs import LEAST, Bench, assert_one_line, many
from corpus_builders import text_corpus, texts_of
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BenchError, printable

pytestmark = pytest.mark.slow

TINY = [
    "strategy=clm",
    "tokenizer.vocab_size=300",
    "model=0.2m",
    "sequence_length=32",
    "task=[bits_per_byte_exact]",
]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Bench:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return Bench(monkeypatch, capsys)


# Texts


TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no text"),
    "blank": (b" \n\t\n\r\n", "no text"),
    "latin1": ("naïve\n".encode("latin-1") * 9, "not UTF-8 at byte 2"),
    "utf16": ("some words".encode("utf-16"), "is empty, because whole groups"),
    "half of utf16": ("some words".encode("utf-16")[:-1], "not UTF-16 at byte 20"),
    "utf16 without its mark": ("some words".encode("utf-16-le"), "`iconv -f UTF-16LE -t UTF-8`"),
    "half a pair": (b"ab \xed\xa0\x80", "not UTF-8 at byte 3"),
    "overlong": (b"\xc0\xaf" * 9, "not UTF-8 at byte 0"),
    "NULs": (b"words\n\0\0\0", "NUL at byte 6"),
    "a program": (b"\x7fELF\x02\x01\x01" + bytes(64), "NUL at byte 7"),
    "gzip": (b"\x1f\x8b\x08" + b"\1" * 9, "not UTF-8 at byte 1; decompress it (gzip)"),
    "zip": (b"PK\x03\x04" + bytes(9), "decompress it (zip)"),
    "one text": (b"hello", "too few; add text or set corpus.text.document=line"),
    "one huge line": (b"word " * 400_000, "is empty, because whole groups"),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_file_that_is_no_corpus_is_named(what: str, cli: Bench):
    content, told = TEXTS[what]
    Path("mine.txt").write_bytes(content)
    words = ["corpus/text=text_files", "corpus.text.path=mine.txt", "corpus.text.split_by=document"]
    assert told in cli.refused("train", *TINY, *words)


@many(40)
@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_texts_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "bytes.txt"
    path.write_bytes(content)
    try:
        texts = texts_of(text_corpus("text_files", path=str(path), document="line"))
    except BenchError as error:
        line = printable(str(error))
        assert_one_line(line)
        assert "corpus.text.path" in line
    else:
        assert all(text.strip() and "\0" not in text for text in texts)


PLACES = {
    "corpus.text.path=nowhere": "no such file",
    "corpus.text.path=''": "corpus.text.path='': give a text",
    "corpus.text.path=null": "corpus.text.path",
    "corpus.text.path=loop.txt": "no such file",
    "corpus.text.path=pipe.txt": "no such file",
    "corpus.text.path=/dev/zero": "no such file",
    "corpus.text.path=folder": "no file matches",
    "corpus.text.path='[abc'": "no file matches",
    "corpus.text.path='**x/a[b'": "is an invalid glob",
    "corpus.text.path='a\nb'": "no such file",
    "corpus.text.path='\x1b[31m'": "no file matches",
    "corpus.text.pattern=''": "corpus.text.pattern=''",
    "corpus.text.pattern=/etc/*": "corpus.text.pattern='/etc/*'",
    "corpus.text.pattern=../*": "corpus.text.pattern='../*'",
    "corpus.text.pattern=a**b": "is an invalid glob",
}
assert len(TEXTS) + len(PLACES) >= LEAST["text"]


@pytest.mark.parametrize("word", PLACES)
def test_a_place_that_holds_no_texts_is_named(word: str, cli: Bench):
    Path("loop.txt").symlink_to("loop.txt")
    os.mkfifo("pipe.txt")
    Path("folder/deep.txt").mkdir(parents=True)
    Path("folder/again").symlink_to(Path("folder").resolve())
    Path("folder/gone.txt").symlink_to("nothing")
    os.mkfifo("folder/pipe.txt")
    words = ["corpus/text=text_files", "corpus.text.path=folder", word]
    assert PLACES[word] in cli.refused("train", *TINY, *words)


# Data sets


ROWS: dict[str, tuple[str, bytes, str]] = {
    "empty": ("json", b"", "is empty"),
    "nulls": ("json", b"null\nnull\n", "begins with null"),  # on which Arrow crashes
    "a brace": ("json", b"{", "Missing a name"),
    "cut": ("json", b'{"text": "a"}\n{"text": "b', "closing quotation mark"),
    "numbers": ("json", b'{"text": 1}\n', "holds int in row 0"),
    "NaN": ("json", b'{"text": NaN}\n', "holds float in row 0"),
    "objects": ("json", b'{"text": {"a": "b"}}\n', "holds dict in row 0"),
    "another column": ("json", b'{"body": "a"}\n', "is not a column of row 0"),
    "no texts": ("json", b'{"text": ""}\n{"text": null}\n', "every row was skipped: row without a text: 2"),
    "one text": ("json", b'{"text": "a"}\n', "is empty, because whole groups"),
    "twice a key": ("json", b'{"text": "a", "text": "b"}\n', "specified twice"),
    "no JSON": ("json", b"\x93NUMPY", "Invalid value"),
    "no parquet": ("parquet", b"PAR1 nothing", "magic bytes"),
    "empty parquet": ("parquet", b"", "0 bytes"),
    "a pickle": ("pandas", b"cos\nmkdir\n(S'touched'\ntR.", "may hold code"),
}


@pytest.mark.parametrize("what", ROWS)
def test_a_data_set_that_is_none_is_named(what: str, cli: Bench):
    reader, content, told = ROWS[what]
    Path("rows").write_bytes(content)
    words = ["corpus/text=hf_text", f"corpus.text.name={reader}", "corpus.text.data_files=[rows]"]
    line = cli.refused("train", *TINY, *words)
    assert told in line
    assert "corpus.text" in line
    assert not Path("touched").exists()


OPTIONS = {
    "corpus.text.split=nope": "Unknown split",
    "corpus.text.group_column=nope": "group_column='nope' is not a column",
    "corpus.text.label_columns=[nope]": "label_columns[0]='nope' is not a column",
    "corpus.text.data_files=[nowhere*]": "nothing matches nowhere*",
    "corpus.text.data_files=rows": "corpus.text.data_files",
    "corpus.text.name=null": "corpus.text.name",
    "corpus.text.name=evil": "corpus.text.name='evil'",
}


@pytest.mark.parametrize("word", OPTIONS)
def test_a_data_set_that_is_asked_for_wrongly_is_told_by_its_option(word: str, cli: Bench):
    Path("rows").write_text('{"text": "a"}\n')
    Path("evil").mkdir()
    Path("evil/evil.py").write_text("import os; os.mkdir('touched')")
    words = ["corpus/text=hf_text", "corpus.text.name=json", "corpus.text.data_files=[rows]", word]
    words += ["corpus.text.data_files=null"] if "evil" in word else []
    assert OPTIONS[word] in cli.refused("train", *TINY, *words)
    assert not Path("touched").exists()
