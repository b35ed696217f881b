"""`bench tune`: an equal search over learning rates for all strategies of an experiment -> conf/tuned/.

The runs are ordinary runs of the study `<study>_tuning`. Nothing else is kept: a command that is given again
finds the losses in the records and goes on where it was stopped. An experiment then takes its rates by
`override /tuned: <study>` in its defaults.
"""

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import yaml
from annotated_types import Interval, MinLen
from omegaconf import MISSING

from bench.config.bounds import check
from bench.config.compose import SHARED, TUNED, compose_runs, refuse_several_studies, tuned_rates
from bench.config.identity import identity_of, science_of
from bench.config.overrides import parse, split_folders
from bench.config.run_spec import RunSpec, now
from bench.config.schema import COMPUTE, Seed
from bench.config.search_path import find_choice, searching
from bench.data.prepare import prepare
from bench.errors import ConfigError
from bench.models import flops
from bench.records import read_records, write_atomically
from bench.sweep.sweep import launch

ENDED = ("finished", "diverged")
TUNING = "_tuning"  # what is added to a study's name
LEAST_SHARE = 0.25  # of the study's compute; rates of much shorter runs do not transfer
LEAST_RATES = 3  # fewer have no optimum between their edges
Decay = Annotated[float, Interval(ge=0, le=1000)]


@dataclass
class Tune:
    """Settings of the search, in conf/tune.yaml."""

    n_rates: Annotated[int, Interval(ge=LEAST_RATES, le=20)] = MISSING
    most_extensions: Annotated[int, Interval(ge=0, le=20)] = MISSING
    seeds: Annotated[list[Seed], MinLen(1)] = MISSING
    share: Annotated[float, Interval(ge=LEAST_SHARE, le=1)] = MISSING
    weight_decay: list[Decay] = field(default_factory=list)


@dataclass(frozen=True, order=True)
class Trial:
    """One setting of the optimizer; `weight_decay` is None where it is not tuned."""

    lr_peak: float
    weight_decay: float | None = None

    @property
    def settings(self) -> dict[str, float]:
        """Return the settings that the trial changes."""
        found = {"lr_peak": self.lr_peak}
        return found if self.weight_decay is None else found | {"weight_decay": self.weight_decay}


@dataclass(frozen=True)
class Choice:
    """The best trial of a strategy by the mean validation loss over seeds, and how far it can be trusted."""

    strategy: str
    losses: Mapping[Trial, float]  # means over seeds in nats per predicted token; infinite if a seed diverged
    runs: Sequence[str]  # ids
    unigram_nats: (
        float | None
    )  # entropy of the training tokens; None where the loss cannot be held against it

    @property
    def best(self) -> Trial:
        """Return the trial with the lowest loss, the lower rate of equal ones."""
        return min(
            self.losses, key=lambda trial: (self.losses[trial], trial.lr_peak, trial.weight_decay or 0.0)
        )

    @property
    def edge(self) -> int:
        """Return -1 if the lowest rate is the best, 1 if the highest is, else 0."""
        rates = [trial.lr_peak for trial in self.losses]
        return (self.best.lr_peak == max(rates)) - (self.best.lr_peak == min(rates))

    @property
    def is_past_unigram(self) -> bool | None:
        """Return whether the best loss is below the entropy of single tokens; None where undefined."""
        return None if self.unigram_nats is None else self.losses[self.best] < self.unigram_nats

    @property
    def warnings(self) -> list[str]:
        """Return why the choice may not be the best rate of the study."""
        found = []
        if self.edge:
            side = "highest" if self.edge > 0 else "lowest"
            found.append(f"the {side} rate is the best one, and tune.most_extensions allows no further rate")
        if self.is_past_unigram is False:
            found.append("the loss is above the entropy of single tokens; raise tune.share")
        if self.is_past_unigram is None:
            found.append("its loss cannot be held against the entropy of single tokens")
        return found


def tune(words: Sequence[str], settings: Tune, say: Callable[[str], None]) -> list[Choice]:
    """Do the runs of the search and write the rates.

    Args:
        words: overrides that choose the experiment and may change its runs.
        settings: of the search.
        say: is given each line of progress.

    Raises:
        ConfigError: a setting is wrong, a run failed, or the rates of a study that has records would change.
        KeyboardInterrupt: the runs were stopped.
    """
    check(settings, "tune")
    folders, words = split_folders(words)
    with searching(folders):
        return _tune(words, settings, say)


def _tune(words: Sequence[str], settings: Tune, say: Callable[[str], None]) -> list[Choice]:
    study = compose_runs([*words, f"{TUNED}={SHARED}"], multirun=True)
    refuse_several_studies(study)
    command = shlex.join(["bench", "tune", *words])
    bases = [replace(base, command=command) for base in _bases(study)]
    _check(settings, study)
    target = _file(words, study[0].study)
    center, above, below = bases[0].config["optim"]["lr_peak"], 0, 0
    low = -(settings.n_rates // 2)
    decays: Sequence[float | None] = settings.weight_decay or [None]
    for extension in range(settings.most_extensions + 1):
        exponents = range(low - below, low + settings.n_rates + above)
        trials = [Trial(float(f"{center * 2.0**e:.6g}"), decay) for e in exponents for decay in decays]
        choices = _search(bases, trials, settings)
        edges = {choice.edge for choice in choices}
        if not edges - {0} or extension == settings.most_extensions:
            break
        below, above = below + (-1 in edges), above + (1 in edges)
        say(f"a best rate lies at the edge, so the rates are extended for all strategies ({extension + 1})")
    _write(target, bases[0], choices, settings)
    say(f"rates: {target}")
    return choices


def _check(settings: Tune, study: Sequence[RunSpec]) -> None:
    for key in ("seeds", "weight_decay"):
        values = getattr(settings, key)
        if len(set(values)) < len(values):
            raise ConfigError(f"tune.{key}={values}: give each value once")
    if shared := sorted({spec.seed for spec in study} & set(settings.seeds)):
        raise ConfigError(f"tune.seeds: {shared[0]} is a seed of the study; choose others")


def _bases(study: Sequence[RunSpec]) -> list[RunSpec]:
    """Return a run of each strategy that is pretrained: of the smallest model, with the largest compute.

    Raises:
        ConfigError: none is pretrained, or a strategy has several variants, whose best rates may differ.
    """
    trained = [spec for spec in study if spec.config["strategy"]["modality"] != "none"]
    if not trained:
        raise ConfigError("bench tune: no strategy of this experiment is pretrained; name another one")
    if len({spec.config["optim"]["lr_peak"] for spec in trained}) > 1:
        raise ConfigError(
            "optim.lr_peak differs between the experiment's runs; give one value to search around"
        )
    found = {}
    for strategy in dict.fromkeys(spec.strategy for spec in trained):
        own = [spec for spec in trained if spec.strategy == strategy]
        if len(variants := list(dict.fromkeys(_variant(spec) for spec in own))) > 1:
            raise ConfigError(
                f"{strategy} has {len(variants)} variants, {variants[0] or 'the usual one'} and "
                f"{variants[1]}; choose one on the command line"
            )
        smallest = min(map(_parameters, own))
        found[strategy] = max((spec for spec in own if _parameters(spec) == smallest), key=_compute)
    return list(found.values())


def _variant(spec: RunSpec) -> str:
    """Return a run's variant without its rate, which is what is tuned."""
    parts = spec.variant.split()
    return " ".join(part for part in parts if not part.startswith(("optim.lr_peak=", "optim.weight_decay=")))


def _parameters(spec: RunSpec) -> int:
    config = spec.typed()
    return flops.text_parameters(config.model, config.tokenizer.vocab_size)


def _compute(spec: RunSpec) -> float:
    return float(max(spec.config["budget"][key] or 0 for key in COMPUTE))


def _search(bases: Sequence[RunSpec], trials: Sequence[Trial], settings: Tune) -> list[Choice]:
    """Do all trials of all strategies that have no record yet."""
    runs = {
        (base.strategy, trial): [tuning_run(base, trial, seed, settings.share) for seed in settings.seeds]
        for base in bases
        for trial in trials
    }
    specs = [spec for own in runs.values() for spec in own]
    statuses = launch(specs)
    if "interrupted" in statuses.values():
        raise KeyboardInterrupt
    if lost := [spec for spec in specs if statuses[spec.run_id] not in ENDED]:
        state = statuses[lost[0].run_id]
        raise ConfigError(
            f"{lost[0].label}: {state} ({lost[0].why_lost() or 'no record'}); then start `bench tune` again"
        )
    return [
        Choice(
            base.strategy,
            {trial: mean(map(final_loss, runs[base.strategy, trial])) for trial in trials},
            [spec.run_id for trial in trials for spec in runs[base.strategy, trial]],
            _unigram_nats(runs[base.strategy, trials[0]][0]),
        )
        for base in bases
    ]


def tuning_run(base: RunSpec, trial: Trial, seed: int, share: float) -> RunSpec:
    """Return the run of a trial: the study's run with this setting and seed, less compute and no task."""
    config = deepcopy(base.config)
    budget = {key: config["budget"][key] and _part(config["budget"][key], share) for key in COMPUTE}
    config["budget"] |= budget
    config["optim"] |= trial.settings
    config |= {"seed": seed, "study": f"{base.study}{TUNING}", "task": {}}
    science = science_of(config, base.strategy, base.corpus)
    names = [_variant(base), *(f"optim.{key}={value:g}" for key, value in trial.settings.items())]
    compute = ",".join(f"{key}={value}" for key, value in budget.items() if value)
    return replace(
        base,
        run_id=identity_of(science),
        study=config["study"],
        budget=f"{(base.budget or '').partition('[')[0]}[{compute}]",
        variant=" ".join(filter(None, names)),
        seed=seed,
        config=config,
    )


def _part(amount: float, share: float) -> float:
    return math.ceil(amount * share) if isinstance(amount, int) else amount * share


def final_loss(spec: RunSpec) -> float:
    """Return a run's last validation loss in nats per predicted token; infinite if it diverged."""
    record = spec.recorded()
    losses = (
        [point.validation_loss_nats for point in record.curve if point.validation_loss_nats] if record else []
    )
    return losses[-1] if losses and record and record.status == "finished" else math.inf


def _unigram_nats(spec: RunSpec) -> float | None:
    """Return the entropy of a run's training tokens, which a model that ignores the context can reach.

    None for a strategy whose loss is not the likelihood of tokens of text.
    """
    from bench.config.build import find_class
    from bench.objectives.base import Objective  # torch, after the runs

    kinds = find_class(spec.config["strategy"], Objective, "strategy").likelihoods
    if not isinstance(kinds, frozenset) or not kinds or spec.config["strategy"]["modality"] != "text":
        return None  # a mixture's loss is a sum over its parts
    tokens = prepare(spec).text.train(spec.typed().budget.unique_bytes)
    counts: Counter[int] = Counter()
    for start in range(0, tokens.n_tokens, 2**22):
        ids, n = np.unique(tokens.read(start, min(start + 2**22, tokens.n_tokens)), return_counts=True)
        counts.update(dict(zip(ids.tolist(), n.tolist(), strict=True)))
    shares = np.array(list(counts.values())) / tokens.n_tokens
    return float(-(shares * np.log(shares)).sum())


def _file(words: Sequence[str], study: str) -> Path:
    """Return the file of the rates, in the folder of settings that has the experiment."""
    experiments = [o.value() for o in parse(words) if o.key_or_group == "experiment"]
    path = find_choice("experiment", str(experiments[-1])) if experiments else None
    if path is None:
        raise ConfigError("name the experiment whose strategies are tuned: bench tune experiment=NAME")
    return path.parents[1] / TUNED / f"{study}.yaml"


def _write(target: Path, base: RunSpec, choices: Sequence[Choice], settings: Tune) -> None:
    """Write the rates; those of a study that has records are frozen.

    Raises:
        ConfigError: a strategy has diverged at every rate, or frozen rates would change.
    """
    if lost := [choice.strategy for choice in choices if math.isinf(choice.losses[choice.best])]:
        raise ConfigError(
            f"{lost[0]} diverged at every rate; lower optim.lr_peak and start `bench tune` again"
        )
    new = {choice.strategy: choice.best.settings for choice in choices}
    old = tuned_rates(target.stem) if target.exists() else None
    if old == new:
        return
    records, _ = read_records(base.records)
    if old is not None and records:
        raise ConfigError(
            f"{target}: study {base.study} has {len(records)} runs, so its rates are frozen; remove the file "
            "to tune anew"
        )
    entries = {choice.strategy: _entry(choice) for choice in choices}
    share = {"share": settings.share, "seeds": settings.seeds}
    node = {"study": f"{base.study}{TUNING}", "written": now().partition("T")[0]}
    header = "# Written by `bench tune`; losses are means over seeds in nats per predicted token.\n"
    target.parent.mkdir(exist_ok=True)
    write_atomically(target, header + yaml.safe_dump(node | share | {"strategies": entries}, sort_keys=False))


def _entry(choice: Choice) -> dict[str, Any]:
    losses: list[dict[str, float | None]] = [
        {**trial.settings, "validation_loss_nats": None if math.isinf(loss) else round(loss, 6)}
        for trial, loss in sorted(choice.losses.items(), key=lambda pair: _order(pair[0]))
    ]
    about = {"at_edge": bool(choice.edge), "past_unigram": choice.is_past_unigram}
    return choice.best.settings | about | {"losses": losses, "runs": list(choice.runs)}


def table(choices: Sequence[Choice]) -> list[str]:
    """Return the losses by rate and strategy as lines; `*` marks the best rate and `!` one at an edge."""
    trials = sorted({trial for choice in choices for trial in choice.losses}, key=_order)
    width = max(len("optim.lr_peak"), *(len(choice.strategy) for choice in choices))
    names = [f"{t.lr_peak:g}" + ("" if t.weight_decay is None else f"/{t.weight_decay:g}") for t in trials]
    lines = [f"{'optim.lr_peak':<{width}}  " + "  ".join(f"{name:>10}" for name in names)]
    for choice in choices:
        cells = (_cell(choice, trial) for trial in trials)
        lines.append(f"{choice.strategy:<{width}}  " + "  ".join(f"{cell:>10}" for cell in cells))
    return [*lines, *_notes(choices)]


def _order(trial: Trial) -> tuple[float, float]:
    return trial.lr_peak, trial.weight_decay or 0.0


def _cell(choice: Choice, trial: Trial) -> str:
    loss = choice.losses[trial]
    mark = "" if trial != choice.best else "!" if choice.edge else "*"
    return ("diverged" if math.isinf(loss) else f"{loss:.4f}") + mark


def _notes(choices: Iterable[Choice]) -> list[str]:
    return [f"{choice.strategy}: {text}" for choice in choices for text in choice.warnings]
