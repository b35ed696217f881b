"""What both corpora of Hugging Face `datasets` share: opening one, by hub name or from local files."""

import glob
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from bench.errors import ConfigError, DataError

Row = dict[str, Any]
PICKLED = ("pandas",)  # readers of `datasets` that unpickle, in some versions


@dataclass(frozen=True)
class HfOptions:
    """Which data set, and what must not straddle a split."""

    name: str = MISSING  # on the hub, or the reader of `data_files`: parquet, json, csv
    config: str | None = MISSING
    revision: str | None = MISSING
    data_files: list[str] | None = field(default_factory=lambda: MISSING)
    split: str = MISSING
    streaming: bool = MISSING
    group_column: str | None = MISSING


def identify(options: HfOptions, key: str) -> dict[str, Any]:
    """A fingerprint: the data set, and path, size and time of change of local files."""
    files = [
        (Path(name).name, Path(name).stat().st_size, Path(name).stat().st_mtime_ns)
        for name in local_files(options, key)
    ]
    digest = sha256(repr(files).encode()).hexdigest() if files else None
    described = {"name": options.name, "config": options.config, "revision": options.revision}
    remote = [name for name in options.data_files or [] if "://" in name]
    return described | {
        "split": options.split,
        "group": options.group_column,
        "files": digest,
        "remote": remote,
    }


def describe(options: HfOptions) -> dict[str, str]:
    """Provenance."""
    from datasets import __version__

    files = [name if "://" in name else Path(name).name for name in options.data_files or []]
    parts = [options.name, options.config, options.revision, *files]
    source = " ".join(str(part) for part in parts if part)
    return {"source": f"{source}, split {options.split}, datasets {__version__}", "licence": "see its card"}


def local_files(options: HfOptions, key: str) -> list[str]:
    """The files that `data_files` means, sorted; addresses are left out."""
    found: list[str] = []
    for pattern in options.data_files or []:
        if "://" not in pattern:
            full = str(Path(pattern).expanduser())
            matches = sorted(glob.glob(full, recursive=True))  # noqa: PTH207 -- absolute patterns
            if not matches:
                raise DataError(f"{key}.data_files: nothing matches {pattern}; correct the path")
            found += matches
    return found


def open_rows(options: HfOptions, key: str) -> Any:
    """The data set, an iterable of rows.

    Raises:
        ConfigError: a reader that may run code.
        DataError: it cannot be found, reached or read; names the config key.
    """
    import datasets

    if options.name in PICKLED:
        raise ConfigError(f"{key}.name={options.name!r} reads pickles, which may hold code; use parquet")
    if options.name == "json":
        for name in local_files(options, key):
            _check_json(Path(name), key)
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it logs of a damaged file, it raises as well
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    remote = [name for name in options.data_files or [] if "://" in name]
    with refusals(options, key):
        return datasets.load_dataset(
            options.name,
            options.config,
            data_files=[*local_files(options, key), *remote] or None,
            revision=options.revision,
            split=options.split,
            streaming=options.streaming,
        )


def _check_json(path: Path, key: str) -> None:
    """Arrow crashes on a file whose first value is null, and finds no error in an empty one."""
    with path.open("rb") as file:
        start = next((line.strip() for line in file if line.strip()), b"")
    if not start or start.startswith(b"null"):
        what = "begins with null" if start else "is empty"
        raise DataError(f"{key}.data_files: {path} {what}; give JSON objects, one a line")


@contextmanager
def refusals(options: HfOptions, key: str) -> Iterator[None]:
    """Turn what `datasets` raises into a DataError of one line."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        problem = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise DataError(
            f"{key}.name={options.name!r} does not load ({problem}); correct {key}.name, .config, .split or "
            ".data_files, or log in with `hf auth login` where it is gated"
        ) from error


def read_rows(
    rows: Any, options: HfOptions, columns: dict[str, str | None], key: str
) -> Iterator[tuple[int, Row]]:
    """Numbered rows, after a check that the columns are there.

    Args:
        rows: what `open_rows` returned.
        options: of the data set.
        columns: option -> the column that it names, or None.
        key: config key of the corpus.
    """
    with refusals(options, key):  # a stream is read, and refused, only now
        for number, row in enumerate(rows):
            for option, column in columns.items():
                if column is not None and column not in row:
                    raise ConfigError(
                        f"{key}.{option}={column!r} is no column of row {number}; "
                        f"choose from {', '.join(row)}"
                    )
            yield number, row


def text_of(row: Row, column: str, number: int, *, key: str) -> str:
    """The text in a column, "" where it is null."""
    value = row[column]
    if not isinstance(value, str | None):
        raise ConfigError(
            f"{key}={column!r} holds {type(value).__name__} in row {number}; name a text column"
        )
    # Lone surrogates can come out of JSON escapes, and no UTF-8 text has them.
    return (value or "").encode("utf-8", "replace").decode("utf-8").strip()
