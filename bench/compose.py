"""Command line -> runs. Hydra composes, the sweep is expanded, every run gets its identity. No torch.

A run's id is the hash of its science: what could change a number. Where it runs, where its files lie
and how it is logged are left out.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench import schema
from bench.complaints import explain, unknown_choice
from bench.errors import ConfigError
from bench.records import RunRecord, Status

CONF = Path(__file__).resolve().parent.parent / "conf"
NOT_SCIENCE = ("study", "trainer", "logger", "launcher", "paths")
PRETRAINING_ONLY = ("budget", "optim")
LABELLED = ("strategy", "model", "budget")  # axes whose overrides show in their own name


@dataclass(frozen=True)
class RunSpec:
    """One run to do: its axes, as named in tables, and its whole config as plain containers."""

    run_id: str
    study: str
    strategy: str
    model: str
    budget: str | None
    variant: str
    seed: int
    corpus: dict[str, str]
    config: dict[str, Any]

    @property
    def label(self) -> str:
        """How the run is called on screen."""
        parts = [self.strategy, self.model, self.budget, self.variant, f"seed={self.seed}"]
        return " ".join(part for part in parts if part)

    @property
    def science(self) -> dict[str, Any]:
        """The part of the config that may change a number."""
        return science_of(self.config)

    @property
    def folder(self) -> Path:
        """Where the run works; may be deleted once its record is written."""
        return self._experiment / "runs" / self.run_id

    @property
    def records(self) -> Path:
        """Where the records of its study lie."""
        return self._experiment / "records"

    @property
    def _experiment(self) -> Path:
        return Path(self.config["paths"]["experiments"]) / self.study

    def typed(self) -> schema.Config:
        """The config as checked dataclasses."""
        merged = OmegaConf.merge(OmegaConf.structured(schema.Config), self.config)
        config = OmegaConf.to_object(merged)
        assert isinstance(config, schema.Config)
        return config

    def record(self, status: Status, reason: str | None = None) -> RunRecord:
        """A record of this run that holds its axes and no numbers yet."""
        axes = {key: getattr(self, key) for key in vars(self) if key != "config"}
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        return RunRecord(**axes, status=status, reason=reason, config=self.science, started_at=started_at)

    def to_json(self) -> str:
        """The run as text, for a worker process."""
        return json.dumps(asdict(self))


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose one config by Hydra, the `hydra` node included.

    Raises:
        ConfigError: whatever Hydra or OmegaConf refuses, in one line.
    """
    schema.register()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose(name, overrides=list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, CONF)) from error
    experiment = composed.hydra.runtime.choices.get("experiment")
    if experiment and not (CONF / "experiment" / f"{experiment}.yaml").exists():  # optional: Hydra is silent
        raise ConfigError(unknown_choice("experiment", experiment, CONF))
    return composed


def compose_runs(overrides: Sequence[str], *, multirun: bool) -> list[RunSpec]:
    """The runs that a command line asks for, each once, in the order of the sweep.

    Args:
        overrides: Hydra overrides; with `multirun`, `a=1,2` sweeps and `hydra.sweeper.params` of the
            experiment are expanded as well (the command line wins).
        multirun: a sweep rather than one run.

    Raises:
        ConfigError: an unknown choice, key or type, or a sweep without `-m`.
    """
    given = _parse(overrides)
    if not multirun and any(o.is_sweep_override() for o in given):
        raise ConfigError("several values for one key are a sweep: add -m")
    fixed = [o.input_line or "" for o in given if not o.is_sweep_override()]
    base = compose_config("config", fixed)
    if not multirun:
        return [_spec(base, fixed)]
    named = {o.key_or_group for o in given}
    params = base.hydra.sweeper.params or {}
    swept = [o for o in given if o.is_sweep_override()]
    swept += _parse([f"{key}={value}" for key, value in params.items() if key not in named])
    runs: dict[str, RunSpec] = {}
    for values in itertools.product(*(_elements(o) for o in swept)):
        spec = _spec(compose_config("config", [*fixed, *values]), [*fixed, *values])
        runs.setdefault(spec.run_id, spec)  # strategies that ignore an axis appear once
    if not runs:
        raise ConfigError("the sweep holds no run; give every key at least one value")
    return list(runs.values())


def science_of(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that may change a number; without pretraining, budget and optimizer cannot."""
    trainer = config["trainer"]
    science = {key: value for key, value in config.items() if key not in NOT_SCIENCE}
    science["precision"] = trainer["precision"]
    if config["strategy"]["modality"] == "none":
        return {key: value for key, value in science.items() if key not in PRETRAINING_ONLY}
    # When losses are measured, and on how much, stands in the record's curve.
    return science | {"validation": {k: trainer[k] for k in ("n_validations", "validation_batches")}}


def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        parsed = list(OverridesParser.create().parse_overrides(list(overrides)))
    except HydraException as error:
        raise ConfigError(explain(error, CONF)) from error
    for override in parsed:
        if override.is_delete() and not override.key_or_group.startswith("task"):
            raise ConfigError(f"{override.input_line}: every run needs it; only tasks can be left out")
        group = override.key_or_group
        if (CONF / group).is_dir() and override.value() is None:
            raise ConfigError(unknown_choice(group, "null", CONF))
    return parsed


def _elements(override: Override) -> list[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    try:
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:  # glob(*)
        raise ConfigError(f"{override.input_line}: list the values, such as {key}=a,b") from error


def _spec(composed: DictConfig, overrides: Sequence[str]) -> RunSpec:
    choices = composed.hydra.runtime.choices
    for axis in (*LABELLED, "corpus/text", "corpus/pairs"):
        if axis not in choices:
            raise ConfigError(f"{axis} takes one choice; to compare several, sweep: -m {axis}=a,b")
    check_types(composed, overrides)
    try:
        config = OmegaConf.to_container(
            OmegaConf.masked_copy(composed, [str(k) for k in composed if k != "hydra"]),
            resolve=True,
            throw_on_missing=True,
        )
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, CONF)) from error
    assert isinstance(config, dict)
    plain: dict[str, Any] = {str(key): value for key, value in config.items()}
    _check_shape(plain)
    science = science_of(plain)
    try:
        text = json.dumps(science, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise ConfigError("a setting is nan or inf; give it a finite number") from error
    names = {axis: _name(str(choices[axis]), axis, overrides) for axis in LABELLED}
    return RunSpec(
        run_id=hashlib.sha256(text.encode()).hexdigest()[:12],
        study=str(plain["study"]),
        strategy=names["strategy"],
        model=names["model"],
        budget=names["budget"] if "budget" in science else None,
        variant=_variant(overrides, science),
        seed=int(plain["seed"]),
        corpus={kind: str(choices[f"corpus/{kind}"]) for kind in ("text", "pairs")},
        config=plain,
    )


def _check_shape(config: Mapping[str, Any]) -> None:
    """Refuse what would break before `schema.validate` or `bench.build` could name it."""
    if not re.fullmatch(r"\w[\w.-]*", config["study"]):
        raise ConfigError(f"study={config['study']!r} names a folder: use letters, digits, '_', '.', '-'")
    parts = {"strategy": config["strategy"]}
    parts |= {f"corpus.{kind}": node for kind, node in config["corpus"].items()}
    parts |= {f"task.{name}": node for name, node in config["task"].items()}
    for key, node in parts.items():
        if not isinstance(node, dict):
            group = "task" if key.startswith("task.") else key.replace(".", "/")
            raise ConfigError(f"{key}={node!r} is no set of options; choose one by {group}=NAME")


def _name(choice: str, axis: str, overrides: Sequence[str]) -> str:
    """A choice with what the command line changed in it: `mlm[mask_rate=0.15]`."""
    changed = [o.removeprefix(f"{axis}.") for o in overrides if o.startswith(f"{axis}.")]
    return f"{choice}[{','.join(changed)}]" if changed else choice


def _variant(overrides: Sequence[str], science: Mapping[str, Any]) -> str:
    """Every other change that may change a number, so that no table takes its runs for repeats of a cell."""
    roots = {o: re.split("[./=]", o.lstrip("+~"))[0] for o in overrides if not o.startswith("task=")}
    return ",".join(o for o, root in roots.items() if root in science and root not in (*LABELLED, "seed"))


def check_types(composed: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse an override of a pluggable part whose type differs from the YAML's own value.

    Their `Options` dataclasses are checked again where they are built; this needs no torch.

    Raises:
        ConfigError: names the key, the value and the type that the YAML has.
    """
    deep = [o for o in _parse(overrides) if "." in o.key_or_group and not o.is_add()]
    pluggable = [o for o in deep if o.key_or_group.split(".")[0] in ("strategy", "task", "corpus")]
    if not pluggable:
        return
    original = compose_config("config", [o for o in overrides if o not in [p.input_line for p in pluggable]])
    for override in pluggable:
        key = override.key_or_group
        was, now = OmegaConf.select(original, key), OmegaConf.select(composed, key)
        if was is not None and now is not None and not _fits(now, was):
            wanted = type(was).__name__.replace("ListConfig", "list").replace("DictConfig", "mapping")
            raise ConfigError(f"{key}={now!r}: expected {wanted}, such as {was!r}")


def _fits(now: Any, was: Any) -> bool:
    if isinstance(was, float) and not isinstance(was, bool):
        return isinstance(now, int | float) and not isinstance(now, bool)
    return type(now) is type(was)
