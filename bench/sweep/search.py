"""`bench train -m sweeper=optuna`: propose settings, run them, propose better ones. Never part of a claim.

Optuna proposes by ask and tell; our launchers run. The search keeps no state of its own: its proposals follow
from its seed and from the results of earlier trials, so a search that is started again asks the same
questions, finds the answers in the records of the study, and goes on where it was stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import MISSING

from bench.analysis.claims import FILE
from bench.config.build import build
from bench.config.compose import compose_config, compose_runs
from bench.config.installation import check_installed
from bench.config.overrides import elements, parse, split_folders
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.sweep.sweep import launch

LOSS = "validation_loss_nats"
ENDED = ("finished", "failed", "diverged")


@dataclass(frozen=True)
class Trial:
    """One proposal with its runs, one per seed; `value` is None unless all of them have a result."""

    specs: Sequence[RunSpec]
    value: float | None

    @property
    def label(self) -> str:
        """Return the runs' name in tables, without the seed."""
        return self.specs[0].label.rpartition(" seed=")[0]


class OptunaSearch:
    """Search by Optuna's tree-structured Parzen estimator (TPE, Bergstra et al. 2011)."""

    @dataclass(frozen=True)
    class Options:
        """How many trials, what they optimise, and the seed of the proposals."""

        trials: int = MISSING
        at_once: int = MISSING
        metric: str = MISSING  # validation_loss_nats, or TASK/METRIC
        seed: int = MISSING

        def __post_init__(self) -> None:
            for key in ("trials", "at_once"):
                if getattr(self, key) < 1:
                    raise ConfigError(f"sweeper.{key}={getattr(self, key)}: use 1 or more")
            if self.metric != LOSS and self.metric.count("/") != 1:
                raise ConfigError(f"sweeper.metric={self.metric}: use {LOSS} or TASK/METRIC")

    def __init__(self, options: Options) -> None:
        self.options = options

    def run(self, overrides: Sequence[str], space: Sequence[Override]) -> Iterator[Trial]:
        """Yield every trial when it has ended; `at_once` trials are proposed and run together.

        Args:
            overrides: what all trials share; several seeds are runs of one trial, whose value is their mean.
            space: the keys to choose: `a,b`, `range(1,9)`, `interval(0,1)` or `tag(log,interval(1e-4,1))`.

        Raises:
            ConfigError: a key or setting is wrong, or a run goes on without this process.
        """
        check_installed("optuna", "sweeper=optuna")
        import optuna  # SQLAlchemy, for this command only

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if self.options.metric == LOSS and any(o.key_or_group == "strategy" for o in space):
            raise ConfigError(
                f"sweeper.metric={LOSS}: losses of different strategies cannot be compared; use TASK/METRIC"
            )
        keys = {override.key_or_group: _distribution(override) for override in space}
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=self.options.seed))
        for start in range(0, self.options.trials, self.options.at_once):
            n = min(self.options.at_once, self.options.trials - start)
            asked = [study.ask(keys) for _ in range(n)]
            proposed = [compose_runs([*overrides, *_words(trial.params)], multirun=True) for trial in asked]
            _wait([spec for specs in proposed for spec in specs])
            for trial, specs in zip(asked, proposed, strict=True):
                value = self._value(specs)
                study.tell(trial, value, None if value is not None else optuna.trial.TrialState.FAIL)
                yield Trial(specs, value)

    def _value(self, specs: Sequence[RunSpec]) -> float | None:
        """Return the mean over seeds, lower is better; None if a run has no result."""
        values = [self._of_run(spec) for spec in specs]
        known = [value for value in values if value is not None]
        return mean(known) if len(known) == len(values) else None

    def _of_run(self, spec: RunSpec) -> float | None:
        record = spec.recorded()
        if record is None or record.status != "finished":
            return None
        if self.options.metric == LOSS:
            losses = [p.validation_loss_nats for p in record.curve if p.validation_loss_nats is not None]
            return losses[-1] if losses else None
        task, _, metric = self.options.metric.partition("/")
        found = spec.results().get(task)
        scores = [score for score in found.scores if score.metric == metric] if found else []
        if not scores:
            return None
        best = max(scores, key=lambda score: score.n_labels or 0)
        return -best.value if best.higher_is_better else best.value


def is_search(overrides: Sequence[str]) -> bool:
    """Return whether a command line chooses a sweeper, which proposes runs instead of all combinations."""
    return any(word.startswith("sweeper=") and word != "sweeper=null" for word in overrides)


def search(overrides: Sequence[str]) -> Iterator[Trial]:
    """Do the exploratory search of a command line and yield its trials as they end.

    Raises:
        ConfigError: nothing is to be searched, a setting is wrong, or the study has claims.
    """
    words = split_folders(overrides)[1]
    given = parse(words)
    swept = [override for override in given if override.is_sweep_override()]
    fixed = [word for word in overrides if word not in words]  # the folders of the user's own YAML files
    fixed += [override.input_line or "" for override in given if not override.is_sweep_override()]
    composed = compose_config("config", fixed)
    named = {override.key_or_group for override in given}
    params = composed.hydra.sweeper.params or {}
    swept += parse([f"{key}={value}" for key, value in params.items() if key not in named])
    seeds = [override.input_line or "" for override in swept if override.key_or_group == "seed"]
    space = [override for override in swept if override.key_or_group != "seed"]
    if not space:
        raise ConfigError("sweeper=optuna: no key to search; add one: optim.lr_peak=interval(1e-4,1e-2)")
    first = compose_runs([*fixed, *seeds, *_firsts(space)], multirun=True)[0]
    if (first.records.parent / FILE).exists():
        raise ConfigError(f"study={first.study} has claims, and a search only explores; choose another study")
    return build(composed.sweeper, OptunaSearch, "sweeper").run([*fixed, *seeds], space)


def _firsts(space: Sequence[Override]) -> list[str]:
    """Return an override for each key, to check that the keys exist before anything runs."""
    found = []
    for override in space:
        bounds = _bounds(override)
        found.append(f"{override.key_or_group}={bounds[0]:g}" if bounds else elements(override)[0])
    return found


def _bounds(override: Override) -> tuple[float, float] | None:
    """Return the ends of an interval or a range; None for a list of choices."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return value.start or 0.0, value.end or 0.0
    if isinstance(value, RangeSweep):
        numbers = [*value.range()]
        return float(numbers[0]), float(numbers[-1])
    return None


def _distribution(override: Override) -> Any:
    """Return the values that Optuna may propose for a key; a choice is proposed as a whole override.

    Raises:
        ConfigError: the bounds are in the wrong order, or a logarithmic interval does not lie above 0.
    """
    from optuna import distributions

    value, bounds = override.value(), _bounds(override)
    if bounds is None or not isinstance(value, IntervalSweep | RangeSweep):
        return distributions.CategoricalDistribution(elements(override))
    low, high = bounds
    try:
        if isinstance(value, RangeSweep):
            step = float(value.step)
            if low.is_integer() and step.is_integer():
                return distributions.IntDistribution(int(low), int(high), step=int(step))
            return distributions.FloatDistribution(low, high, step=step)
        if "int" in value.tags:
            return distributions.IntDistribution(int(low), int(high), log="log" in value.tags)
        return distributions.FloatDistribution(low, high, log="log" in value.tags)
    except ValueError as error:
        raise ConfigError(f"{override.input_line}: {error}") from error


def _words(params: Mapping[str, Any]) -> list[str]:
    """Return a proposal as overrides; numbers have four digits, so that a run's name stays short."""
    numbers = {key: f"{x:.4g}" if isinstance(x, float) else x for key, x in params.items()}
    return [x if isinstance(params[key], str) else f"{key}={x}" for key, x in numbers.items()]


def _wait(specs: Sequence[RunSpec]) -> None:
    """Do the runs to their end.

    Raises:
        KeyboardInterrupt: they were stopped.
        ConfigError: a run goes on elsewhere, so its result is not known yet.
    """
    statuses = launch(list({spec.run_id: spec for spec in specs}.values()))
    for spec in specs:
        status = statuses[spec.run_id]
        if status == "interrupted":
            raise KeyboardInterrupt
        if status not in ENDED:
            raise ConfigError(f"{spec.label}: {status}; start the search again when this run has ended")
