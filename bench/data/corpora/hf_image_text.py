"""Images with captions of a Hugging Face data set, from the hub or from local parquet or JSON files."""

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING
from PIL import Image, ImageOps

from bench.data.corpora.base import Pair, PairCorpus, Skipped
from bench.data.corpora.hf import HfOptions, Row, describe, identify, open_rows, read_rows, text_of
from bench.errors import ConfigError

KEY = "corpus.pairs"
NO_CAPTION = "row without a caption"
UNDECODED = "image that does not decode"


@dataclass(frozen=True)
class HfImageTextOptions(HfOptions):
    """Which data set, which of its columns, and the size of the pictures."""

    image_column: str = MISSING
    caption_column: str = MISSING
    label_columns: list[str] = field(default_factory=lambda: MISSING)
    image_size: int = MISSING

    def __post_init__(self) -> None:
        if not 8 <= self.image_size <= 512:
            raise ConfigError(f"{KEY}.image_size={self.image_size} must lie in 8..512")


class HfImageText(PairCorpus):
    """One pair per row that has a caption and an image that decodes. Captions of one image share a group."""

    Options = HfImageTextOptions

    def __init__(self, options: HfImageTextOptions) -> None:
        self.options = options
        self.image_size = options.image_size

    def fingerprint(self) -> dict[str, Any]:
        """The data set's identity, the columns and the size."""
        columns = {"image": self.options.image_column, "caption": self.options.caption_column}
        labels = {"labels": list(self.options.label_columns)} if self.options.label_columns else {}
        return identify(self.options, KEY) | columns | labels | {"image_size": self.image_size}

    def provenance(self) -> dict[str, str]:
        """Name and revision."""
        return describe(self.options)

    def pairs(self) -> Iterator[Pair | Skipped]:
        """All rows in their order."""
        image, caption, by = self.options.image_column, self.options.caption_column, self.options.group_column
        columns = {"image_column": image, "caption_column": caption, "group_column": by}
        columns |= {f"label_columns[{i}]": column for i, column in enumerate(self.options.label_columns)}
        rows = undecoded(open_rows(self.options, KEY), image)
        names = class_names(rows, self.options.label_columns)
        for number, row in read_rows(rows, self.options, columns, KEY):
            text = text_of(row, caption, number, key=f"{KEY}.caption_column")
            if not text:
                yield Skipped(NO_CAPTION, f"row {number}")
                continue
            try:
                pixels = square(row[image], size=self.image_size)
            except Exception:  # PIL's decoders have a dozen kinds for damaged bytes
                yield Skipped(UNDECODED, f"row {number}")
                continue
            group = sha256(pixels.tobytes()).hexdigest() if by is None else str(row[by])
            yield Pair(image=pixels, caption=text, group=group, labels=labels_of(row, names))


def class_names(rows: Any, columns: list[str]) -> dict[str, list[str] | None]:
    """Label columns, with the names that numbers stand for where the data set has them."""
    features = rows.features or {}
    return {column: getattr(features.get(column), "names", None) for column in columns}


def labels_of(row: Row, names: dict[str, list[str] | None]) -> dict[str, str]:
    """The labels of a row; a column that is null there, or -1 as a class number, gives none."""
    found = {}
    for column, classes in names.items():
        value = row[column]
        if value is None or (classes and value == -1):  # -1: unlabelled, by the Hub's convention
            continue
        found[column] = classes[value] if classes else str(value)
    return found


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

    Raises:
        Exception: no image, damaged, or of more pixels than PIL holds to be meant.
    """
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if not isinstance(value, bytes | str):
        raise TypeError(f"{type(value).__name__} is no image")
    source = io.BytesIO(value) if isinstance(value, bytes) else Path(value).expanduser()
    if isinstance(source, Path) and not source.is_file():
        raise ValueError(f"{source} is no file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged metadata, as photographs have it
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(source) as opened:
            if opened.format == "EPS":
                raise ValueError("an EPS picture is a program")
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image).convert("RGB")
    return np.asarray(ImageOps.fit(flat, (size, size)), np.uint8)
