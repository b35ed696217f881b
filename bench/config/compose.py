"""Compose the runs of a command line: Hydra composes, sweeps are expanded, runs get ids. No torch here."""

import ctypes
import itertools
import json
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
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
from bench.config.installation import CONF
from bench.config.overrides import (
    MOST_RUNS,
    elements,
    explain,
    is_choice,
    is_value,
    parse,
    refuse_in_experiment,
    split_folders,
    unknown_choice,
)
from bench.config.run_spec import RunSpec, read_spec
from bench.config.search_path import (
    AddedFolders,
    added_folders,
    choices,
    find_choice,
    search_path,
    searching,
)
from bench.errors import ConfigError
from bench.records import CHOICE, STUDY_NAME, RunRecord, finished, read_records

TUNED, SHARED = "tuned", "none"  # the group of tuned rates, and its choice that tunes nothing
TUNABLE = ("lr_peak", "weight_decay")  # settings of `optim` in a file of tuned rates
LABELLED = ("strategy", "model", "budget")  # axes whose changed options are part of their name
PLUGGABLE = ("strategy", "task", "corpus", "launcher", "logger", "callbacks")  # the class checks the options
UNLABELLED = ("optim", "corpus/text", "corpus/pairs")  # groups that are part of a run's variant
# Lightning's short names.
PRECISIONS = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
T = TypeVar("T")


def _cached(function: Callable[[tuple[str, ...]], T]) -> Callable[[tuple[str, ...]], T]:
    """Cache a function of overrides, which also depends on the folders in which choices are found."""

    @lru_cache(maxsize=256)
    def found(words: tuple[str, ...], folders: tuple[Path, ...]) -> T:
        return function(words)

    return wraps(function)(lambda words: found(words, search_path()))


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose one config by Hydra, including the `hydra` node.

    Raises:
        ConfigError: Hydra or OmegaConf refuses the overrides.
    """
    folders, words = split_folders(overrides)
    schema.register()
    Plugins.instance().register(AddedFolders)
    parse(words)
    with searching(folders):
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                composed = compose(
                    name, overrides=[*_every_figure(name, words), *words], return_hydra_config=True
                )
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error)) from error
        experiment = composed.hydra.runtime.choices.get("experiment")
        if experiment:
            path = find_choice("experiment", str(experiment))
            if path is None:  # the group is optional, so Hydra is silent
                raise ConfigError(unknown_choice("experiment", experiment))
            refuse_in_experiment(path)
    return composed


def _every_figure(name: str, words: Sequence[str]) -> list[str]:
    """Return the override by which a report also shows the figures of plug-ins and of the user's folders."""
    if name != "report" or any(word.startswith("figure=") for word in words):
        return []
    defaults = OmegaConf.load(CONF / "report.yaml").defaults
    shipped = next(node["figure"] for node in defaults if "figure" in node)
    added = [stem for stem in choices("figure") if stem not in shipped]
    return [f"figure=[{','.join([*shipped, *added])}]"] if added else []


def compose_runs(overrides: Sequence[str], *, multirun: bool = False) -> list[RunSpec]:
    """Return the runs of a command line, each once, in the order of the sweep.

    Args:
        overrides: Hydra overrides; with `multirun`, sweeps (`a=1,2`) and the experiment's
            `hydra.sweeper.params` are expanded, and the command line takes precedence. Several experiments
            (`experiment=a,b`) give the union of their sweeps, each with its own study.
        multirun: Whether the command line is a sweep.

    Raises:
        ConfigError: A choice, key or type is unknown, or a sweep lacks `-m`.
    """
    command = shlex.join(["bench", "train", *(["-m"] if multirun else []), *overrides])
    folders, words = split_folders(overrides)
    with searching(folders):
        given = parse(words)
        several = [o.key_or_group for o in given if o.is_sweep_override()]
        if several and not multirun:
            raise ConfigError(f"{several[0]}: several values for one key are a sweep: add -m")
        if not multirun:
            return _with_known_ids([_spec(given, command)])
        runs: dict[tuple[str, str], RunSpec] = {}
        for line in _lines(given):
            spec = _spec(line, command)
            first = runs.setdefault((spec.study, spec.run_id), spec)  # such as scratch, which has no budget
            _refuse_lost_settings(first, spec)
        if not runs:
            raise ConfigError("the sweep holds no run; give every key at least one value")
        return _with_known_ids(list(runs.values()))


def refuse_several_studies(specs: Sequence[RunSpec]) -> None:
    """Raise ConfigError if runs belong to more than one study, for commands that take one."""
    if len(studies := list(dict.fromkeys(spec.study for spec in specs))) > 1:
        raise ConfigError(f"only one study is taken, not {', '.join(studies)}; name one experiment")


def _lines(given: Sequence[Override]) -> Iterator[list[Override]]:
    """Expand a sweep into one line of overrides per run; several experiments are expanded one by one."""
    experiments = [o for o in given if o.key_or_group == "experiment"]
    others = [o for o in given if o.key_or_group != "experiment"]
    names = elements(experiments[-1]) if experiments else []
    grids = [_grid([*parse([name]), *others]) for name in names] if experiments else [_grid(others)]
    if (n_runs := sum(math.prod(map(len, axes.values())) for _, axes in grids)) > MOST_RUNS:
        keys = ", ".join(dict.fromkeys(key for _, axes in grids for key in axes))
        raise ConfigError(f"{keys}: a sweep of more than {MOST_RUNS} runs ({n_runs}); give fewer values")
    for fixed, axes in grids:
        for values in itertools.product(*map(parse, axes.values())):
            yield [*fixed, *values]


def _grid(given: Sequence[Override]) -> tuple[list[Override], dict[str, list[str]]]:
    """Return the overrides that all runs of a sweep share, and the overrides of each axis by its key."""
    fixed = [o for o in given if not o.is_sweep_override()]
    params = _compose_line(fixed)[1].sweeper.params or {}
    named = {o.key_or_group for o in given}
    swept = [o for o in given if o.is_sweep_override()]
    swept += parse([f"{key}={value}" for key, value in params.items() if key not in named])
    if tasks := [o.key_or_group for o in swept if o.key_or_group.split(".")[0] == "task"]:
        raise ConfigError(
            f"{tasks[0]}: task settings cannot be swept; write one file per setting in conf/task"
        )
    return fixed, {o.key_or_group: elements(o) for o in swept}


def _refuse_lost_settings(first: RunSpec, other: RunSpec) -> None:
    """Refuse two settings of one run of a sweep, since only the first would be used."""
    unused = dict.fromkeys(schema.IN_SCIENCE)
    one, two = (spec.config | {"trainer": spec.config["trainer"] | unused} for spec in (first, other))
    if lost := [key for key in NOT_SCIENCE if one[key] != two[key]]:
        raise ConfigError(
            f"{lost[0]} cannot be swept: it changes no weights, so {first.label} of study {first.study} "
            "would be one run with two settings; choose one"
        )


def _with_known_ids(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Return the runs with the ids under which their study has recorded them."""
    folders = {spec.records: None for spec in specs}
    known = {folder: known_ids(folder) for folder in folders}
    return [replace(spec, run_id=known[spec.records].get(spec.run_id, spec.run_id)) for spec in specs]


def _compose_line(line: Sequence[Override]) -> tuple[DictConfig, DictConfig]:
    """Compose the settings of a run, and Hydra's own node, which callers must not change.

    Composing files takes Hydra most of its time, so it is done once for equal choices, and values are set
    afterwards. Overrides that add or delete keys, and all overrides before them, are left to Hydra.
    """
    left = [i for i, override in enumerate(line) if not is_choice(override) and not is_value(override)]
    n_left = left[-1] + 1 if left else 0
    values = [override for override in line[n_left:] if not is_choice(override)]
    words = (*_words(line[:n_left]), *_chosen(line[n_left:]))
    settings = deepcopy(_settings(words))
    try:
        for override in values:
            OmegaConf.update(settings, override.key_or_group, override.value(), merge=True)
    except (OmegaConfBaseException, ValueError):  # Hydra's message is better
        composed = compose_config("config", _words(line))
        return _without_hydra(composed), composed.hydra
    return settings, _composed(words).hydra


def _words(line: Iterable[Override]) -> tuple[str, ...]:
    return tuple(override.input_line or "" for override in line)


def _chosen(line: Sequence[Override]) -> tuple[str, ...]:
    return _words(filter(is_choice, line))


@_cached
def _composed(words: tuple[str, ...]) -> DictConfig:
    """Compose a config once; callers must not change it."""
    return compose_config("config", words)


@_cached
def _settings(words: tuple[str, ...]) -> DictConfig:
    """Compose the settings of a run once, without Hydra's node, whose copy takes as long as all else."""
    return _without_hydra(_composed(words))


def _without_hydra(composed: DictConfig) -> DictConfig:
    settings = deepcopy(composed)  # keeps the types of the schema, which OmegaConf.masked_copy would drop
    with open_dict(settings):
        del settings["hydra"]
    return settings


def compose_evaluations(overrides: Sequence[str]) -> list[RunSpec]:
    """Return the finished runs of a study with the tasks of a command line.

    Args:
        overrides: `study=NAME`, `task=[A,B]`, and settings of those tasks, of `launcher` or `paths`.

    Raises:
        ConfigError: No study or task is named, or the study has no finished run.
    """
    folders, words = split_folders(overrides)
    keys = {o.key_or_group.split(".")[0] for o in parse(words)}
    if not {"study", "task"} <= keys:
        raise ConfigError("name a study and tasks: bench evaluate study=NAME task=[A,B]")
    if other := sorted(keys - {"study", *NOT_SCIENCE} | keys & {"callbacks", TUNED}):  # used in training
        raise ConfigError(f"{other[0]} is fixed by the study's runs; only tasks are added to them")
    with searching(folders):
        plain = _complete(_without_hydra(compose_config("config", words)))
        _check_shape(plain)
        refuse_hidden(plain, _usual_targets(_chosen(parse(words))))
        folder = Path(plain["paths"]["experiments"]) / plain["study"]
        records, _ = read_records(folder / "records")
        command = shlex.join(["bench", "evaluate", *overrides])
        specs = [_evaluated(record, folder, plain, command) for record in finished(records)]
    if not specs:
        raise ConfigError(f"study={plain['study']}: no finished run in {folder}; run it with `bench train`")
    return specs


def _evaluated(record: RunRecord, folder: Path, plain: Mapping[str, Any], command: str) -> RunSpec:
    """Return a finished run of a study's folder with the tasks of `plain`."""
    run = folder / "runs" / record.run_id
    config = read_spec(run).config if (run / "config.json").exists() else dict(record.config)
    own = located(config, record.strategy, record.corpus)
    science = {key: own[key] for key in plain.keys() & own.keys() - set(NOT_SCIENCE)}
    names = {field.name for field in fields(RunSpec)} - {"config", "command"}
    axes = {name: getattr(record, name) for name in names} | {"study": folder.name}
    folders = {"config_dirs": list(dict.fromkeys([*_folders_of(config), *plain["paths"]["config_dirs"]]))}
    own_paths = {"paths": plain["paths"] | folders}
    spec = RunSpec(**axes, command=command, config=dict(plain) | science | own_paths)
    validate(spec.typed())
    return spec


def _spec(line: Sequence[Override], command: str) -> RunSpec:
    (settings, hydra), chosen = _compose_line(line), _chosen(line)
    choices = hydra.runtime.choices
    for axis in (*LABELLED, "corpus/text", "corpus/pairs"):
        if axis not in choices:
            raise ConfigError(f"{axis} takes one choice; to compare several, sweep: -m {axis}=a,b")
    try:
        check_types(settings, _settings(chosen), line)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    plain = _complete(settings)
    _check_shape(plain)
    refuse_hidden(plain, _usual_targets(chosen))
    corpus = {kind: str(choices[f"corpus/{kind}"]) for kind in ("text", "pairs")}
    names = _names(choices, _unchanged_science(chosen), science_of(plain, choices["strategy"], corpus))
    if plain["strategy"]["modality"] != "none":
        plain["optim"] |= _tuned_rates(choices, names["strategy"], line)
    plain[TUNED] = None
    science = science_of(plain, choices["strategy"], corpus)
    names = _names(choices, _usual_science(chosen, choices, names["strategy"]), science)
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


def _tuned_rates(choices: DictConfig, strategy: str, line: Sequence[Override]) -> dict[str, float]:
    """Return a strategy's tuned settings of the optimizer, without those that the command line gives.

    Raises:
        ConfigError: There is no such file of rates, or it lacks the strategy.
    """
    if (name := str(choices[TUNED])) == SHARED:
        return {}
    found = tuned_rates(name)
    again = f"run `bench tune experiment={choices.get('experiment') or 'NAME'}`, or set tuned={SHARED}"
    if found is None:  # the group is optional, so Hydra is silent
        raise ConfigError(f"tuned={name}: there is no conf/tuned/{name}.yaml; {again}")
    if strategy not in found:
        raise ConfigError(f"tuned={name}: no rate of {strategy}; {again}")
    given = {override.key_or_group for override in line}
    return {key: value for key, value in found[strategy].items() if f"optim.{key}" not in given}


def tuned_rates(name: str) -> dict[str, dict[str, float]] | None:
    """Return the settings of the optimizer in a file of tuned rates, by strategy; None if there is no file.

    Raises:
        ConfigError: The file is damaged.
    """
    path = find_choice(TUNED, name)
    return None if path is None else _rates_in(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _rates_in(path: Path, _: int) -> dict[str, dict[str, float]]:
    try:
        nodes = yaml.safe_load(path.read_text(encoding="utf-8"))["strategies"].items()
        return {str(name): {key: float(node[key]) for key in TUNABLE if key in node} for name, node in nodes}
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a file of tuned rates ({what}); run `bench tune` again") from error


def _usual_science(chosen: tuple[str, ...], choices: DictConfig, strategy: str) -> dict[str, str]:
    """Return the science of the chosen files, with the rates that the experiment tunes for the strategy.

    So a run at its tuned rate has no variant, and one at another rate is named by it.
    """
    experiment = choices.get("experiment")
    name = _composed((f"experiment={experiment}",)).hydra.runtime.choices[TUNED] if experiment else SHARED
    rates = (tuned_rates(str(name)) or {}).get(strategy, {})
    return {**_unchanged_science(chosen), **{f"optim.{key}": json.dumps(x) for key, x in rates.items()}}


def _complete(settings: DictConfig) -> dict[str, Any]:
    """Return all settings of a run, with Lightning's short names written out and the folders of its choices.

    Raises:
        ConfigError: A value is missing or cannot be resolved.
    """
    try:
        plain = _plain(settings, complete=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    plain["trainer"] |= _written_out(plain["trainer"])
    plain["paths"] |= {"config_dirs": [str(folder) for folder in added_folders()]}
    return plain


def _written_out(trainer: Mapping[str, Any]) -> dict[str, str]:
    """Return precision and accelerator by their one name; `auto` is a GPU if CUDA finds one here."""
    accelerator = {"cuda": "gpu"}.get(trainer["accelerator"], trainer["accelerator"])
    if accelerator == "auto":
        accelerator = "gpu" if _has_gpu() else "cpu"
    return {
        "accelerator": accelerator,
        "precision": PRECISIONS.get(trainer["precision"], trainer["precision"]),
    }


def _has_gpu() -> bool:
    """Return whether the CUDA driver finds a device, without the seconds that torch takes."""
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


def _check_shape(config: Mapping[str, Any]) -> None:
    """Refuse settings that would fail before `bench.config.checks` or `bench.config.build` can name them."""
    check_values(config)
    if not STUDY_NAME.fullmatch(config["study"]):
        raise ConfigError(
            f"study={config['study']!r} names a folder: use at most 100 letters, digits, '_', '.', '-'"
        )
    parts = {key: config[key] for key in ("strategy", "launcher")}
    parts |= {f"corpus.{kind}": node for kind, node in config["corpus"].items()}
    for group in ("task", "logger", "callbacks"):
        parts |= {f"{group}.{name}": node for name, node in config[group].items()}
    for key, node in parts.items():
        if not isinstance(node, dict):
            first = key.partition(".")[0]
            group = first if first in ("task", "logger", "callbacks") else key.replace(".", "/")
            raise OptionError(key, node, f"must be a mapping of options; choose one by {group}=NAME")
    if not isinstance(config["strategy"].get("modality"), str):
        raise ConfigError("strategy.modality is missing; choose text, pairs or none, as its class says")
    if odd := [name for name in config["task"] if not name.isidentifier()]:
        raise ConfigError(f"task.{odd[0]}: a task's name names a column; use letters, digits and '_'")


def _names(choices: DictConfig, before: Mapping[str, str], science: Mapping[str, Any]) -> dict[str, str]:
    """Return the run's names in tables: `mlm[mask_rate=0.15]` for a changed choice, `variant` for the rest.

    Names follow from values, not from how they were typed: runs have equal names exactly if their science is
    equal.
    """
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


@_cached
def _unchanged_science(chosen: tuple[str, ...]) -> Mapping[str, str]:
    """Return the part of the chosen files that may change a run's weights, flat."""
    choices = _composed(chosen).hydra.runtime.choices
    corpus = {kind: choices[f"corpus/{kind}"] for kind in ("text", "pairs")}
    return _flat(science_of(_plain(_settings(chosen), complete=False), choices["strategy"], corpus))


@_cached
def _usual_targets(chosen: tuple[str, ...]) -> Mapping[str, str]:
    """Return the classes that the chosen files name."""
    return targets_of(_plain(_settings(chosen), complete=False))


def located(config: Mapping[str, Any], strategy: str, corpus: Mapping[str, str]) -> dict[str, Any]:
    """Return a recorded run's settings with the classes that its YAML files name today.

    Args:
        config: The recorded settings.
        strategy: The strategy as tables name it, such as `mlm[mask_rate=0.15]`.
        corpus: The YAML stem of each corpus, by kind.

    Raises:
        ConfigError: A strategy or corpus is no longer there.
    """
    used = [("strategy", strategy.partition("[")[0]), *((f"corpus/{kind}", corpus[kind]) for kind in corpus)]
    is_found = all(find_choice(group, stem) for group, stem in used)
    with searching([] if is_found else _folders_of(config)):
        nodes = {
            "strategy": relocated(config["strategy"], _shipped("strategy", strategy.partition("[")[0])),
            "corpus": {
                kind: relocated(node, _shipped(f"corpus/{kind}", corpus[kind]))
                for kind, node in config["corpus"].items()
            },
        }
    return dict(config) | nodes


def _folders_of(config: Mapping[str, Any]) -> list[str]:
    """Return the folders of the user's own YAML files when the run was composed; a record has none."""
    return list(config.get("paths", {}).get("config_dirs", []))


def located_strategy(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded strategy with the classes that its YAML file names today."""
    return relocated(dict(node), _shipped("strategy", node[CHOICE]))


def _shipped(group: str, stem: str) -> Any:
    """Return the settings of a choice's file."""
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


def _plain(settings: DictConfig, *, complete: bool) -> dict[str, Any]:
    """Return settings as plain containers; `complete`: no value may be missing."""
    container = OmegaConf.to_container(settings, resolve=True, throw_on_missing=complete)
    if complete and container != OmegaConf.to_container(settings):  # interpolated values are not checked yet
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
        is_flag = isinstance(OmegaConf.select(unchanged, key), bool) or key in schema.FLAGS
        if is_flag and not isinstance(value, bool | str):
            raise OptionError(key, value, "use true or false")


def _fits(now: Any, was: Any) -> bool:
    if isinstance(was, float) and not isinstance(was, bool):
        return isinstance(now, int | float) and not isinstance(now, bool)
    return type(now) is type(was)
