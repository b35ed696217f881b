"""Images with captions of a Hugging Face data set, from the hub or from local parquet or JSON files."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING

from bench.corpora.base import Pair, PairCorpus
from bench.corpora.hf import HfOptions, describe, identify, open_rows, read_rows, text_of
from bench.errors import ConfigError, DataError

KEY = "corpus.pairs"


@dataclass(frozen=True)
class HfImageTextOptions(HfOptions):
    """Which data set, which of its columns, and the size of the pictures."""

    image_column: str = MISSING
    caption_column: str = MISSING
    image_size: int = MISSING

    def __post_init__(self) -> None:
        if not 8 <= self.image_size <= 512:
            raise ConfigError(f"{KEY}.image_size={self.image_size} must lie in 8..512")


class HfImageText(PairCorpus):
    """One pair per row; rows without a caption are skipped. Captions of one image share a group."""

    Options = HfImageTextOptions

    def __init__(self, options: HfImageTextOptions) -> None:
        self.options = options
        self.image_size = options.image_size

    def fingerprint(self) -> dict[str, Any]:
        """The data set's identity, the columns and the size."""
        columns = {"image": self.options.image_column, "caption": self.options.caption_column}
        return identify(self.options, KEY) | columns | {"image_size": self.image_size}

    def provenance(self) -> dict[str, str]:
        """Name and revision."""
        return describe(self.options)

    def pairs(self) -> Iterator[Pair]:
        """All rows in their order."""
        image, caption, by = self.options.image_column, self.options.caption_column, self.options.group_column
        columns = {"image_column": image, "caption_column": caption, "group_column": by}
        rows = undecoded(open_rows(self.options, KEY), image)
        for number, row in read_rows(rows, self.options, columns, KEY):
            text = text_of(row, caption, number, key=f"{KEY}.caption_column")
            if text:
                try:
                    pixels = square(row[image], size=self.image_size)
                except (OSError, ValueError, TypeError) as error:
                    raise DataError(
                        f"{KEY}.image_column: the image of row {number} ({text[:40]!r}) does not decode "
                        f"({type(error).__name__}); remove or replace that row"
                    ) from error
                group = sha256(pixels.tobytes()).hexdigest() if by is None else str(row[by])
                yield Pair(image=pixels, caption=text, group=group)


def undecoded(rows: Any, column: str) -> Any:
    """`rows` with images as bytes, so that one that does not decode can be told by its row."""
    import datasets

    feature = (rows.features or {}).get(column)
    return (
        rows.cast_column(column, datasets.Image(decode=False))
        if isinstance(feature, datasets.Image)
        else rows
    )


def square(value: Any, *, size: int) -> NDArray[np.uint8]:
    """The middle of an image, on white, scaled to (size, size, 3).

    Args:
        value: encoded bytes, a path, or the mapping of both that `datasets` stores.
        size: pixels a side.
    """
    from PIL import Image, ImageOps

    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if not isinstance(value, bytes | str):
        raise TypeError(f"{type(value).__name__} is no image")
    source = io.BytesIO(value) if isinstance(value, bytes) else Path(value).expanduser()
    with Image.open(source) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image).convert("RGB")
    return np.asarray(ImageOps.fit(flat, (size, size)), np.uint8)
