"""Compose the runs of a command line: Hydra composes, sweeps are expanded, runs get ids. No torch here."""

import itertools
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.config import schema
from bench.config.bounds import OptionError, as_yaml
from bench.config.checks import check_values, validate
from bench.config.identity import (
    NOT_SCIENCE,
    identity_of,
    known_ids,
    refuse_hidden,
    relocated,
    science_of,
    targets_of,
)
from bench.config.overrides import (
    CONF,
    MOST_RUNS,
    elements,
    explain,
    is_choice,
    is_value,
    parse,
    unknown_choice,
)
from bench.config.run_spec import RunSpec, read_spec
from bench.errors import ConfigError
from bench.records import CHOICE, STUDY_NAME, finished, read_records

LABELLED = ("strategy", "model", "budget")  # axes whose changed options are part of their name
PLUGGABLE = ("strategy", "task", "corpus", "launcher")  # the class checks the options
UNLABELLED = ("optim", "corpus/text", "corpus/pairs")  # groups that are part of a run's variant


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose one config by Hydra, including the `hydra` node.

    Raises:
        ConfigError: Hydra or OmegaConf refuses the overrides.
    """
    schema.register()
    parse(overrides)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose(name, overrides=list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    experiment = composed.hydra.runtime.choices.get("experiment")
    if experiment and not (CONF / "experiment" / f"{experiment}.yaml").exists():  # optional: Hydra is silent
        raise ConfigError(unknown_choice("experiment", experiment))
    return composed


def compose_runs(overrides: Sequence[str], *, multirun: bool) -> list[RunSpec]:
    """Return the runs of a command line, each once, in the order of the sweep.

    Args:
        overrides: Hydra overrides; with `multirun`, sweeps (`a=1,2`) and the experiment's
            `hydra.sweeper.params` are expanded, and the command line takes precedence.
        multirun: Whether the command line is a sweep.

    Raises:
        ConfigError: A choice, key or type is unknown, or a sweep lacks `-m`.
    """
    given = parse(overrides)
    command = shlex.join(["bench", "train", *(["-m"] if multirun else []), *overrides])
    several = [o.key_or_group for o in given if o.is_sweep_override()]
    if several and not multirun:
        raise ConfigError(f"{several[0]}: several values for one key are a sweep: add -m")
    fixed = [o for o in given if not o.is_sweep_override()]
    if not multirun:
        return _with_known_ids([_spec(fixed, command)])
    params = _compose_line(fixed).hydra.sweeper.params or {}
    named = {o.key_or_group for o in given}
    swept = [o for o in given if o.is_sweep_override()]
    swept += parse([f"{key}={value}" for key, value in params.items() if key not in named])
    if tasks := [o.key_or_group for o in swept if o.key_or_group.split(".")[0] == "task"]:
        raise ConfigError(
            f"{tasks[0]}: task settings cannot be swept; write one file per setting in conf/task"
        )
    axes = [elements(o) for o in swept]
    if (n_runs := math.prod(map(len, axes))) > MOST_RUNS:
        keys = ", ".join(o.key_or_group for o in swept)
        raise ConfigError(f"{keys}: a sweep of more than {MOST_RUNS} runs ({n_runs}); give fewer values")
    runs: dict[str, RunSpec] = {}
    for values in itertools.product(*map(parse, axes)):
        spec = _spec([*fixed, *values], command)
        runs.setdefault(spec.run_id, spec)  # strategies that ignore an axis appear once
    if not runs:
        raise ConfigError("the sweep holds no run; give every key at least one value")
    return _with_known_ids(list(runs.values()))


def _with_known_ids(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Return the runs with the ids under which their study has recorded them."""
    folders = {spec.records: None for spec in specs}
    known = {folder: known_ids(folder) for folder in folders}
    return [replace(spec, run_id=known[spec.records].get(spec.run_id, spec.run_id)) for spec in specs]


def _compose_line(line: Sequence[Override]) -> DictConfig:
    """Compose a run.

    Composing files takes Hydra most of its time, so it is done once for equal choices, and values are set
    afterwards. Overrides that add or delete keys, and all overrides before them, are left to Hydra.
    """
    left = [i for i, override in enumerate(line) if not is_choice(override) and not is_value(override)]
    n_left = left[-1] + 1 if left else 0
    values = [override for override in line[n_left:] if not is_choice(override)]
    config = deepcopy(_composed((*_words(line[:n_left]), *_chosen(line[n_left:]))))
    try:
        for override in values:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except (OmegaConfBaseException, ValueError):  # Hydra's message is better
        return compose_config("config", _words(line))
    return config


def _words(line: Iterable[Override]) -> tuple[str, ...]:
    return tuple(override.input_line or "" for override in line)


def _chosen(line: Sequence[Override]) -> tuple[str, ...]:
    return _words(filter(is_choice, line))


@lru_cache(maxsize=256)
def _composed(words: tuple[str, ...]) -> DictConfig:
    """Compose a config once; callers must not change it."""
    return compose_config("config", words)


def compose_evaluations(overrides: Sequence[str]) -> list[RunSpec]:
    """Return the finished runs of a study with the tasks of a command line.

    Args:
        overrides: `study=NAME`, `task=[A,B]`, and settings of those tasks, of `launcher` or `paths`.

    Raises:
        ConfigError: No study or task is named, or the study has no finished run.
    """
    keys = {o.key_or_group.split(".")[0] for o in parse(overrides)}
    if not {"study", "task"} <= keys:
        raise ConfigError("name a study and tasks: bench evaluate study=NAME task=[A,B]")
    if other := sorted(keys - {"study", *NOT_SCIENCE}):
        raise ConfigError(f"{other[0]} is fixed by the study's runs; only tasks are added to them")
    try:
        plain = _plain(compose_config("config", overrides), complete=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    _check_shape(plain)
    refuse_hidden(plain, _usual_targets(_chosen(parse(overrides))))
    folder = Path(plain["paths"]["experiments"]) / plain["study"]
    records, _ = read_records(folder / "records")
    command = shlex.join(["bench", "evaluate", *overrides])
    specs = []
    for record in finished(records):
        run = folder / "runs" / record.run_id
        config = read_spec(run).config if (run / "config.json").exists() else dict(record.config)
        own = located(config, record.strategy, record.corpus)
        science = {key: own[key] for key in plain.keys() & own.keys() - set(NOT_SCIENCE)}
        names = {field.name for field in fields(RunSpec)} - {"config", "command"}
        axes = {name: getattr(record, name) for name in names} | {"study": folder.name}
        spec = RunSpec(**axes, command=command, config=plain | science)
        validate(spec.typed())
        specs.append(spec)
    if not specs:
        raise ConfigError(f"study={plain['study']}: no finished run in {folder}; run it with `bench train`")
    return specs


def _spec(line: Sequence[Override], command: str) -> RunSpec:
    composed, chosen = _compose_line(line), _chosen(line)
    choices = composed.hydra.runtime.choices
    for axis in (*LABELLED, "corpus/text", "corpus/pairs"):
        if axis not in choices:
            raise ConfigError(f"{axis} takes one choice; to compare several, sweep: -m {axis}=a,b")
    try:
        check_types(composed, _composed(chosen), line)
        plain = _plain(composed, complete=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    _check_shape(plain)
    refuse_hidden(plain, _usual_targets(chosen))
    corpus = {kind: str(choices[f"corpus/{kind}"]) for kind in ("text", "pairs")}
    science = science_of(plain, choices["strategy"], corpus)
    names = _names(composed, _unchanged_science(chosen), science)
    return RunSpec(
        run_id=identity_of(science),
        study=str(plain["study"]),
        strategy=names["strategy"],
        model=names["model"],
        budget=names["budget"] if "budget" in science else None,
        variant=names["variant"],
        seed=int(plain["seed"]),
        corpus=corpus,
        config=plain,
        command=command,
    )


def _check_shape(config: Mapping[str, Any]) -> None:
    """Refuse settings that would fail before `bench.config.checks` or `bench.config.build` can name them."""
    check_values(config)
    if not STUDY_NAME.fullmatch(config["study"]):
        raise ConfigError(
            f"study={config['study']!r} names a folder: use at most 100 letters, digits, '_', '.', '-'"
        )
    parts = {key: config[key] for key in ("strategy", "launcher")}
    parts |= {f"corpus.{kind}": node for kind, node in config["corpus"].items()}
    parts |= {f"task.{name}": node for name, node in config["task"].items()}
    for key, node in parts.items():
        if not isinstance(node, dict):
            group = "task" if key.startswith("task.") else key.replace(".", "/")
            raise OptionError(key, node, f"must be a mapping of options; choose one by {group}=NAME")
    if not isinstance(config["strategy"].get("modality"), str):
        raise ConfigError("strategy.modality is missing; choose text, pairs or none, as its class says")
    if odd := [name for name in config["task"] if not name.isidentifier()]:
        raise ConfigError(f"task.{odd[0]}: a task's name names a column; use letters, digits and '_'")


def _names(composed: DictConfig, before: Mapping[str, str], science: Mapping[str, Any]) -> dict[str, str]:
    """Return the run's names in tables: `mlm[mask_rate=0.15]` for a changed choice, `variant` for the rest.

    Names follow from values, not from how they were typed: runs have equal names exactly if their science is
    equal.
    """
    choices = composed.hydra.runtime.choices
    changes = {k: v for k, v in _flat(science).items() if before.get(k) != v and k != "seed"}
    names = {}
    for axis in LABELLED:
        own = [f"{k.removeprefix(f'{axis}.')}={v}" for k, v in changes.items() if k.startswith(f"{axis}.")]
        names[axis] = f"{choices[axis]}[{','.join(own)}]" if own else str(choices[axis])
    experiment = choices.get("experiment")
    usual = _composed((f"experiment={experiment}",) if experiment else ()).hydra.runtime.choices
    groups = [group for group in UNLABELLED if group.split("/")[0] in science]
    variant = [f"{group}={choices[group]}" for group in groups if choices[group] != usual[group]]
    variant += [f"{k}={v}" for k, v in changes.items() if k.split(".")[0] not in LABELLED]
    return names | {"variant": " ".join(variant)}


@lru_cache(maxsize=256)
def _unchanged_science(chosen: tuple[str, ...]) -> Mapping[str, str]:
    """Return the part of the chosen files that may change a run's weights, flat."""
    choices = _composed(chosen).hydra.runtime.choices
    corpus = {kind: choices[f"corpus/{kind}"] for kind in ("text", "pairs")}
    return _flat(science_of(_plain(_composed(chosen), complete=False), choices["strategy"], corpus))


@lru_cache(maxsize=256)
def _usual_targets(chosen: tuple[str, ...]) -> Mapping[str, str]:
    """Return the classes that the chosen files name."""
    return targets_of(_plain(_composed(chosen), complete=False))


def located(config: Mapping[str, Any], strategy: str, corpus: Mapping[str, str]) -> dict[str, Any]:
    """Return a recorded run's settings with the classes that its YAML files name today.

    Args:
        config: The recorded settings.
        strategy: The strategy as tables name it, such as `mlm[mask_rate=0.15]`.
        corpus: The YAML stem of each corpus, by kind.

    Raises:
        ConfigError: A strategy or corpus is no longer there.
    """
    nodes = {
        "strategy": relocated(config["strategy"], _shipped("strategy", strategy.partition("[")[0])),
        "corpus": {
            kind: relocated(node, _shipped(f"corpus/{kind}", corpus[kind]))
            for kind, node in config["corpus"].items()
        },
    }
    return dict(config) | nodes


def located_strategy(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded strategy with the classes that its YAML file names today."""
    return relocated(dict(node), _shipped("strategy", node[CHOICE]))


def _shipped(group: str, stem: str) -> Any:
    """Return the settings of a file of conf/."""
    composed = _composed((f"{group}={stem}",))
    return OmegaConf.to_container(OmegaConf.select(composed, group.replace("/", ".")))


def read_run(folder: Path) -> RunSpec:
    """Return the run that a folder belongs to, with the classes of today.

    Raises:
        DataError: The run's config is absent or damaged.
        ConfigError: Its strategy or corpus is no longer there.
    """
    spec = read_spec(folder)
    return replace(spec, config=located(spec.config, spec.strategy, spec.corpus))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten {"a": {"b": 1}} to {"a.b": "1"}; texts of values contain no space."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            found[f"{prefix}{key}"] = "_".join(text.split())
    return found


def _plain(composed: DictConfig, *, complete: bool) -> dict[str, Any]:
    """Return the config without Hydra's node, as plain containers; `complete`: no value may be missing."""
    ours = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    container = OmegaConf.to_container(ours, resolve=True, throw_on_missing=complete)
    if complete:  # check again, since interpolated values are not checked yet
        container = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(schema.Config), container))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def check_types(composed: DictConfig, unchanged: DictConfig, overrides: Sequence[Override]) -> None:
    """Refuse an override whose type differs from the value in the YAML: of a pluggable part, or of a flag.

    OmegaConf takes any number for a flag of the schema. Other settings of the schema are checked by it.

    Raises:
        ConfigError: Names the key, the value and the type in the YAML.
    """
    deep = [o for o in overrides if "." in o.key_or_group and not o.is_add()]
    pluggable = [o for o in deep if o.key_or_group.split(".")[0] in PLUGGABLE]
    for override in pluggable:
        key = override.key_or_group
        was, now = OmegaConf.select(unchanged, key), OmegaConf.select(composed, key)
        if was is not None and now is not None and not _fits(now, was):
            wanted = type(was).__name__.replace("ListConfig", "list").replace("DictConfig", "mapping")
            raise OptionError(key, now, f"expected {wanted}, such as {as_yaml(was)}")
    for override in overrides:
        key, value = override.key_or_group, override.value()
        is_flag = isinstance(OmegaConf.select(unchanged, key), bool)
        if is_flag and not isinstance(value, bool | str):
            raise OptionError(key, value, "use true or false")


def _fits(now: Any, was: Any) -> bool:
    if isinstance(was, float) and not isinstance(was, bool):
        return isinstance(now, int | float) and not isinstance(now, bool)
    return type(now) is type(was)
