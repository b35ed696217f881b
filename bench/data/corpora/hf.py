"""Base of the corpora from Hugging Face `datasets`: open a data set by hub name or from local files."""

import glob
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING

from bench.config.bounds import Checked, Names, Text
from bench.config.installation import check_installed
from bench.data.corpora.base import Corpus, without_surrogates
from bench.errors import ConfigError, DataError

Row = dict[str, Any]
PICKLED = ("pandas",)  # readers of `datasets` that unpickle, in some versions


@dataclass(frozen=True)
class HfOptions(Checked):
    """Which data set is read, its labels, and what is kept within one split."""

    name: Text = MISSING  # on the hub, or the reader of `data_files`: parquet, json, csv
    config: Text | None = MISSING
    revision: Text | None = MISSING
    data_files: Names | None = field(default_factory=lambda: MISSING)
    split: Text = MISSING
    streaming: bool = MISSING
    label_columns: list[Text] = field(default_factory=lambda: MISSING)
    group_column: Text | None = MISSING


class HfCorpus(Corpus):
    """A corpus whose items are rows of a data set. Subclasses implement `documents` or `pairs`."""

    key: ClassVar[str]  # of the corpus in the config
    options: HfOptions

    def __init__(self, options: HfOptions) -> None:
        check_installed("datasets", f"{self.key}.name={options.name!r}")
        super().__init__(options)

    def fingerprint(self) -> dict[str, Any]:
        """Return the data set's name, and path, size and modification time of local files."""
        stats = [(Path(name).name, Path(name).stat()) for name in self._local_files()]
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        return {
            "name": self.options.name,
            "config": self.options.config,
            "revision": self.options.revision,
            "split": self.options.split,
            "group": self.options.group_column,
            "files": sha256(repr(files).encode()).hexdigest() if files else None,
            "remote": self._remote_files(),
        }

    def how_to_add_groups(self, key: str) -> str:
        """Return the option that gives more groups, if it is set."""
        column = self.options.group_column
        return "add rows" if column is None else f"add rows, or set {key}.group_column=null"

    def provenance(self) -> dict[str, str]:
        """Return name, commit of the hub, files and split of the data set."""
        from datasets import __version__

        options = self.options
        files = [name if "://" in name else Path(name).name for name in options.data_files or []]
        parts = [options.name, options.config, self.commit, *files]
        source = " ".join(str(part) for part in parts if part)
        return {
            "source": f"{source}, split {options.split}, datasets {__version__}",
            "licence": "see its card",
        }

    @cached_property
    def commit(self) -> str | None:
        """The commit of the hub repository that is read; `revision` if the hub cannot be asked."""
        options = self.options
        if options.data_files or Path(options.name).exists():
            return options.revision
        from huggingface_hub import HfApi

        try:
            return HfApi().dataset_info(options.name, revision=options.revision, timeout=10).sha
        except Exception:  # offline, gated or unknown: reading the data set, or its local copy, says which
            return options.revision

    def open_rows(self) -> Any:
        """Return the data set, an iterable of rows.

        Raises:
            ConfigError: the reader may run code.
            DataError: the data set cannot be found, reached or read; names the config key.
        """
        import datasets

        name = self.options.name
        if name in PICKLED:
            raise ConfigError(f"{self.key}.name={name!r} reads pickles, which may hold code; use parquet")
        local = self._local_files()
        if name == "json":
            for path in local:
                _check_json(Path(path), self.key)
        datasets.logging.set_verbosity(logging.CRITICAL)  # `datasets` also raises what it logs
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        with self._refusals():
            as_text = _strings(local) if name == "csv" else {}
            return datasets.load_dataset(
                name,
                self.options.config,
                data_files=[*local, *self._remote_files()] or None,
                revision=self.commit,
                split=self.options.split,
                streaming=self.options.streaming,
                **as_text,
            )

    def numbered_rows(self, rows: Any, **columns: str | None) -> Iterator[tuple[int, Row]]:
        """Yield numbered rows, after a check that each has the columns.

        Args:
            rows: the data set that `open_rows` returned.
            columns: option -> the column that it names. Labels and groups are always checked.
        """
        columns |= {"group_column": self.options.group_column}
        columns |= {f"label_columns[{i}]": column for i, column in enumerate(self.options.label_columns)}
        with self._refusals():  # a stream is read, and refused, only now
            for number, row in enumerate(rows):
                for option, column in columns.items():
                    if column is not None and column not in row:
                        raise ConfigError(
                            f"{self.key}.{option}={column!r} is not a column of row {number}; "
                            f"choose from {', '.join(row)}"
                        )
                yield number, row

    def text_of(self, row: Row, option: str, number: int) -> str:
        """Return the text in the column that an option names, "" where it is null."""
        return self.checked_text(row[getattr(self.options, option)], option, number)

    def checked_text(self, value: Any, option: str, number: int) -> str:
        """Return a value of the column that an option names as text, "" for null."""
        if not isinstance(value, str | None):
            raise ConfigError(
                f"{self.key}.{option}={getattr(self.options, option)!r} holds {type(value).__name__} in row "
                f"{number}; name a text column"
            )
        return without_surrogates(value or "").strip()

    def group_of(self, row: Row, content: bytes) -> str:
        """Return the group of a row; each distinct content is a group where the column is null or not set."""
        column = self.options.group_column
        group = None if column is None else label_text(row[column])
        return sha256(content).hexdigest() if group is None else group

    def _remote_files(self) -> list[str]:
        return [name for name in self.options.data_files or [] if "://" in name]

    def _local_files(self) -> list[str]:
        """Return the local files that match `data_files`, sorted by pattern and name."""
        found: list[str] = []
        for pattern in self.options.data_files or []:
            if "://" not in pattern:
                full = str(Path(pattern).expanduser())
                matches = sorted(glob.glob(full, recursive=True))  # noqa: PTH207 -- absolute patterns
                if not matches:
                    raise DataError(f"{self.key}.data_files: nothing matches {pattern}; correct the path")
                found += matches
        return found

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn an error of `datasets` into a DataError of one line."""
        from datasets.exceptions import DatasetsError

        try:
            yield
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
            problem = (str(cause).splitlines() or [type(cause).__name__])[0]
            key = self.key
            advice = (
                f"correct {key}.name, .config, .split or .data_files, or log in with `hf auth login` if it "
            )
            advice += "is gated"
            if isinstance(error, ConnectionError):
                advice = f"check the network, or give local files as {key}.data_files"
            raise DataError(
                f"{key}.name={self.options.name!r} does not load ({problem}); {advice}"
            ) from error


def _strings(local: list[str]) -> dict[str, Any]:
    """Return how CSV files are read as they are written: "NA" and "null" are words, and "1" is not 1.0."""
    import datasets
    import pandas

    as_written: dict[str, Any] = {"keep_default_na": False}
    if local:
        columns = pandas.read_csv(local[0], nrows=0).columns
        as_written["features"] = datasets.Features({name: datasets.Value("string") for name in columns})
    return as_written


def class_names(rows: Any, columns: list[str]) -> dict[str, list[str] | None]:
    """Return the label columns, with the names of their class numbers where the data set has them."""
    features = rows.features or {}
    return {column: getattr(features.get(column), "names", None) for column in columns}


def labels_of(row: Row, names: dict[str, list[str] | None]) -> dict[str, str]:
    """Return the labels of a row; a column that is null, or -1 as a class number, gives none."""
    found = {}
    for column, classes in names.items():
        value = row[column]
        if classes and value == -1:  # unlabelled, by the Hub's convention
            continue
        text = classes[value] if classes and value is not None else label_text(value)
        if text is not None:
            found[column] = text
    return found


def label_text(value: Any) -> str | None:
    """Return a label or group as text, None for null, NaN and empty text.

    Whole numbers beside nulls are often stored as floats, so 1.0 is the label 1.
    """
    if value is None or value == "" or value != value:
        return None
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _check_json(path: Path, key: str) -> None:
    """Refuse a file whose first value is null, on which Arrow crashes, and an empty one, which it accepts."""
    with path.open("rb") as file:
        start = next((line.strip() for line in file if line.strip()), b"")
    if not start or start.startswith(b"null"):
        what = "begins with null" if start else "is empty"
        raise DataError(f"{key}.data_files: {path} {what}; give one JSON object per line")
