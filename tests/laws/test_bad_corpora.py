"""Texts, images and tokenizers that are none: one line with file or key and the fix, and no run."""

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs import LEAST, Bench, assert_one_line, many, refusal
from corpus_builders import pair_corpus, text_corpus, texts_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.corpora.base import Pair, Skipped
from bench.errors import BenchError, printable
from bench.pretrained import open_checkpoint

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
    "utf16": ("some words".encode("utf-16"), "not UTF-8 at byte 0"),
    "half a pair": (b"ab \xed\xa0\x80", "not UTF-8 at byte 3"),
    "overlong": (b"\xc0\xaf" * 9, "not UTF-8 at byte 0"),
    "NULs": (b"words\n\0\0\0", "NUL at byte 6"),
    "a program": (b"\x7fELF\x02\x01\x01" + bytes(64), "NUL at byte 7"),
    "gzip": (b"\x1f\x8b\x08" + bytes(9), "not UTF-8 at byte 1"),
    "one text": (b"hello", "nothing falls into the split"),
    "one huge line": (b"word " * 400_000, "nothing falls into the split"),
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
    "corpus.text.path=''": "corpus.text.path is empty",
    "corpus.text.path=null": "corpus.text.path",
    "corpus.text.path=loop.txt": "no such file",
    "corpus.text.path=pipe.txt": "no such file",
    "corpus.text.path=/dev/zero": "no such file",
    "corpus.text.path=folder": "no file matches",
    "corpus.text.path='[abc'": "no file matches",
    "corpus.text.path='**x/a[b'": "is no glob",
    "corpus.text.path='a\nb'": "no such file",
    "corpus.text.path='\x1b[31m'": "no file matches",
    "corpus.text.pattern=''": "corpus.text.pattern=''",
    "corpus.text.pattern=/etc/*": "corpus.text.pattern='/etc/*'",
    "corpus.text.pattern=../*": "corpus.text.pattern='../*'",
    "corpus.text.pattern=a**b": "is no glob",
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
    "another column": ("json", b'{"body": "a"}\n', "is no column of row 0"),
    "no texts": ("json", b'{"text": ""}\n{"text": null}\n', "no documents"),
    "one text": ("json", b'{"text": "a"}\n', "nothing falls into the split"),
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
    "corpus.text.group_column=nope": "group_column='nope' is no column",
    "corpus.text.label_columns=[nope]": "label_columns[0]='nope' is no column",
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


# Images


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG that says how large it is, whatever it holds."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


RED = Image.new("RGB", (64, 48), "red")
NO_IMAGES: dict[str, Any] = {
    "nothing": b"",
    "text": b"hello",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touched) (w) file\n",
    "no pixels": png(0, 0, b""),
    "a bomb": png(200_000, 200_000, bytes(1000)),
    "a small bomb": png(13_000, 13_000, bytes(1000)),
    "a broken chunk": encoded(RED, "PNG")[:40] + b"\xff" * 20,
    "null": None,
    "a number": 3,
    "a list": [1, 2],
    "neither bytes nor path": {"bytes": None, "path": None},
    "no such file": "nowhere.png",
    "a folder": "/etc",
    "no picture": "/etc/passwd",
    "a device": "/dev/zero",
    "a NUL": "a\0b",
    **{f"cut {kind}": encoded(RED, kind)[:-40] for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")},
}
IMAGES = {
    **{mode: encoded(Image.new(mode, (9, 7)), "PNG") for mode in ("1", "L", "LA", "P", "RGBA", "I;16")},
    "CMYK": encoded(Image.new("CMYK", (9, 7)), "JPEG"),
    "animated": encoded(
        Image.new("P", (9, 9)),
        "GIF",
        save_all=True,
        append_images=[Image.new("P", (9, 9), i) for i in (1, 2)],
    ),
    "one pixel": encoded(Image.new("RGB", (1, 1)), "PNG"),
    "a thread": encoded(Image.new("RGB", (1, 9000)), "PNG"),
    "damaged metadata": encoded(RED, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
}
assert len(NO_IMAGES) >= LEAST["images"]


def pairs_of(monkeypatch: pytest.MonkeyPatch, images: list[Any], captions: list[Any]) -> list[Pair | Skipped]:
    """What the corpus makes of rows."""
    import bench.corpora.hf_image_text as corpus

    class Rows(list[dict[str, Any]]):
        features = None

    rows = Rows({"image": image, "caption": caption} for image, caption in zip(images, captions, strict=True))
    monkeypatch.setattr(corpus, "open_rows", lambda options, key: rows)
    return list(pair_corpus("hf_image_text", name="x", data_files=None, image_size=16).pairs())


def test_what_is_no_image_is_skipped_with_its_row_and_all_else_is_read(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    images = [*NO_IMAGES.values(), *IMAGES.values()]
    items = pairs_of(monkeypatch, images, ["words"] * len(images))
    kinds = dict(zip([*NO_IMAGES, *IMAGES], map(type, items), strict=True))
    assert {name for name, kind in kinds.items() if kind is Skipped} == set(NO_IMAGES)
    places = [item.place for item in items if isinstance(item, Skipped)]
    assert places == [f"row {i}" for i in range(len(NO_IMAGES))]
    assert all(item.image.shape == (16, 16, 3) for item in items if isinstance(item, Pair))
    assert not list(recwarn)
    assert not list(tmp_path.iterdir())


@many(60)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF"]), st.data())
def test_a_flipped_byte_costs_a_row_at_most(kind: str, data: st.DataObject):
    content = bytearray(encoded(RED, kind))
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with pytest.MonkeyPatch.context() as patch:
        (item,) = pairs_of(patch, [bytes(content)], ["words"])
    assert isinstance(item, Pair | Skipped)


def test_captions_that_are_none_are_skipped_or_named(monkeypatch: pytest.MonkeyPatch):
    good = encoded(RED, "PNG")
    items = pairs_of(monkeypatch, [good] * 4, ["", None, " \n", "words"])
    assert [type(item) for item in items] == [Skipped, Skipped, Skipped, Pair]
    for caption in (3, ["a"], {"a": 1}, b"bytes"):
        told = refusal(lambda caption=caption: pairs_of(monkeypatch, [good], [caption]))  # type: ignore[misc]
        assert "corpus.pairs.caption_column" in told


# Tokenizers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from toy_checkpoints import write_checkpoint

    return write_checkpoint("gpt2", tmp_path_factory.mktemp("gpt2") / "good")


def without(name: str) -> Callable[[Any], Any]:
    return lambda tree: {key: value for key, value in tree.items() if key != name}


def with_model(**changes: Any) -> Callable[[Any], Any]:
    return lambda tree: tree | {"model": tree["model"] | changes}


def with_ids(change: Callable[[dict[str, int]], dict[str, int]]) -> Callable[[Any], Any]:
    return lambda tree: tree | {"model": tree["model"] | {"vocab": change(tree["model"]["vocab"])}}


def erasing(tree: Any) -> Any:
    return tree | {"normalizer": {"type": "Replace", "pattern": {"Regex": "[^x]*"}, "content": ""}}


TREES: dict[str, Callable[[Any], Any]] = {
    "no model": without("model"),
    "no added tokens": without("added_tokens"),
    "another kind of model": with_model(type="Nothing"),
    "no vocabulary": with_model(vocab={}),
    "a list for a vocabulary": with_model(vocab=[]),
    "a text for a vocabulary": with_model(vocab="words"),
    "a merge of unknown tokens": with_model(merges=[["qq", "zz"]]),
    "a merge of one": with_model(merges=[["a"]]),
    "a hole": with_ids(lambda vocab: {k: i for k, i in vocab.items() if i != 280}),
    "a shared id": with_ids(lambda vocab: {k: min(i, 290) for k, i in vocab.items()}),
    "a negative id": with_ids(lambda vocab: vocab | {"zzz": -1}),
    "an id far out": with_ids(lambda vocab: vocab | {"zzz": 2**31}),
    "a text for an id": with_ids(lambda vocab: vocab | {"zzz": "3"}),  # type: ignore[dict-item]
    "few bytes": with_ids(lambda vocab: dict(list(vocab.items())[:9])),
    "no text is left": erasing,
    "an unbalanced pattern": lambda tree: (
        tree | {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}}}
    ),
    "an unknown normalizer": lambda tree: tree | {"normalizer": {"type": "Nothing"}},
}
CONTENTS = {"nothing": b"", "a brace": b"{", "a list": b"[]", "null": b"null", "a pickle": b"\x80\x04K\x01."}
assert len(TREES) + len(CONTENTS) >= LEAST["tokenizers"]


@pytest.mark.parametrize("what", [*TREES, *CONTENTS])
def test_a_tokenizer_that_is_damaged_is_told_by_its_checkpoint(what: str, checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    path = folder / "tokenizer.json"
    if what in TREES:
        path.write_text(json.dumps(TREES[what](json.loads(path.read_text()))))
    else:
        path.write_bytes(CONTENTS[what])
    line = refusal(lambda: open_checkpoint(str(folder)))
    assert line.startswith(f"model.name={folder}: ")
    assert "tokenizer" in line
    assert_one_line(printable(line))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.ckpt", "model.pt", "model.safetensors"])
def test_a_checkpoint_that_is_a_pickle_is_refused_and_nothing_in_it_runs(
    name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from test_bad_records import MARK, traps

    from bench.backbones.checkpoint import load

    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(traps()["pickle"])

    def use() -> None:
        load(open_checkpoint(str(folder)), patch_size=4, length=16, pretrained=True, predicts=True)

    assert f"model.name={folder}" in refusal(use)
    assert not (tmp_path / MARK).exists()


def test_weights_that_are_no_numbers_give_none(checkpoint: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    from bench.backbones.checkpoint import load

    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    weights = {name: tensor * np.nan for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = open_checkpoint(str(folder))
    line = refusal(lambda: load(found, patch_size=4, length=16, pretrained=True, predicts=True))
    assert "no finite numbers" in line


def test_code_beside_a_checkpoint_is_never_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    from bench.fill import fill

    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "evil.py").write_text("import os; os.mkdir('touched')")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForMaskedLM"), "evil.M"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert "model=" in refusal(lambda: fill(folder, "[MASK]", 1))
    assert not (tmp_path / "touched").exists()


def test_the_law_counts_two_hundred_distinct_inputs():
    assert sum(LEAST.values()) >= 200
