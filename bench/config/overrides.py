"""Parse the overrides of a command line, and explain in one line what Hydra refuses. No torch."""

import itertools
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue

from bench.config.bounds import as_yaml
from bench.config.search_path import choices, is_group
from bench.errors import ConfigError

MOST_RUNS = 10_000  # of a sweep; a larger number is a typing error
STEM = re.compile(r"\w[\w.-]*")  # of a choice's file
SEARCH_PATH = "hydra.searchpath"
SEVERAL = ("task", "logger", "callbacks", "figure")  # groups that take a list of choices
_PLACE = "set paths.experiments and paths.reports"
_LOG = "loggers are chosen by logger=NAME, and `bench status` shows progress"
INSTEAD = {  # settings of Hydra and of Lightning's Trainer that have no effect here, or another name
    "hydra/launcher": "choose launcher=NAME",
    "hydra.launcher": "set launcher.*",
    "hydra/sweeper": "-m runs the whole grid; an exploratory search is sweeper=optuna",
    "hydra.sweeper.max_batch_size": "set launcher.workers",
    "hydra.sweeper.params": "sweep the key itself: -m KEY=A,B",
    "hydra.sweeper": "-m runs the whole grid; an exploratory search is sweeper=optuna",
    "hydra/job_logging": _LOG,
    "hydra.job_logging": _LOG,
    "hydra/hydra_logging": _LOG,
    "hydra.hydra_logging": _LOG,
    "hydra.run": _PLACE,
    "hydra.sweep": _PLACE,
    "hydra.output_subdir": _PLACE,
    "hydra.job.name": "set study=NAME",
    "hydra.job.chdir": "runs never change the working folder",
    "hydra.job": "set variables in the shell, and study=NAME",
    "hydra.mode": "add -m",
    "hydra.verbose": "--traceback shows where an error comes from",
    "hydra/callbacks": "choose callbacks=NAME",
    "hydra.callbacks": "choose callbacks=NAME",
    "hydra": "Hydra only composes the settings; docs/hydra.md lists what works",
    "logger.wandb_mode": "set logger.wandb.mode",
    "logger.wandb_project": "set logger.wandb.project",
    "logger.log_every_n_steps": "set trainer.log_every_n_steps",
    "tuned.strategies": "set optim.lr_peak",
    "paths.config_dirs": "give the folder by --config-dir",
    "trainer.max_steps": "set budget.tokens",
    "trainer.max_epochs": "set budget.tokens",
    "trainer.limit_train_batches": "set budget.tokens",
    "trainer.fast_dev_run": "set budget.tokens to a few thousand",
    "trainer.overfit_batches": "set budget.unique_bytes and budget.tokens",
    "trainer.limit_val_batches": "set trainer.validation_batches, which is part of a run's id",
    "trainer.val_check_interval": "set trainer.n_validations",
    "trainer.check_val_every_n_epoch": "set trainer.n_validations",
    "trainer.num_nodes": "set trainer.nodes",
    "trainer.strategy": "choose trainer=ddp or trainer=fsdp",
    "trainer.gradient_clip_val": "set optim.clip_norm",
    "trainer.logger": "choose logger=NAME",
    "trainer.callbacks": "choose callbacks=NAME",
    "trainer.default_root_dir": _PLACE,
    "trainer.enable_checkpointing": "set trainer.checkpoint_every_s",
    "trainer.deterministic": "on a CPU it is always on",
}
FLAGS = {  # of Hydra's own command line, that have no effect here
    "--config-name": "a study is experiment=NAME",
    "-cn": "a study is experiment=NAME",
    "--config-path": "--config-dir DIR adds YAML files of your own",
    "-cp": "--config-dir DIR adds YAML files of your own",
    "--package": "--cfg prints all settings of a run",
    "-p": "--cfg prints all settings of a run",
    "--info": "--cfg prints the settings, --help the choices",
    "-i": "--cfg prints the settings, --help the choices",
    "--run": "leave it out; only -m starts several runs",
    "-r": "leave it out; only -m starts several runs",
    "--hydra-help": "docs/hydra.md lists what works",
    "--experimental-rerun": "the same command resumes a run",
}


def refuse_flag(flag: str) -> None:
    """Refuse a flag of Hydra that would be ignored.

    Raises:
        ConfigError: Names what does the same here.
    """
    if instead := FLAGS.get(flag.partition("=")[0]):
        raise ConfigError(f"{flag} has no effect here: {instead}")


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides as Hydra does.

    Raises:
        ConfigError: an override cannot be read, has no effect here, names no file of its group, or removes a
            required setting.
    """
    try:
        parsed = list(OverridesParser.create().parse_overrides(list(overrides)))
    except HydraException as error:
        raise ConfigError(explain(error)) from error
    for override in parsed:
        _refuse_without_effect(override)
        if override.is_delete() and not override.key_or_group.startswith("task"):
            raise ConfigError(f"{override.input_line}: every run needs this key; only tasks can be removed")
        group, value = override.key_or_group, override.value()
        if not group:
            raise ConfigError(f"cannot read {override.input_line!r}: write key=value")
        if is_group(group) and value is None:
            raise ConfigError(unknown_choice(group, "null"))
        if is_group(group) and isinstance(value, list) and group not in SEVERAL:
            raise ConfigError(f"{group} takes one choice; to compare several, sweep: -m {group}=a,b")
        for choice in value if isinstance(value, list) else [value]:
            if not is_group(group) or (isinstance(choice, str) and STEM.fullmatch(choice)):
                continue  # a path would lead to other files
            if isinstance(value, list) or isinstance(choice, str):
                raise ConfigError(unknown_choice(group, as_yaml(choice).strip("'")))
    return parsed


def _refuse_without_effect(override: Override) -> None:
    """Refuse settings of Hydra and Lightning that would be ignored, and name what does the same here."""
    key = override.key_or_group
    if override.package is not None and not override.is_add():  # a part of a mixture may be added
        raise ConfigError(f"{override.input_line}: a choice cannot move to another package; write {key}=NAME")
    if instead := _instead(key):
        raise ConfigError(f"{key} has no effect here: {instead}")
    if key == "trainer.devices" and (override.value() in ("auto", -1) or isinstance(override.value(), list)):
        raise ConfigError(
            f"{override.input_line}: give the number of processes; CUDA_VISIBLE_DEVICES chooses the GPUs"
        )


def _instead(key: str) -> str | None:
    """Return what to use in place of a key that has no effect; None for other keys."""
    parents = (key[:end] for end in range(len(key), 0, -1) if end == len(key) or key[end] in "./")
    return next((INSTEAD[parent] for parent in parents if parent in INSTEAD), None)


def refuse_in_experiment(path: Path) -> None:
    """Refuse an experiment's settings of Hydra that would be ignored; only its sweep is used.

    Raises:
        ConfigError: Names the file, the key and what does the same here.
    """
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(node, dict)
    hydra = node.get("hydra") or {}
    keys = [f"hydra.{key}" for key in hydra if key != "sweeper"]
    keys += [f"hydra.sweeper.{key}" for key in hydra.get("sweeper") or {} if key != "params"]
    entries = (entry for entry in node.get("defaults") or [] if isinstance(entry, dict))
    groups = [str(group).split()[-1].strip("/") for entry in entries for group in entry]
    keys += [group for group in groups if group.startswith("hydra/")]
    if keys:
        raise ConfigError(f"{path}: {keys[0]} has no effect here: {_instead(keys[0])}")


def split_folders(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the folders that `hydra.searchpath=[...]` names, and the other overrides.

    Raises:
        ConfigError: The value is not a list of texts.
    """
    folders: list[str] = []
    others = []
    for word in words:
        if word.lstrip("+").partition("=")[0].strip() != SEARCH_PATH:
            others.append(word)
            continue
        try:
            value = OverridesParser.create().parse_override(word).value()
        except HydraException as error:
            raise ConfigError(explain(error)) from error
        if not isinstance(value, list) or not all(isinstance(folder, str) for folder in value):
            raise ConfigError(f"{word}: give a list of folders, such as {SEARCH_PATH}=[my_conf]")
        folders += value
    return folders, others


def elements(override: Override) -> list[str]:
    """Return the values of a sweep axis, each as an override.

    Raises:
        ConfigError: the values cannot be listed.
    """
    key, value = override.get_key_element(), override.value()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if isinstance(value, Glob) and is_group(override.key_or_group):
        return [f"{key}={choice}" for choice in value.filter(choices(override.key_or_group))]
    try:
        values = itertools.islice(override.sweep_string_iterator(), MOST_RUNS + 1)  # a range may be infinite
        return [f"{key}={value}" for value in values]
    except (HydraException, ValueError, ArithmeticError) as error:  # glob(*), range(0,9,0), range(nan)
        raise ConfigError(f"{override.input_line}: list the values, such as {key}=a,b") from error


def is_value(override: Override) -> bool:
    """Return whether the override replaces one value of a run's config."""
    is_change = override.type is OverrideType.CHANGE and override.package is None
    return is_change and not is_choice(override) and override.key_or_group.split(".")[0] != "hydra"


def is_choice(override: Override) -> bool:
    """Return whether the override chooses a file of a group; a mapping is merged into the chosen file."""
    return is_group(override.key_or_group) and not isinstance(override.value(), dict)


def plain_settings(words: Sequence[str], **defaults: str | None) -> dict[str, str]:
    """Parse key=value without Hydra, which would read an id of digits as a number and [MASK] as a list.

    Args:
        words: from the command line.
        defaults: default of each key; None if the key is required.

    Raises:
        ConfigError: a key is unknown or missing.
    """
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    missing = [key for key, default in defaults.items() if default is None and not given.get(key)]
    wrong = [word for word in words if word.partition("=")[0] not in defaults]
    if missing or wrong:
        problem = f"{wrong[0]!r} is not a setting" if wrong else f"{missing[0]}=... is missing"
        raise ConfigError(f"{problem}; use {', '.join(f'{key}=' for key in defaults)}")
    return {key: default or "" for key, default in defaults.items()} | given


def explain(error: Exception) -> str:
    """Return in one line what an error of Hydra or OmegaConf means and what to change."""
    cause = error.__cause__ if error.__cause__ is not None else error
    if isinstance(error, OverrideParseException):
        quoted = "with any other characters than letters of ASCII, digits and -_./:+%@ in quotes"
        return f"cannot read {error.override!r}: write key=value, {quoted}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value; add {error.full_key}=VALUE"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        return f"{cause.full_key}: there is no such key; {_nearest(cause)}"
    choice = re.search(r"Could not (?:find|load) '(.*)/([^/']*)'", str(error))
    if choice:
        return unknown_choice(choice[1], choice[2])
    # Hydra's own text: the first line of the message and of its cause, with the key if neither has it.
    lines = [(str(part).strip() or type(part).__name__).splitlines()[0] for part in (error, cause)]
    text = ": ".join(dict.fromkeys(lines)).replace("Error merging override ", "")
    key = getattr(cause, "full_key", None)
    return text if not key or key in text else f"{key}: {text}"


def unknown_choice(group: str, name: str) -> str:
    """Return the message for a file that a config group does not have."""
    names = choices(group)
    listed = f"choose one of {', '.join(names)}" if names else f"there is no group {group}"
    return f"{group}={name}: no such choice; {listed}"


def _nearest(error: ConfigAttributeError | ConfigKeyError) -> str:
    parent = error.parent_node
    keys = [str(key) for key in parent if key != "hydra"] if isinstance(parent, DictConfig) else []
    close = get_close_matches(str(error.key), keys, n=1)
    return f"did you mean {close[0]}?" if close else f"choose one of {', '.join(keys)}"
