"""Records -> settings, data and software of a study's runs, and warnings if runs disagree in them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.analysis.format import EMPTY, Entry, Link, View, amount, flatten
from bench.analysis.frames import Tables
from bench.analysis.untrained import shown
from bench.records import AuditCheck, AuditRecord, settings_agree

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
    """Return every flattened key with its distinct values, both sorted."""
    found: dict[str, set[str]] = {}
    for tree in {repr(tree): tree for tree in trees}.values():  # most are equal
        for key, value in flatten(tree).items():
            found.setdefault(key, set()).add(value)
    return {key: sorted(found[key]) for key in sorted(found)}


def axes_view(tables: Tables) -> View:
    """Return the study's grid: the values of each axis, in order of size."""
    rows: list[list[Entry]] = [
        ["strategies", _joined(shown(tables, condition).label for condition in tables.conditions)],
        ["models", _joined(_model(tables, name) for name in tables.models)],
        ["data budgets", _joined(_budget(tables, name) for name in tables.budgets)],
        ["corpora", _joined(_corpora(tables.runs))],
        ["seeds", _joined(map(str, tables.seeds))],
        ["tasks", _joined(dict.fromkeys(measure.task for measure in tables.measures))],
    ]
    return View("axes", "Grid", "", ["axis", "values"], "ll", rows)


def settings_view(tables: Tables) -> View:
    """Return the most important settings."""
    found = distinct(tables.runs["config"])
    rows: list[list[Entry]] = [[key, _listed(found[key])] for key in _KEY_SETTINGS if key in found]
    note = "The same for all strategies unless several values are listed."
    return View("settings", "Settings", note, ["setting", "value"], "ll", rows)


def config_view(tables: Tables) -> View:
    """Return every setting in the records, with all its values."""
    tasks = zip(tables.results["task"], tables.results["config"], strict=True)
    trees = [*tables.runs["config"], *({"task": {task: config}} for task, config in tasks)]
    return _tree_view("config", "All settings", "setting", trees)


def data_view(tables: Tables) -> View:
    """Return content hashes, sources and licences."""
    return _tree_view("data", "Data", "item", tables.runs["data"])


def environment_view(tables: Tables) -> View:
    """Return software and hardware of the runs."""
    return _tree_view("environment", "Environment", "item", tables.runs["environment"])


DETAILS = (data_view, environment_view, config_view)


def warnings(tables: Tables) -> list[str]:
    """Return warnings of data or software that differ between runs, and of repeated seeds.

    External references are left out, since they have their own tokenizer.
    """
    done = tables.runs[tables.runs["status"] == "finished"]
    compared = done[~tables.is_external(done["cell"])]
    lines = [
        f"The runs disagree in the data: {key} has {len(values)} values ({_listed(values)})."
        for key, values in _disagreements(compared, "data").items()
        if any(word in key.lower() for word in _HASH_WORDS)
    ]
    lines += [
        f"The runs disagree in the environment: {key} has {len(values)} values ({_listed(values)})."
        for key, values in _disagreements(done, "environment").items()
    ]
    repeated = int(done.duplicated(["cell", "seed"]).sum())
    if repeated:
        lines.append(
            f"{repeated} finished runs repeat a cell and seed of another run (their settings differ outside "
            "the named axes); such repeats are averaged and count as one seed."
        )
    if n_chosen := int(tables.runs["exploratory"].sum()):
        lines.append(
            f"Exploratory: {n_chosen} of {len(tables.runs)} runs were chosen by a search (sweeper=optuna) "
            "that knew earlier results; the best score is biased upward, and claims leave them out."
        )
    for task, values in _task_settings(tables).items():
        lines.append(f"The runs disagree in the settings of task {task}: {_listed(values)}.")
    lines += [f"The runs disagree in the chance level of {name}." for name in _disputed_chance(tables)]
    return lines


def _disputed_chance(tables: Tables) -> list[str]:
    """Return metrics whose chance differs within a seed; between seeds it may, as the labels drawn differ."""
    own = tables.scores[~tables.is_external(tables.scores["cell"])]
    levels = own["chance"].round(9).groupby([own["measure"], own["seed"]]).nunique()
    disputed = set(levels[levels > 1].index.get_level_values("measure"))
    return list(
        dict.fromkeys(f"{m.task}: {m.metric}" for i, m in enumerate(tables.measures) if i in disputed)
    )


def _task_settings(tables: Tables) -> dict[str, list[str]]:
    """Return the tasks that runs were measured by under different settings, and what differs."""
    found: dict[str, list[str]] = {}
    for task, configs in tables.results.groupby("task")["config"]:
        several = {key: values for key, values in distinct(configs).items() if len(values) > 1}
        if several:
            found[task] = [f"{key}={value}" for key, values in several.items() for value in values]
    return found


def dates(tables: Tables) -> str:
    """Return the days on which the runs were started."""
    days = sorted(set(tables.runs["started_at"].dropna().str[:10]))
    return EMPTY if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _disagreements(runs: pd.DataFrame, document: str) -> dict[str, list[str]]:
    """Return keys with several values among runs on the same corpora, where both have the key."""
    corpora = runs["corpus"].map(lambda corpus: tuple(sorted(corpus.items())))
    groups = [own for _, own in runs[document].groupby(corpora, sort=False)]
    found: dict[str, list[str]] = {}
    for trees in groups:
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
    sizes = tables.runs.loc[tables.runs["model"] == name, "parameters"].dropna()
    return f"{name} ({_span(sizes)} parameters)" if len(sizes) else name


def _budget(tables: Tables, name: str) -> str:
    runs = tables.runs[tables.runs["budget"] == name]
    parts = []
    units = {"unique_bytes": "bytes of text", "unique_pairs": "pairs", "forward_tokens": "tokens"}
    for column, unit in units.items():
        used = runs[column][runs[column] > 0]
        parts += [f"{_span(used)} {unit}"] if len(used) else []
    return f"{name} ({'; '.join(parts)})" if parts else name


def _corpora(runs: pd.DataFrame) -> list[str]:
    return sorted({f"{kind}: {name}" for corpus in runs["corpus"] for kind, name in corpus.items()})


def _span(values: pd.Series) -> str:
    low, high = amount(int(values.min())), amount(int(values.max()))
    return low if low == high else f"{low} to {high}"


_SIGN = {"passed": "passed", "failed": "FAILED", "not applicable": "n/a"}


def auditing(tables: Tables, audit: AuditRecord | None) -> View | None:
    """Return the audit of the study's tasks; None if none was audited."""
    if audit is None:
        return None
    measured = set(tables.results["task"])
    by_task: dict[str, dict[str, AuditCheck]] = {}
    for check in audit.checks:
        if check.task in measured:
            by_task.setdefault(check.task, {})[check.check] = check
    if not by_task:
        return None
    kinds = list(dict.fromkeys(check.check for check in audit.checks))
    rows: list[list[Entry]] = [
        [task, *(_entry(checks.get(kind)) for kind in kinds)] for task, checks in sorted(by_task.items())
    ]
    marks = [
        "failure" if any(check.verdict == "failed" for check in checks.values()) else ""
        for _, checks in sorted(by_task.items())
    ]
    note = (
        "The audit checks that uninformed models (constant, noise, a probe of permuted labels) score chance, "
        "that a model with all answers scores the ceiling, and that neither batch size nor padding changes a "
        f"score. It was run on {audit.started_at[:10]} with the data of the study's first run. "
        f"{_unaudited(tables, audit)}"
    )
    align = "l" * (1 + len(kinds))
    return View("audit", "Audit of the tasks", note, ["task", *kinds], align, rows, marks=marks)


def failures(audit: AuditRecord | None) -> list[str]:
    """Return a warning for every check that failed."""
    if audit is None:
        return []
    failed = [check for check in audit.checks if check.verdict == "failed"]
    return [f"The audit of task {c.task} failed ({c.check}): {c.detail}." for c in failed]


def _entry(check: AuditCheck | None) -> Entry:
    return "–" if check is None else [Link(_SIGN[check.verdict], "", check.detail)]


def _unaudited(tables: Tables, audit: AuditRecord) -> str:
    """Return a sentence on the tasks that were not audited, or with other settings."""
    last = tables.results.drop_duplicates("task", keep="last")
    configs = zip(last["task"], last["config"], strict=True)
    other = sorted(
        task
        for task, config in configs
        if task not in audit.tasks or not settings_agree(audit.tasks[task], config)
    )
    return f"Not audited with the settings of this study: {', '.join(other)}." if other else ""
