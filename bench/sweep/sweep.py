"""Run a sweep: validate all runs, skip those already done and give the others to the launcher.

This process never imports torch.
"""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.analysis.claims import Sweep, plan, read_claims
from bench.config.build import build
from bench.config.compose import compose_evaluations, compose_runs, refuse_several_studies
from bench.config.installation import check_installed
from bench.config.run_spec import RunSpec
from bench.config.schema import Config
from bench.data.prepare import prepare
from bench.data.pretrained_files import CheckpointError
from bench.errors import ConfigError
from bench.models import flops
from bench.records import write_atomically
from bench.sweep import locks
from bench.sweep.launchers.base import Launcher
from bench.sweep.progress import Display
from bench.sweep.validate import check_settings
from bench.sweep.worker import record_failure
from bench.training import trunk
from bench.training.loggers import check_loggers


def launch(specs: Sequence[RunSpec]) -> dict[str, str]:
    """Do the runs of one study that are not done yet.

    Returns:
        The status of every run by id: finished, diverged, failed, interrupted, busy (in another launcher), or
        queued or running if the run continues without this process.

    Raises:
        BenchError: a config or corpus is invalid, or the runs are of several studies; no run was started.
    """
    refuse_several_studies(specs)
    launcher = check(specs)
    locks.check(specs[0].records.parent)
    if not sys.stderr.isatty():
        n = len(specs)
        print(f"preparing the data of {n} run{'s' if n > 1 else ''}", file=sys.stderr, flush=True)
    statuses = _prepare(specs)
    statuses |= {spec.run_id: status for spec in specs if (status := locks.ended(spec))}
    todo = [spec for spec in specs if spec.run_id not in statuses]
    trunk.announce(todo)
    todo = _in_order(todo)
    n_done = sum(status in ("finished", "diverged") for status in statuses.values())
    with Display(len(specs), n_done) as display:
        for line in locks.damaged_files(todo):
            display.say(line)
        return statuses | locks.share(todo, lambda runs: launcher.launch(specs, runs, display), display)


def train(overrides: Sequence[str], *, multirun: bool = False) -> dict[str, str]:
    """Do the runs of a command line that are not done yet, as `bench train` does.

    Args:
        overrides: Hydra overrides, such as ["strategy=clm", "model=0.2m"].
        multirun: whether the overrides are a sweep, such as ["strategy=clm,mlm"].

    Returns:
        The status of every run by id, as `launch`.

    Raises:
        BenchError: a config or corpus is invalid; no run was started.
    """
    return launch(compose_runs(overrides, multirun=multirun))


def evaluate(overrides: Sequence[str]) -> dict[str, str]:
    """Evaluate the finished runs of a study on more tasks, as `bench evaluate` does.

    Args:
        overrides: `study=NAME`, `task=[A,B]`, and settings of those tasks.

    Returns:
        The status of every run by id; "weights are gone" for one that must be trained again first.

    Raises:
        BenchError: a setting is invalid, or the study has no finished run; nothing was evaluated.
    """
    left, gone = evaluable(compose_evaluations(overrides))
    return (launch(left) if left else {}) | {spec.run_id: "weights are gone" for spec in gone}


def evaluable(specs: Sequence[RunSpec]) -> tuple[list[RunSpec], list[RunSpec]]:
    """Divide runs into those that can be evaluated or are done, and those whose weights are gone."""
    gone = [spec for spec in specs if spec.pending_tasks() and not spec.can_be_evaluated()]
    return [spec for spec in specs if spec not in gone], gone


def check(specs: Sequence[RunSpec]) -> Launcher:
    """Refuse the runs of a study if one of them cannot work here, and return their launcher.

    Raises:
        ConfigError: a setting is invalid or something is not installed.
    """
    check_settings(specs)
    check_loggers(specs)
    launcher = build(specs[0].config["launcher"], Launcher, "launcher")
    launcher.check(specs)
    for spec in specs:
        _check_packages(spec.typed())
        _refuse_nodes(spec)
    return launcher


def planned(specs: Sequence[RunSpec]) -> list[str]:
    """Return lines on the study's claims and on whether these runs can decide them; none without claims.

    Raises:
        ConfigError: a malformed claim.
    """
    asked = read_claims(specs[0].records.parent)
    if asked is None:
        return []
    sweep = Sweep(
        strategies={spec.strategy for spec in specs},
        budgets={spec.budget for spec in specs},
        tasks={task for spec in specs for task in spec.config["task"]},
        seeds={spec.seed for spec in specs},
        fine_tuned={
            task
            for spec in specs
            for task, node in spec.config["task"].items()
            if node.get("protocol") == "finetune"
        },
    )
    from bench.sweep.plan import warning  # scipy, for studies with claims only

    weak = warning(asked, specs)
    return [*plan(asked, sweep), *([weak] if weak else [])]


def _prepare(specs: Sequence[RunSpec]) -> dict[str, str]:
    """Prepare the data of all runs, and return the statuses, by id, of runs whose checkpoint is unusable."""
    statuses = {}
    for spec in specs:
        try:
            prepare(spec)
        except CheckpointError as error:
            statuses[spec.run_id] = record_failure(spec, str(error))
    return statuses


def _check_packages(config: Config) -> None:
    """Raise ConfigError if an optional package that the settings of every run choose is not installed."""
    if config.energy.metered:
        check_installed("codecarbon", "energy.metered=true")


def _refuse_nodes(spec: RunSpec) -> None:
    """Refuse a run over several nodes, which no launcher can start, and write its config for torchrun.

    Raises:
        ConfigError: explains how to start the run.
    """
    settings = spec.config["trainer"]
    if settings["nodes"] > 1 and not spec.is_done():
        spec.folder.mkdir(parents=True, exist_ok=True)
        config = spec.folder / "config.json"
        write_atomically(config, spec.to_json())
        raise ConfigError(
            f"trainer.nodes={settings['nodes']}: on each node run torchrun --nnodes {settings['nodes']} "
            f"--nproc-per-node {settings['devices']} --rdzv-backend c10d --rdzv-endpoint HOST:PORT "
            f"-m bench.sweep.torchrun_worker {config}"
        )


def _in_order(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Sort the longest runs first, so that none is left alone at the end.

    The longest run of each shared trunk comes before all shorter runs of a trunk, since it trains the trunk.
    """
    n_before: Counter[Path] = Counter()
    ranked: list[tuple[int, RunSpec]] = []
    for spec in sorted(specs, key=_size, reverse=True):
        folder = trunk.stable_phase_folder(spec)
        ranked.append((n_before[folder] if folder else 0, spec))
        n_before.update([folder] if folder else [])
    return [spec for _, spec in sorted(ranked, key=lambda pair: pair[0])]


def _size(spec: RunSpec) -> float:
    """Return a number roughly proportional to a run's duration."""
    config = spec.typed()
    if config.model.name is not None:
        return math.inf  # a checkpoint's size is not known yet and is rarely small
    parameters = flops.text_parameters(config.model, config.tokenizer.vocab_size)
    if config.strategy["modality"] == "none":
        return 0.0
    return config.budget.flops or float(parameters * (config.budget.tokens or 0))
