"""Arrays beside an evaluation record: the outcomes by item that scores are made of. File -> numpy arrays."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import DataError
from bench.evaluations import EvaluationRecord, TaskResult, items_path

Items = Mapping[str, NDArray[Any]]


def read_items(path: Path, task: str) -> Items:
    """The arrays of one task by name; none where the file is absent or has none of the task.

    Raises:
        DataError: damaged, or not plain arrays; names the file.
    """
    prefix = f"{task}/"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
        for name, array in found.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":  # bytes: no array's file
                raise ValueError(f"{prefix}{name} holds no numbers")
        return found
    except FileNotFoundError:
        return {}
    except Exception as error:  # zipfile and the parser of headers have a dozen kinds for damaged bytes
        why = " ".join(str(error).split())
        raise DataError(
            f"{path}: not readable arrays ({why}); delete it and the record {path.stem}.json beside it, "
            "then run `bench evaluate` again"
        ) from error


def paths_of(
    folder: Path, evaluations: Iterable[EvaluationRecord], results: Mapping[str, TaskResult]
) -> dict[str, Path]:
    """Where the arrays of each of a run's results lie: beside the evaluation that the result came from."""
    found: dict[str, Path] = {}
    for evaluation in evaluations:
        path = items_path(folder, evaluation)
        found |= {own.task: path for own in evaluation.results if results.get(own.task) is own}
    return found
