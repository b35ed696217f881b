"""What the runs of a study were: settings, data, software; and where they disagree. Read from the records."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.analysis.rows import scores_of
from bench.analysis.table import Measure, Tables, cell_of
from bench.analysis.text import EMPTY, Entry, View, amount, flatten
from bench.records import RunRecord, TaskResult, finished

_KEY_SETTINGS = [
    "optim.tokens_per_step",
    "optim.lr_peak",
    "optim.lr_width",
    "optim.schedule",
    "optim.warmup_share",
    "optim.weight_decay",
    "sequence_length",
    "caption_length",
    "tokenizer.vocab_size",
    "tokenizer.train_bytes",
]
_MOST_VALUES = 8  # distinct values of a setting that are listed in full
_HASH_WORDS = ("hash", "tokenizer")


def distinct(trees: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Every flattened key with its distinct values, both in order."""
    found: dict[str, set[str]] = {}
    for tree in {repr(tree): tree for tree in trees}.values():  # most are alike
        for key, value in flatten(tree).items():
            found.setdefault(key, set()).add(value)
    return {key: sorted(found[key]) for key in sorted(found)}


def axes_view(tables: Tables) -> View:
    """The study's grid: what was varied, in order of size."""
    seeds = sorted({record.seed for record in tables.records})
    rows: list[list[Entry]] = [
        ["strategies", _joined(arm.label for arm in tables.arms)],
        ["models", _joined(_model(tables, name) for name in tables.models)],
        ["data budgets", _joined(_budget(tables, name) for name in tables.budgets)],
        ["corpora", _joined(_corpora(tables.records))],
        ["seeds", _joined(map(str, seeds))],
        ["tasks", _joined(dict.fromkeys(measure.task for measure in tables.measures))],
    ]
    return View("axes", "Grid", "", ["axis", "values"], "ll", rows)


def settings_view(tables: Tables) -> View:
    """The settings that a reader asks for first."""
    found = distinct(record.config for record in tables.records)
    rows: list[list[Entry]] = [[key, _listed(found[key])] for key in _KEY_SETTINGS if key in found]
    note = "The same for all strategies unless several values are listed."
    return View("settings", "Settings", note, ["setting", "value"], "ll", rows)


def config_view(tables: Tables) -> View:
    """Every setting in the records, with all its values."""
    trees: list[Mapping[str, Any]] = [record.config for record in tables.records]
    trees += [{"task": {result.task: result.config}} for result in _results(tables)]
    return _tree_view("config", "All settings", "setting", trees)


def data_view(tables: Tables) -> View:
    """Content hashes, sources and licences."""
    return _tree_view("data", "Data", "item", (record.data for record in tables.records))


def environment_view(tables: Tables) -> View:
    """Software and hardware of the runs."""
    trees = (record.environment for record in tables.records)
    return _tree_view("environment", "Environment", "item", trees)


DETAILS = (data_view, environment_view, config_view)


def warnings(tables: Tables) -> list[str]:
    """What a reader must know before comparing: disagreeing data or software, and repeated seeds.

    An external reference has its own tokenizer, as its row says.
    """
    compared = [record for record in tables.records if not cell_of(record).arm.is_external]
    lines = [
        f"The runs disagree in the data: {key} has {len(values)} values ({_listed(values)})."
        for key, values in _disagreements(compared, lambda record: record.data).items()
        if any(word in key.lower() for word in _HASH_WORDS)
    ]
    lines += [
        f"The runs disagree in the environment: {key} has {len(values)} values ({_listed(values)})."
        for key, values in _disagreements(tables.records, lambda record: record.environment).items()
    ]
    places = [(cell_of(record), record.seed) for record in tables.records if record.status == "finished"]
    repeated = len(places) - len(set(places))
    if repeated:
        lines.append(
            f"{repeated} finished runs repeat a cell and seed of another run (their settings differ outside "
            "the named axes); such repeats are averaged and count as one seed."
        )
    for task, values in _task_settings(tables).items():
        lines.append(f"The runs disagree in the settings of task {task}: {_listed(values)}.")
    lines += [
        f"The runs disagree in the chance level of {name}." for name in _disputed_chance(compared, tables)
    ]
    return lines


def _disputed_chance(records: Sequence[RunRecord], tables: Tables) -> list[str]:
    """Metrics whose chance differs within a seed; between seeds it may: the labels that are drawn differ."""
    levels: dict[tuple[Measure, int], set[float]] = {}
    for record in finished(records):
        for score in scores_of(record, tables.results):
            if score.chance is not None:
                levels.setdefault((Measure.of(score), record.seed), set()).add(score.chance)
    disputed = {m for (m, _), found in levels.items() if len({round(chance, 9) for chance in found}) > 1}
    return list(dict.fromkeys(f"{m.task}: {m.metric}" for m in tables.measures if m in disputed))


def _task_settings(tables: Tables) -> dict[str, list[str]]:
    """Tasks that runs were measured by under different settings, and what differs."""
    found: dict[str, list[str]] = {}
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for result in _results(tables):
        by_task.setdefault(result.task, []).append(result.config)
    for task, configs in sorted(by_task.items()):
        several = {key: values for key, values in distinct(configs).items() if len(values) > 1}
        if several:
            found[task] = [f"{key}={value}" for key, values in several.items() for value in values]
    return found


def _results(tables: Tables) -> Iterator[TaskResult]:
    return (result for own in tables.results.values() for result in own.values())


def dates(tables: Tables) -> str:
    """When the runs were started, from the records."""
    days = sorted({record.started_at[:10] for record in tables.records if record.started_at})
    return EMPTY if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _disagreements(
    records: Sequence[RunRecord], part: Callable[[RunRecord], Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Keys with several values among runs on the same corpora, where both have the key."""
    groups: dict[tuple[tuple[str, str], ...], list[Mapping[str, Any]]] = {}
    for record in records:
        if record.status == "finished":
            groups.setdefault(tuple(sorted(record.corpus.items())), []).append(part(record))
    found: dict[str, list[str]] = {}
    for trees in groups.values():
        found |= {key: values for key, values in distinct(trees).items() if len(values) > 1}
    return found


def _tree_view(name: str, title: str, item: str, trees: Iterable[Mapping[str, Any]]) -> View:
    rows: list[list[Entry]] = [[key, _listed(values)] for key, values in distinct(trees).items()]
    return View(name, title, "", [item, "value"], "ll", rows)


def _listed(values: Sequence[str]) -> str:
    shown = ", ".join(values[:_MOST_VALUES])
    more = len(values) - _MOST_VALUES
    return f"{shown} and {more} more" if more > 0 else shown


def _joined(names: Iterable[str]) -> str:
    return ", ".join(names) or EMPTY


def _model(tables: Tables, name: str) -> str:
    sizes = {record.parameters for record in tables.records if record.model == name and record.parameters}
    return f"{name} ({_span(sizes)} parameters)" if sizes else name


def _budget(tables: Tables, name: str) -> str:
    spent = [record.spent for record in tables.records if record.budget == name]
    parts = []
    for unit, values in (
        ("bytes of text", {use.unique_bytes for use in spent}),
        ("pairs", {use.unique_pairs for use in spent}),
        ("tokens", {use.forward_tokens for use in spent}),
    ):
        used = {value for value in values if value}
        parts += [f"{_span(used)} {unit}"] if used else []
    return f"{name} ({'; '.join(parts)})" if parts else name


def _corpora(records: Sequence[RunRecord]) -> list[str]:
    return sorted({f"{kind}: {name}" for record in records for kind, name in record.corpus.items()})


def _span(values: set[int]) -> str:
    low, high = amount(min(values)), amount(max(values))
    return low if low == high else f"{low} to {high}"
