"""What both corpora of Hugging Face `datasets` share: opening one, by hub name or from local files."""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from bench.errors import ConfigError, DataError

Row = dict[str, Any]


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
        DataError: it cannot be found, reached or read; names the config key.
    """
    import datasets

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


@contextmanager
def refusals(options: HfOptions, key: str) -> Iterator[None]:
    """Turn what `datasets` raises into a DataError of one line."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ValueError, DatasetsError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
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
