"""Images with captions of a Hugging Face data set, from the hub or from local parquet or JSON files."""

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING
from PIL import Image, ImageOps

from bench.config.bounds import Text
from bench.data.corpora.base import Pair, PairCorpus, PairCorpusOptions, Skipped
from bench.data.corpora.hf import HfCorpus, HfOptions, Row, class_names, labels_of

NO_CAPTION = "row without a caption"
UNDECODED = "image that does not decode"


@dataclass(frozen=True)
class HfImageTextOptions(PairCorpusOptions, HfOptions):
    """Which data set and which of its columns are read, and the size of the images."""

    image_column: Text = MISSING
    caption_column: Text = MISSING


class UnknownRangeError(ValueError):
    """A picture whose mode does not say which values are black and white."""


class HfImageText(HfCorpus, PairCorpus):
    """One pair per caption of each row whose image decodes. Captions of one image share a group."""

    Options = HfImageTextOptions
    options: HfImageTextOptions
    key = "corpus.pairs"

    def fingerprint(self) -> dict[str, Any]:
        """Return the data set's identity, the columns and the image size."""
        columns = {"image": self.options.image_column, "caption": self.options.caption_column}
        labels = {"labels": list(self.options.label_columns)} if self.options.label_columns else {}
        return super().fingerprint() | columns | labels | {"image_size": self.image_size}

    def pairs(self) -> Iterator[Pair | Skipped]:
        """Yield the rows in their order."""
        image, caption = self.options.image_column, self.options.caption_column
        rows = undecoded(self.open_rows(), image)
        names = class_names(rows, self.options.label_columns)
        for number, row in self.numbered_rows(rows, image_column=image, caption_column=caption):
            texts = self._captions(row, number)
            if not texts:
                yield Skipped(NO_CAPTION, f"row {number}")
                continue
            try:
                pixels = square(row[image], size=self.image_size)
            except UnknownRangeError as error:
                yield Skipped(str(error), f"row {number}")
                continue
            except Exception:  # PIL's decoders raise a dozen kinds of errors for damaged bytes
                yield Skipped(UNDECODED, f"row {number}")
                continue
            group = self.group_of(row, pixels.tobytes())
            for text in texts:
                yield Pair(image=pixels, caption=text, group=group, labels=labels_of(row, names))

    def _captions(self, row: Row, number: int) -> list[str]:
        """Return the captions of a row: its text, or each text of a list; empty ones are left out."""
        value = row[self.options.caption_column]
        values = value if isinstance(value, list) else [value]
        return [text for item in values if (text := self.checked_text(item, "caption_column", number))]


def undecoded(rows: Any, column: str) -> Any:
    """Return `rows` with images as bytes, so that an image that does not decode can be named by its row."""
    import datasets

    feature = (rows.features or {}).get(column)
    is_decoded = isinstance(feature, datasets.Image)
    return rows.cast_column(column, datasets.Image(decode=False)) if is_decoded else rows


def square(value: Any, *, size: int) -> NDArray[np.uint8]:
    """Cut out the middle of an image, on white, and scale it to (size, size, 3).

    Args:
        value: encoded bytes, a path, or the mapping of both that `datasets` stores.
        size: pixels per side.

    Raises:
        UnknownRangeError: the pixels are 32-bit integers or floats.
        Exception: this is not an image, or it is damaged, or it has more pixels than PIL allows.
    """
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if not isinstance(value, bytes | str):
        raise TypeError(f"{type(value).__name__} is not an image")
    source = io.BytesIO(value) if isinstance(value, bytes) else Path(value).expanduser()
    if isinstance(source, Path) and not source.is_file():
        raise ValueError(f"{source} is not a file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged metadata, which photographs often have
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(source) as opened:
            if opened.format == "EPS":
                raise ValueError("an EPS picture is a program")
            image = _eight_bits(ImageOps.exif_transpose(opened)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image).convert("RGB")
    return np.asarray(ImageOps.fit(flat, (size, size)), np.uint8)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits by its range, where PIL would clip it to white; other modes have 8 bits."""
    if image.mode in ("I", "F"):
        raise UnknownRangeError(f"image of mode {image.mode}, whose range of values is not known")
    if not image.mode.startswith("I;16"):
        return image
    grey = np.asarray(image).astype(np.float64) / 257  # 65535 / 255
    return Image.fromarray(grey.round().astype(np.uint8))
