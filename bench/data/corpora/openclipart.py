"""Open Clip Art drawings with titles, descriptions and keywords (openclipart-svg, public domain).

A drawing's metadata give its caption: title; description; keywords. A title or description that more than
`MOST_SHARED` drawings have is the name of a collection and is left out; where the title is, the words of the
file's name stand in for it. Keywords that only name a shelf of the archive are left out too. A title,
description or keyword is English, and kept, if at least half of its words are in Debian's list of American
English words. A drawing without any such text is skipped. Variants of a drawing, whose file names differ in
digits only, share a split.
"""

import io
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING

from bench.config.bounds import ShareBelowOne, Text
from bench.data.corpora.base import Pair, PairCorpus, PairCorpusOptions, Skipped
from bench.data.debian import fetch, version_of

KEY = "corpus.pairs"
DRAWINGS, WORD_LIST = "openclipart-svg", "wamerican"
LIST = "usr/share/dict/american-english"
MOST_SHARED = 5
# Keywords that tell where a drawing lies, not what it shows.
_SHELVES = """
action application apps clipart computer device filesystem hash icon icons lemon_theme_icon mimetypes shape
sign signs_and_symbols symbol theme unsorted
"""
SHELVES = frozenset(_SHELVES.split())
BY = re.compile(r"^clip ?art by .*? - ", re.IGNORECASE)  # before the title
SCALE = 4  # drawings are rendered larger by this factor, then averaged


@dataclass(frozen=True)
class OpenclipartOptions(PairCorpusOptions):
    """Size of the drawings, how many are kept for tests, and which are left out."""

    test_share: ShareBelowOne = MISSING  # of the groups
    exclude: list[Text] = field(default_factory=lambda: MISSING)  # globs of files, from the archive's folder


@dataclass(frozen=True)
class Metadata:
    """What a drawing says about itself."""

    title: str
    description: str
    keywords: tuple[str, ...]


class Openclipart(PairCorpus):
    """One pair per drawing that can be rendered and has an English caption."""

    Options = OpenclipartOptions
    options: OpenclipartOptions

    def __init__(self, options: OpenclipartOptions) -> None:
        super().__init__(options)
        self.test_share = options.test_share

    def fingerprint(self) -> dict[str, Any]:
        """Return versions of drawings, word list and renderer, and options."""
        from importlib.metadata import version

        versions = {name: version_of(name, self.data_dir, KEY) for name in (DRAWINGS, WORD_LIST)}
        own = asdict(self.options)
        return versions | own | {"resvg-py": version("resvg-py")}

    def provenance(self) -> dict[str, str]:
        """Return the packages with their versions, and the licence."""
        drawings, words = (fetch(name, self.data_dir, KEY) for name in (DRAWINGS, WORD_LIST))
        source = f"Debian packages: {DRAWINGS} {drawings.version}, {WORD_LIST} {words.version} (filter)"
        return {"source": source, "licence": "public domain (Creative Commons Public Domain Dedication)"}

    def pairs(self) -> Iterator[Pair | Skipped]:
        """Yield the drawings in the order of the package."""
        english = self._english()
        found = [(path, metadata_of(data)) for path, data in self._files()]
        titles = Counter(item.title for _, item in found)
        descriptions = Counter(item.description for _, item in found)
        named = {
            path: caption_of(
                path,
                item,
                english,
                has_title=titles[item.title] <= MOST_SHARED,
                has_description=descriptions[item.description] <= MOST_SHARED,
            )
            for path, item in found
        }
        seen: set[bytes] = set()
        for path, data in self._files():
            if not named[path]:
                yield Skipped("drawing without an English caption", path)
                continue
            image = rendered(data, self.image_size)
            if image is None:
                yield Skipped("drawing that is empty or cannot be rendered", path)
            elif image.tobytes() in seen:
                yield Skipped("drawing that looks like another at this size", path)
            else:
                seen.add(image.tobytes())
                folder = path.partition("/")[0].replace("_", " ")
                yield Pair(image, named[path], group=variant_group(path), labels={"folder": folder})

    def _files(self) -> Iterator[tuple[str, bytes]]:
        """Yield (path from the archive's folder, SVG) of the drawings that are not left out."""
        root = "usr/share/openclipart/svg/"

        def is_wanted(name: str) -> bool:
            path = name.removeprefix(root)
            return name.endswith(".svg") and not any(fnmatchcase(path, glob) for glob in self.options.exclude)

        for name, data in fetch(DRAWINGS, self.data_dir, KEY).files(is_wanted):
            yield name.removeprefix(root), data

    def _english(self) -> frozenset[str]:
        ((_, data),) = fetch(WORD_LIST, self.data_dir, KEY).files(LIST.__eq__)
        return frozenset(data.decode().lower().split())


def metadata_of(svg: bytes) -> Metadata:
    """Return the Dublin Core metadata of a drawing; all empty where there are none."""
    try:
        work = ET.fromstring(svg).find(".//{*}Work")  # noqa: S314 - a file of the Debian archive
    except ET.ParseError:
        work = None
    if work is None:
        return Metadata("", "", ())
    title, description = (_line(work.findtext(f"{{*}}{name}")) for name in ("title", "description"))
    keywords = (_line(item.text) for item in work.findall("{*}subject//{*}li"))
    return Metadata(
        BY.sub("", title), description, tuple(dict.fromkeys(keyword for keyword in keywords if keyword))
    )


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def caption_of(
    path: str, item: Metadata, english: frozenset[str], *, has_title: bool, has_description: bool
) -> str:
    """Return the caption of a drawing; empty if none of its texts is English.

    >>> words = frozenset("a black cat feline mammal".split())
    >>> item = Metadata("Gatto nero", "A black cat", ("mammal", "felino"))
    >>> caption_of("animals/cat.svg", item, words, has_title=True, has_description=True)
    'A black cat; mammal'
    """
    title = (
        item.title if has_title else re.sub(r"[\W\d_]+", " ", path.rpartition("/")[2].removesuffix(".svg"))
    )
    texts = [title.strip().replace("_", " "), item.description if has_description else ""]
    keywords = [keyword.replace("_", " ") for keyword in item.keywords if keyword.lower() not in SHELVES]
    kept = [text for text in dict.fromkeys(texts) if is_english(text, english)]
    said = set(" ".join(kept).lower().split())
    kept.append(", ".join(k for k in keywords if is_english(k, english) and k.lower() not in said))
    return "; ".join(text for text in kept if text)


def is_english(text: str, english: frozenset[str]) -> bool:
    """Return whether at least half of the words of three letters or more are in the word list.

    >>> is_english("tigre 02", frozenset(["tiger"])), is_english("a Tiger 02", frozenset(["tiger"]))
    (False, True)
    """
    words = re.findall(r"[^\W\d_]{3,}", text.lower())
    return bool(words) and 2 * sum(word in english for word in words) >= len(words)


def variant_group(path: str) -> str:
    """Return the name by which variants are kept in one split: the path without digits and separators.

    >>> variant_group("animals/tigre02_anna_01.svg") == variant_group("animals/tigre_anna.svg")
    True
    """
    return re.sub(r"[\d_-]+", " ", path.removesuffix(".svg")).strip()


def rendered(svg: bytes, size: int) -> NDArray[np.uint8] | None:
    """Render a drawing in the middle of a white square, (size, size, 3).

    Returns:
        None if it cannot be rendered or is of one colour. Text is drawn without the machine's fonts, that is,
        not at all, because every machine has others.
    """
    import resvg_py
    from PIL import Image, ImageOps

    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg.decode("utf-8", "replace"),
            width=SCALE * size,
            dpi=96,  # without it, drawings that are measured in points or millimetres have no size
            background="white",
            skip_system_fonts=True,
        )
        picture = Image.open(io.BytesIO(png)).convert("RGB")
    except (ValueError, OSError):
        return None
    square = ImageOps.pad(picture, (size, size), method=Image.Resampling.BOX, color="white")
    image = np.asarray(square, np.uint8)
    return None if (image == image[0, 0]).all() else image
