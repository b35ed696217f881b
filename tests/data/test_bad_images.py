"""Files that are no images, or too large ones: skipped and counted, or one line; never a crash."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs import LEAST, many, refusal
from corpus_builders import pair_corpus
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from bench.data.corpora.base import Pair, Skipped


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
    from bench.data.corpora.hf_image_text import HfImageText

    class Rows(list[dict[str, Any]]):
        features = None

    rows = Rows({"image": image, "caption": caption} for image, caption in zip(images, captions, strict=True))
    monkeypatch.setattr(HfImageText, "open_rows", lambda self: rows)
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


GREY16 = np.array([[0, 257 * 100, 65535]], np.uint16).repeat(3, axis=0)


@pytest.mark.parametrize(
    ("kind", "grey"), [("PNG", GREY16), ("TIFF", GREY16), ("TIFF", GREY16.astype(">u2"))]
)
def test_sixteen_bit_grey_is_scaled_by_its_range(
    kind: str, grey: NDArray[np.uint16], monkeypatch: pytest.MonkeyPatch
):
    (pair,) = pairs_of(monkeypatch, [encoded(Image.fromarray(grey).resize((48, 48), 0), kind)], ["words"])
    assert isinstance(pair, Pair)
    assert pair.image[8, [1, 8, 14]].tolist() == [[0] * 3, [100] * 3, [255] * 3]


def test_a_picture_without_a_known_range_is_skipped_by_its_mode(monkeypatch: pytest.MonkeyPatch):
    pictures = [encoded(Image.new(mode, (9, 7), 3), "TIFF") for mode in ("I", "F", "L")]
    *items, pair = pairs_of(monkeypatch, pictures, ["words"] * 3)
    assert [item.reason for item in items if isinstance(item, Skipped)] == [
        f"image of mode {mode}, whose range of values is not known" for mode in "IF"
    ]
    assert isinstance(pair, Pair)


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
    for caption in (3, [3], {"a": 1}, b"bytes"):  # a list of texts gives one pair each
        told = refusal(lambda caption=caption: pairs_of(monkeypatch, [good], [caption]))  # type: ignore[misc]
        assert "corpus.pairs.caption_column" in told
