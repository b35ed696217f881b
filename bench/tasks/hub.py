"""Rows of benchmark data sets for tasks: from the Hugging Face hub, or from local files of the same schema.

Data are read from the folder that the option `path` names; else from the folder of the data set in
`$BENCH_DATA`, if it is there; else from the hub. A folder holds one file per split: `train.parquet`, or
`.jsonl`, `.json` or `.csv`. In `$BENCH_DATA` the data set `nyu-mll/glue` with config `sst2` is `glue/sst2`.
"""

import os
from collections.abc import Iterator, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from bench.data.corpora.base import without_surrogates
from bench.data.corpora.hf import HfCorpus, HfOptions, Row, label_text
from bench.errors import ConfigError, DataError
from bench.tasks.options import HubClassificationOptions, HubOptions, SentenceSimilarityOptions

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
UNLABELLED = -1  # as a class number, by the hub's convention


class _Rows(HfCorpus):
    """The rows of one split; messages name the task's keys."""

    key = "task.*"


def bench_data(name: str, config: str | None = None) -> Path | None:
    """Return the place of a data set in `$BENCH_DATA`: its folder, or its JSON file; None if it has none."""
    root = os.environ.get("BENCH_DATA")
    if not root:
        return None
    folder = Path(root).expanduser() / name.rpartition("/")[2]
    places = [folder] if config is None else [folder / config, folder / f"{config}.json"]
    return next((place for place in places if place.exists()), None)


def local_place(options: HubOptions) -> Path | None:
    """Return the folder, or the JSON file, that stands for the hub; None if the hub is to be read."""
    if options.path is not None:
        return Path(options.path).expanduser()
    return bench_data(options.name, options.config)


def open_split(options: HubOptions, split_option: str) -> Any:
    """Return the rows of a split, an iterable of mappings with `features`.

    Args:
        options: of the task.
        split_option: the option that names the split, such as `test_split`.

    Raises:
        ConfigError: a package is missing, or the local folder has no file of the split.
        DataError: the data set cannot be reached or read, or the split is empty; names the task's keys.
    """
    split = str(getattr(options, split_option))
    place = local_place(options)
    if place is None:
        rows = read_rows(options.name, config=options.config, revision=options.revision, split=split)
    else:
        file = _file_of(place, split, split_option)
        rows = read_rows(READERS[file.suffix], files=[file])
    if not len(rows):
        raise DataError(f"task.*.{split_option}={split}: the split is empty; choose another one")
    return rows


def read_rows(
    name: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    files: Sequence[Path] | None = None,
    split: str = "train",
) -> Any:
    """Return the rows of a data set on the hub, or of local files by the reader `name`.

    Raises:
        ConfigError: the package `datasets` is missing.
        DataError: the data set cannot be reached or read; names the task's keys.
    """
    options = HfOptions(
        name=name,
        config=config,
        revision=revision,
        data_files=None if files is None else [escape(str(file)) for file in files],
        split=split,
        streaming=False,
        label_columns=[],
        group_column=None,
    )
    return _Rows(options).open_rows()


def _file_of(place: Path, split: str, split_option: str) -> Path:
    found = [place / f"{split}{suffix}" for suffix in READERS if (place / f"{split}{suffix}").is_file()]
    if not found:
        known = sorted(path.stem for path in place.glob("*") if path.suffix in READERS)
        has = f"it has {', '.join(known)}" if known else "it has no such files"
        raise ConfigError(
            f"task.*.{split_option}={split}: no {split}.parquet, .jsonl, .json or .csv in {place}; {has}"
        )
    return found[0]


def require_columns(rows: Any, **columns: str | Sequence[str]) -> None:
    """Check that a data set has the columns.

    Args:
        rows: the data set that `read_rows` returned.
        columns: option -> the column, or the columns, that it names.

    Raises:
        ConfigError: a column is missing; names the option and the columns that there are.
    """
    for option, wanted in columns.items():
        for column in [wanted] if isinstance(wanted, str) else wanted:
            if column not in rows.column_names:
                known = ", ".join(rows.column_names)
                raise ConfigError(f"task.*.{option}: there is no column {column!r}; choose from {known}")


def label_names_of(rows: Any, column: str, given: Sequence[str] | None) -> list[str] | None:
    """Return the names of class numbers: the given ones, or those of the data set; None if it has none."""
    if given is not None:
        return list(given)
    feature = rows.features[column]
    return getattr(getattr(feature, "feature", feature), "names", None)


def label_of(value: Any, names: Sequence[str] | None, column: str, number: int) -> str | None:
    """Return a label as text; None where a row has none.

    Args:
        value: of the row: a class number, or text.
        names: of the class numbers; None if the values are labels themselves.
        column: its name, for messages.
        number: of the row.

    Raises:
        DataError: the value is no class number.
    """
    if value is None or value == UNLABELLED:
        return None
    if names is None or value in names:
        return label_text(value)
    text = label_text(value)
    if text is None or not text.isdigit() or int(text) >= len(names):
        raise DataError(
            f"row {number} of the data set has {column}={value!r}, which is no class of "
            f"{', '.join(names)}; correct task.*.label_names or the data"
        )
    return names[int(text)]


def open_labelled_texts(
    options: HubClassificationOptions | SentenceSimilarityOptions, split_option: str
) -> Any:
    """Return `open_split` after a check that the rows have the text columns and the label column."""
    rows = open_split(options, split_option)
    columns = {f"text_columns[{i}]": name for i, name in enumerate(options.text_columns)}
    require_columns(rows, label_column=options.label_column, **columns)
    return rows


def texts_in(rows: Any, column: str) -> Iterator[str]:
    """Yield each row's text in a column, "" where the row has none."""
    for number, value in enumerate(rows[column]):
        if value is not None and not isinstance(value, str):
            raise ConfigError(
                f"column {column!r} holds {type(value).__name__} in row {number}; name a column of texts"
            )
        yield without_surrogates((value or "").strip())


def row_texts(row: Row) -> dict[str, str]:
    """Return those columns of a row that hold text."""
    return {name: value for name, value in row.items() if isinstance(value, str)}
