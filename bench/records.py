"""Run, evaluation and audit records: all that training hands to analysis. Light to import.

Each record is one JSON file, written once and atomically, after everything else has succeeded or failed. A
failure is a status with a reason, never a number. Records come from other machines and other people, so each
is checked by pydantic against its dataclass when it is read; whatever does not fit is named and left out.
Records of schema version 2 are upgraded while they are read, and their files stay as they are.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails, from_json, to_json
from typing_extensions import TypedDict

from bench.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

R = TypeVar("R")
SCHEMA_VERSION = 3
STUDY_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)  # a study's name is the name of its folder
JOULES_PER_KWH = 3.6e6
LARGEST = 2**63 - 1  # the largest 64-bit integer; no table holds a larger one
PRETRAINING_ONLY = ("budget", "optim", "validation")  # parts of a config that scratch does not have
CHOICE = "choice"  # key of a strategy's or corpus' YAML stem among its settings
Status = Literal["finished", "diverged", "failed"]
TaskStatus = Literal["finished", "inapplicable", "failed"]

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
checked = with_config(_STRICT)  # marks a dataclass that `read_json` holds to its annotations
_open = with_config(_STRICT | ConfigDict(extra="allow"))  # known keys are checked, others may follow


def _refuse_odd_time(text: str) -> str:
    if text:
        datetime.fromisoformat(text)
    return text


Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Time = Annotated[str, AfterValidator(_refuse_odd_time)]  # ISO 8601, "" where unknown


# What a record says of the settings and the data. Only what analysis reads is listed; more may be there.


@_open
class ModelSettings(TypedDict, total=False):
    """Sizes of the backbone, or the name of a Hugging Face checkpoint."""

    name: str | None
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    patch_size: int


@_open
class BudgetSettings(TypedDict, total=False):
    """Unique data and compute that a run was granted; see `bench.config.schema.Budget`."""

    unique_bytes: Count | None
    unique_pairs: Count | None
    tokens: Count | None
    predicted_tokens: Count | None
    flops: Amount | None
    repeat: bool


@_open
class OptimSettings(TypedDict, total=False):
    """Optimizer and schedule; see `bench.config.schema.Optim`."""

    name: str  # absent for AdamW
    lr_peak: float
    lr_width: int
    schedule: str
    warmup_share: float
    warmup_tokens: int | None
    cooldown_share: float
    final_lr_share: float
    weight_decay: float
    beta1: float
    beta2: float
    clip_norm: float
    tokens_per_step: int
    retries_on_divergence: int


@_open
class TokenizerSettings(TypedDict, total=False):
    """Size of the vocabulary and of the sample that the tokenizer was trained on."""

    vocab_size: int
    train_bytes: int


@_open
class Settings(TypedDict, total=False):
    """The part of a run's config that may change its weights; see `bench.config.identity`.

    `scratch` has none of `PRETRAINING_ONLY`.
    """

    seed: int
    strategy: dict[str, Any]  # "choice" and the options
    model: ModelSettings
    budget: BudgetSettings
    corpus: dict[str, dict[str, Any]]  # "choice" and the options, for "text" and for "pairs"
    tokenizer: TokenizerSettings
    sequence_length: int
    caption_length: int
    optim: OptimSettings
    precision: str
    validation: dict[str, int]


@_open
class Manifest(TypedDict, total=False):
    """A prepared corpus: the hash of its content, its sources, and the size of each split."""

    content_sha256: str
    provenance: dict[str, str]
    splits: dict[str, dict[str, Count]]


@checked
class Trunk(TypedDict):
    """The run whose first steps a run shares, and how many."""

    run_id: str
    steps: Count


@_open
class Data(TypedDict, total=False):
    """What a run read, and where it branched off."""

    text: Manifest
    pairs: Manifest
    tokenizer_sha256: str
    vocab_size: int
    trunk: Trunk
    checkpoint: dict[str, str]


# Run records


@checked
@dataclass(frozen=True)
class Energy:
    """Energy used, with its source and method; measured and estimated energy are never compared.

    `co2_kg` follows from the grid's mean intensity in `country` (ISO 3166-1 alpha-3).
    """

    joules: Amount
    source: Literal["measured", "estimated"]
    method: str
    co2_kg: Amount
    country: str

    @property
    def kwh(self) -> float:
        """The energy in kilowatt-hours."""
        return self.joules / JOULES_PER_KWH


@checked
@dataclass(frozen=True)
class Spent:
    """What a run used. Tokens count what the model processed, padding and image patches included.

    `predicted_tokens` counts the targets of the loss: all tokens but the first for a CLM, the mask rate of
    them for an MLM, one partner per image and one per caption for CLIP. `epochs` counts passes over the
    unique data. `flops` counts matrix products of forward and backward of pretraining only.
    """

    steps: Count = 0
    forward_tokens: Count = 0
    predicted_tokens: Count = 0
    flops: Amount = 0.0
    epochs: Amount = 0.0
    unique_bytes: Count = 0
    unique_tokens: Count = 0
    unique_pairs: Count = 0
    pretrain_s: Amount = 0.0
    peak_memory_bytes: Count = 0
    energy: Energy | None = None


@checked
@dataclass(frozen=True)
class CurvePoint:
    """One point of the pretraining curve; losses in nats per predicted token, None where not measured."""

    step: Count
    forward_tokens: Count
    flops: Amount
    train_loss_nats: float | None = None
    validation_loss_nats: float | None = None


@checked
@dataclass(frozen=True)
class Divergence:
    """An attempt that diverged: its last step with a finite loss, that loss, and its peak learning rate."""

    step: Count
    loss_nats: float | None  # None: the loss was never finite
    lr_peak: float


@checked
@dataclass(frozen=True)
class RunRecord:
    """One run: its axes, how it was pretrained, and what that cost.

    `budget` is None for a strategy that is not pretrained (`scratch`): it is compared with every budget.
    `variant` names any other swept setting ("optim.lr_peak=0.001"), "" if there is none.
    """

    run_id: str
    study: str
    status: Status
    strategy: str
    model: str
    budget: str | None
    variant: str
    seed: int
    corpus: dict[str, str]  # {"text": "docstrings", "pairs": "openmoji"}
    config: Settings
    reason: str | None = None  # why the run did not finish, in one line
    parameters: Count = 0
    spent: Spent = field(default_factory=Spent)
    curve: tuple[CurvePoint, ...] = ()
    data: Data = field(default_factory=lambda: Data())
    environment: dict[str, str] = field(default_factory=dict)  # versions, git commit, CPU
    started_at: Time = ""
    command: str = ""  # the command line that asked for the run
    divergences: tuple[Divergence, ...] = ()  # earlier attempts that diverged
    exploratory: bool = False  # a search chose the run by the results of others, so it decides no claim
    schema_version: int = SCHEMA_VERSION

    @property
    def retried(self) -> str:
        """Describe the attempts that diverged; "" if there were none."""
        tries = [f"at optim.lr_peak={d.lr_peak:g} after step {d.step}" for d in self.divergences]
        again = f", trained anew at {self.divergences[-1].lr_peak / 2:g}" if tries else ""
        return f"diverged {', '.join(tries)}{again}" if tries else ""


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write `<folder>/<run_id>.json` whole or not at all; a finished record is only replaced by another."""
    path = folder / f"{record.run_id}.json"
    if record.status != "finished" and _is_finished(path):
        return path
    return _write(record, path)


def _is_finished(path: Path) -> bool:
    try:
        return path.exists() and read_record(path).status == "finished"
    except DataError:
        return False


def read_record(path: Path) -> RunRecord:
    """Read one run record.

    Raises:
        DataError: The file is damaged, foreign or of an unknown schema version.
    """
    record = _read(path, RunRecord, "a run record", check=_check_run)
    return _named(path, record.run_id, record)


def read_records(folder: Path) -> tuple[list[RunRecord], list[DataError]]:
    """Return the readable records of a study, sorted by run id, and one error for each unreadable file."""
    return _read_all(folder, "*.json", read_record)


def finished(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Return the runs whose numbers count."""
    return [record for record in records if record.status == "finished"]


def studies(experiments_dir: Path) -> list[str]:
    """Return the names of the studies that have records or runs."""
    folders = [path.parent for name in ("records", "runs") for path in experiments_dir.glob(f"*/{name}")]
    return sorted({folder.name for folder in folders})


def _check_run(record: RunRecord) -> None:
    if not STUDY_NAME.fullmatch(record.study):
        raise ValueError(f"study: {record.study!r} cannot name a folder")
    trunk, steps = record.data.get("trunk"), record.spent.steps
    if trunk and not 0 < trunk["steps"] <= steps:
        raise ValueError(f"data.trunk.steps: expected 1 to spent.steps={steps}, got {trunk['steps']}")


# Evaluation records: tasks can be added to a run without touching the run's own record


@checked
@dataclass(frozen=True)
class Score:
    """One number of one task.

    `chance` is the score of a model that knows nothing, None where that is not defined. `n_labels` is the
    number of labelled items used for fitting, where a task is measured at several. `higher_is_better` is None
    for a descriptive number, which is shown and never judged.
    """

    task: str
    metric: str
    value: float
    chance: float | None
    n_items: Count
    higher_is_better: bool | None = True
    n_labels: Count | None = None


@checked
@dataclass(frozen=True)
class EvaluationCost:
    """Cost of a task apart from pretraining, None where not measured; see `bench.tasks.meter`."""

    seconds: Amount | None = None
    flops: Amount | None = None
    energy: Energy | None = None


@checked
@dataclass(frozen=True)
class Fit:
    """One fine-tuning of a checkpoint, at the chosen learning rate or at another one of the grid.

    `stopped` says why it ended: `plateau`, since validation no longer improved; `cap`, at the most steps that
    were allowed, so that it may not have converged; `diverged`. `curve` holds the completed steps and the
    validation score of each validation.
    """

    n_labels: Count | None
    lr_at_64: float
    chosen: bool
    stopped: Literal["plateau", "cap", "diverged"]
    curve: tuple[tuple[Count, float], ...]


@checked
@dataclass(frozen=True)
class TaskResult:
    """The result of one task on one run. `reason` says why it has no scores; `counts`: items left out."""

    task: str
    status: TaskStatus
    config: dict[str, Any]  # the task's settings, without its class
    reason: str | None = None
    scores: tuple[Score, ...] = ()
    cost: EvaluationCost = field(default_factory=EvaluationCost)
    counts: dict[str, Count] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)  # texts of a model, which may hold a NUL
    fits: tuple[Fit, ...] = ()  # of protocol finetune


@checked
@dataclass(frozen=True)
class EvaluationRecord:
    """The results of tasks that were run together on one run.

    Arrays that the scores are computed from (outcomes by item) lie beside the record; see `items_path`.
    """

    evaluation_id: str  # hash of the run's id and the tasks' settings
    run_id: str
    study: str
    results: tuple[TaskResult, ...]
    data: dict[str, Any] = field(default_factory=dict)  # for a model behind an API: requests and prices
    environment: dict[str, str] = field(default_factory=dict)
    started_at: Time = ""
    command: str = ""
    schema_version: int = SCHEMA_VERSION


def evaluation_id(run_id: str, tasks: Mapping[str, Any]) -> str:
    """Return the identity of an evaluation: a hash of the run and of the tasks with their settings."""
    text = json.dumps([run_id, tasks], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_evaluation(record: EvaluationRecord, folder: Path) -> Path:
    """Write `<folder>/<run_id>.<evaluation_id>.json` whole or not at all."""
    return _write(record, folder / f"{record.run_id}.{record.evaluation_id}.json")


def read_evaluation(path: Path) -> EvaluationRecord:
    """Read one evaluation record.

    Raises:
        DataError: The file is damaged, foreign or of an unknown schema version.
    """
    record = _read(path, EvaluationRecord, "an evaluation record", check=_check_evaluation)
    return _named(path, f"{record.run_id}.{record.evaluation_id}", record)


def read_evaluations(
    folder: Path, run_id: str = "*"
) -> tuple[dict[str, list[EvaluationRecord]], list[DataError]]:
    """Return evaluations by run id, each run's from oldest to newest, and one error per unreadable file."""
    records, damaged = _read_all(folder, f"{run_id}.*.json", read_evaluation)
    found: dict[str, list[EvaluationRecord]] = {}
    for record in sorted(records, key=lambda record: (record.started_at, record.evaluation_id)):
        found.setdefault(record.run_id, []).append(record)
    return found, damaged


def results_of(evaluations: Iterable[EvaluationRecord]) -> dict[str, TaskResult]:
    """Return the latest result of each task; a failed one never replaces one that did not fail."""
    found: dict[str, TaskResult] = {}
    for result in (result for evaluation in evaluations for result in evaluation.results):
        if result.status != "failed" or result.task not in found or found[result.task].status == "failed":
            found[result.task] = result
    return found


def failures_of(evaluations: Iterable[EvaluationRecord]) -> list[str]:
    """Return `task: reason` of each task whose latest evaluation failed, whatever an earlier one found."""
    latest = {result.task: result for evaluation in evaluations for result in evaluation.results}
    return [f"{task}: {result.reason}" for task, result in latest.items() if result.status == "failed"]


def _check_evaluation(record: EvaluationRecord) -> None:
    for result in record.results:
        if stray := [score.task for score in result.scores if score.task != result.task]:
            raise ValueError(f"the result of {result.task} has a score of {stray[0]}")


# Arrays beside evaluation records: the outcomes by item that scores are computed from

Items = Mapping[str, "NDArray[Any]"]


def items_path(folder: Path, record: EvaluationRecord) -> Path:
    """Return the path of an evaluation's arrays, which may not exist."""
    return folder / f"{record.run_id}.{record.evaluation_id}.npz"


def read_items(path: Path, task: str) -> Items:
    """Return the arrays of one task by name; none if the file is absent or has none of the task.

    Raises:
        DataError: The file is damaged, or does not hold plain arrays of numbers.
    """
    import numpy as np

    prefix = f"{task}/"
    try:
        _require_file(path)
        with np.load(path, allow_pickle=False) as arrays:
            found = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
        for name, array in found.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
                raise ValueError(f"{prefix}{name} does not hold numbers")
        return found
    except FileNotFoundError:
        return {}
    except Exception as error:  # zipfile and the header parser raise a dozen kinds for damaged bytes
        why = " ".join(str(error).split())
        raise DataError(
            f"{path}: not readable arrays ({why}); delete it and the record {path.stem}.json beside it, "
            "then run `bench evaluate` again"
        ) from error


def paths_of(
    folder: Path, evaluations: Iterable[EvaluationRecord], results: Mapping[str, TaskResult]
) -> dict[str, Path]:
    """Return the path of the arrays of each result: beside the evaluation that the result came from."""
    found: dict[str, Path] = {}
    for evaluation in evaluations:
        path = items_path(folder, evaluation)
        found |= {own.task: path for own in evaluation.results if results.get(own.task) is own}
    return found


# Audit records


@checked
@dataclass(frozen=True)
class AuditCheck:
    """One condition that must hold for a task's scores to count, and whether it does."""

    task: str
    check: str  # constant | noise | permuted labels | ceiling | batch size | padding
    verdict: Literal["passed", "failed", "not applicable"]
    detail: str


@checked
@dataclass(frozen=True)
class AuditRecord:
    """The latest audit of a study's tasks: `audit.json` beside its records."""

    study: str
    checks: tuple[AuditCheck, ...]
    tasks: dict[str, Any]  # settings by task, without classes
    environment: dict[str, str]
    started_at: Time
    schema_version: int = SCHEMA_VERSION


def write_audit(record: AuditRecord, folder: Path) -> Path:
    """Write `<folder>/audit.json`, replacing an older one."""
    return _write(record, folder / "audit.json")


def read_audit(folder: Path) -> AuditRecord | None:
    """Return the audit of a study, None if there is none.

    Raises:
        DataError: The file is damaged, foreign or of an unknown schema version.
    """
    path = folder / "audit.json"
    if not (path.exists() or path.is_symlink()):
        return None
    return _read(path, AuditRecord, "an audit", fix="run `bench audit` again")


# Upgrades from schema version 2: targets of the loss had another name, and classes stood for choices


_TOKENS = ("supervised_tokens", "predicted_tokens")


def by_choice(config: Mapping[str, Any], strategy: str, corpus: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that name the strategy and each corpus by its YAML stem instead of its class.

    Args:
        config: Settings of a run.
        strategy: The strategy as tables name it, such as `mlm[mask_rate=0.15]`.
        corpus: The stem of each corpus, by kind.
    """
    named = without_targets(config)
    if isinstance(node := named.get("strategy"), dict):
        named["strategy"] = {CHOICE: strategy.partition("[")[0]} | node
    if isinstance(nodes := named.get("corpus"), dict):
        named["corpus"] = {
            kind: {CHOICE: corpus.get(kind)} | node if isinstance(node, dict) else node
            for kind, node in nodes.items()
        }
    return named


def without_targets(node: Any) -> Any:
    """Return a copy of settings without the paths of classes, at any depth."""
    if isinstance(node, dict):
        return {key: without_targets(value) for key, value in node.items() if key != "_target_"}
    return [without_targets(value) for value in node] if isinstance(node, list) else node


def holds_settings(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Return whether a task was evaluated in its settings of today.

    A recorded key that the settings lack is ignored, because it had no effect: older records list all options
    of a task's class, even those that its protocol does not use. The option that decides what is used, such
    as `protocol`, is always among the settings, so that another protocol is another evaluation.

    Args:
        recorded: The config of a task's result.
        settings: The settings in which the task would be evaluated now, with or without `_target_`.
    """
    now = without_targets(dict(settings))
    return {key: value for key, value in recorded.items() if key in now} == now


def settings_agree(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Return whether two recorded settings of a task are the same, whichever of them is the older one."""
    return holds_settings(left, right) or holds_settings(right, left)


def upgraded_config(config: Any) -> Any:
    """Return the config of a run with the keys of today."""
    return _changed(config, "budget", _renamed)


def _upgraded_run(raw: dict[str, Any]) -> dict[str, Any]:
    corpus = raw.get("corpus")
    raw = _changed(raw, "config", upgraded_config)
    raw = _changed(raw, "spent", _renamed)
    raw = _changed(raw, "budget", lambda name: name.replace(*_TOKENS) if isinstance(name, str) else name)
    if isinstance(raw.get("config"), dict) and isinstance(corpus, dict):
        raw = raw | {"config": by_choice(raw["config"], str(raw.get("strategy")), corpus)}
    return raw


def _upgraded_evaluation(raw: dict[str, Any]) -> dict[str, Any]:
    results = raw.get("results")
    if not isinstance(results, list):
        return raw
    return raw | {"results": [_changed(result, "config", without_targets) for result in results]}


def _upgraded_audit(raw: dict[str, Any]) -> dict[str, Any]:
    return _changed(raw, "tasks", without_targets)


def _changed(node: Any, key: str, change: Callable[[Any], Any]) -> Any:
    """Return a mapping with another value of a key; anything else as it is, to be refused later."""
    return node | {key: change(node[key])} if isinstance(node, dict) and key in node else node


def _renamed(node: Any) -> Any:
    old, new = _TOKENS
    return {new if k == old else k: v for k, v in node.items()} if isinstance(node, dict) else node


_UPGRADES: Mapping[Any, Callable[[dict[str, Any]], dict[str, Any]]] = {
    RunRecord: _upgraded_run,
    EvaluationRecord: _upgraded_evaluation,
    AuditRecord: _upgraded_audit,
}


# Files


def as_json(record: Any) -> str:
    """Return the text of a record's file."""
    return json.dumps(asdict(record), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write_atomically(path: Path, text: str, *, is_durable: bool = True) -> None:
    """Replace `path` by `text` in one step that survives a crash at any moment.

    Args:
        path: The file to write.
        text: Its whole content.
        is_durable: Wait until the text is on disk, which may take long over a network.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with replacing(path, partial, is_durable=is_durable), partial.open("w", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def replacing(path: Path, partial: Path, *, is_durable: bool = True) -> Iterator[None]:
    """Rename `partial`, which the caller writes inside the context, to `path`.

    If writing fails, `partial` is deleted, since a full disk needs the room.
    """
    try:
        yield
        if is_durable:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_json(kind: type[R], content: bytes | str) -> R:
    """Return JSON as an instance of a dataclass that is marked `checked`.

    Raises:
        ValueError: The content is not JSON or does not fit; one line that says where and why.
    """
    parse(content)
    return _validated(kind, content)


def parse(content: bytes | str) -> Any:
    """Return parsed JSON whose numbers fit 64 bits and whose texts can be shown.

    Raises:
        ValueError: The content is not JSON, is nested too deeply, or holds a value that no table can hold.
    """
    tree = from_json(content, allow_inf_nan=False)
    _refuse_odd_values([tree] if not isinstance(tree, dict) else tree)
    return tree


def is_text(value: str) -> bool:
    """Return whether a string can be written as UTF-8 and name a file: no NUL, no lone surrogate."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _refuse_odd_values(node: dict[str, Any] | list[Any], place: tuple[object, ...] = ()) -> None:
    """Check every value below a node; the parser has refused lone surrogates and NaN already."""
    if type(node) is dict and "\0" in "".join(node):
        raise ValueError(_at(place, _NO_NUL))
    for key, value in node.items() if type(node) is dict else enumerate(node):
        kind = type(value)
        if kind is str:
            if "\0" in value:
                raise ValueError(_at((*place, key), _NO_NUL))
        elif kind is float:
            if not math.isfinite(value):
                raise ValueError(_at((*place, key), "expected a finite number"))
        elif kind is int:
            if not -LARGEST <= value <= LARGEST:
                raise ValueError(_at((*place, key), f"expected a number of at most {LARGEST}"))
        elif (kind is dict or kind is list) and key != "samples":
            _refuse_odd_values(value, (*place, key))


def _validated(kind: type[R], content: bytes | str) -> R:
    try:
        return _adapter(kind).validate_json(content)  # type: ignore[arg-type]  # classes are hashable
    except ValidationError as error:
        raise ValueError(_explained(error.errors(include_url=False)[0])) from None


@cache
def _adapter(kind: type[R]) -> TypeAdapter[R]:
    return TypeAdapter(kind)


_NO_NUL = "expected text without NUL characters"
_EXPECTED = {
    "int_type": "an int",
    "float_type": "a float",
    "bool_type": "a bool",
    "string_type": "a string",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
}


def _explained(error: ErrorDetails) -> str:
    """Return pydantic's error as `place: expected a float, got 'x'`."""
    kind, context, place = error["type"], error.get("ctx", {}), error["loc"]
    found = f"{error['input']!r:.40}"
    if kind in ("missing", "missing_argument"):
        return _at(place[:-1], f"{place[-1]!r} is missing")
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return _at(place[:-1], f"{place[-1]!r:.40} is not a known field")
    if kind == "literal_error":
        return _at(place, f"expected {context['expected']}, got {found}")
    if kind == "greater_than_equal":
        return _at(place, f"expected {context['ge']:g} or more, got {found}")
    if kind == "value_error":
        return _at(place, f"{context['error']}")
    expected = _EXPECTED.get(kind)
    return _at(place, f"expected {expected}, got {found}" if expected else error["msg"])


def _at(place: Iterable[object], problem: str) -> str:
    steps = ".".join(f"{step!s:.40}" for step in place)
    return f"{steps}: {problem}" if steps else problem


def _read(
    path: Path,
    kind: type[R],
    what: str,
    fix: str = "run the study again",
    check: Callable[[R], None] = lambda record: None,
) -> R:
    """Read one record of any kind; whatever is wrong with the file becomes one line.

    Args:
        path: The file.
        kind: The class of the record.
        what: The kind of record, for the message.
        fix: What to do once the file is deleted, for the message.
        check: Raises ValueError if fields that each fit do not fit each other.
    """
    try:
        _require_file(path)
        content = path.read_bytes()
        raw = parse(content)
        if not isinstance(raw, dict):
            raise ValueError(f"expected a mapping, got {raw!r:.40}")
        version = raw.get("schema_version")
        if version not in (2, SCHEMA_VERSION) or isinstance(version, bool):
            raise DataError(
                f"{path}: record schema {version!r:.40}, this version reads 2 and {SCHEMA_VERSION}; "
                "run it again or use the version that wrote it"
            )
        if version == 2:
            content = to_json(_UPGRADES[kind](raw) | {"schema_version": SCHEMA_VERSION})
        record = _validated(kind, content)
        check(record)
        return record
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: not {what} ({why}); delete it and {fix}") from error


def _require_file(path: Path) -> None:
    """Refuse what is not a file before it is opened: opening a named pipe would wait without end."""
    if not path.is_file() and (path.exists() or path.is_symlink()):
        raise ValueError("a broken link" if path.is_symlink() else "not a regular file")


def _read_all(folder: Path, pattern: str, read: Callable[[Path], R]) -> tuple[list[R], list[DataError]]:
    records: list[R] = []
    damaged: list[DataError] = []
    for path in sorted(folder.glob(pattern), key=lambda path: path.name):
        try:
            records.append(read(path))
        except DataError as error:
            damaged.append(error)
    return records, damaged


def _named(path: Path, stem: str, record: R) -> R:
    """Return the record, or refuse a copy under another name, which would count twice."""
    if path.name != f"{stem}.json":
        raise DataError(
            f"{path}: holds run {stem}, whose record is {stem}.json; delete the copy, or rename it if that "
            "file is gone"
        )
    return record


def _write(record: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, as_json(record))
    return path
