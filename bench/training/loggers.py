"""Mirrors of a run's metrics: W&B, TensorBoard, CSV, Trackio. A new one is one class and one YAML file.

The metric file of `bench.training.metric_file` is always written and authoritative; nothing is read back from
a mirror, and no mirror changes a run. This module imports neither torch nor a logger's package, so that a
missing package is found before any work.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

from omegaconf import MISSING
from typing_extensions import override

from bench.config.build import build
from bench.config.installation import check_installed
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.records import RunRecord, Score, TaskResult

LONGEST_TAG = 64  # characters; W&B refuses longer ones
PROJECT = re.compile(r"[\w.-]{1,128}", re.ASCII)


class RunLogger(ABC):
    """A mirror of one run's metrics, with its settings in a frozen dataclass `Options`.

    Settings are recorded in the run's folder, so a key or password is no option: a client reads it from the
    environment.
    """

    Options: ClassVar[type[Any]]
    package: ClassVar[str | None] = None  # the optional package that it needs, by its import name

    def __init__(self, options: Any, spec: RunSpec) -> None:
        self.options, self.spec = options, spec

    def check(self, key: str) -> None:
        """Validate the options and the installation, before any work.

        Args:
            key: The config key of this logger, for messages.

        Raises:
            ConfigError: An option is out of range or a package is missing; names the key and the fix.
        """
        if self.package is not None:
            check_installed(self.package, key)

    @cached_property
    def lightning(self) -> Any:
        """The Lightning `Logger` that receives the metrics of every logged step."""
        return self.make()

    @abstractmethod
    def make(self) -> Any:
        """Return a Lightning `Logger` for the run, which continues the run's log if there is one."""

    def summarize(self, summary: Mapping[str, Any], step: int) -> None:
        """Write the scores and costs of the run, by default its numbers as metrics of the last step."""
        numbers = {k: v for k, v in summary.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        self.lightning.log_metrics(numbers, step=step)

    def close(self, exit_code: int) -> None:
        """End the log; `exit_code` is 0 if the run has finished."""
        self.lightning.finalize("failed" if exit_code else "success")


def make_loggers(spec: RunSpec) -> list[RunLogger]:
    """Return the mirrors that a run's config names.

    Raises:
        ConfigError: A class or an option is unknown; names the key.
    """
    nodes = spec.config["logger"].items()
    return [build(node, RunLogger, f"logger.{name}", spec=spec) for name, node in nodes]


def check_loggers(specs: Sequence[RunSpec]) -> None:
    """Refuse loggers that cannot work here, before any work; each distinct setting once.

    Raises:
        ConfigError: Names the key and the fix.
    """
    for spec in {repr(spec.config["logger"]): spec for spec in specs}.values():
        for name, logger in zip(spec.config["logger"], make_loggers(spec), strict=True):
            logger.check(f"logger.{name}")


def mirror_result(loggers: Sequence[RunLogger], record: RunRecord, results: Mapping[str, TaskResult]) -> None:
    """Write a run's scores and costs to the mirrors and close them."""
    scores = {_summary_key(s): s.value for r in results.values() for s in r.scores}
    spent = {f"spent/{key}": value for key, value in asdict(record.spent).items()}
    summary = {**scores, **spent, "status": record.status, "parameters": record.parameters}
    for logger in loggers:
        logger.summarize(summary, record.spent.steps)
    close(loggers, exit_code=0 if record.status == "finished" else 1)


def close(loggers: Sequence[RunLogger], exit_code: int = 1) -> None:
    """Close the mirrors: the next run in this process would be merged into W&B's (wandb#1314)."""
    for logger in loggers:
        logger.close(exit_code)


def _summary_key(score: Score) -> str:
    labels = "" if score.n_labels is None else f"@{score.n_labels}"
    return f"{score.task}/{score.metric}{labels}"


def _check_project(key: str, project: str) -> None:
    if not PROJECT.fullmatch(project):
        raise ConfigError(f"{key}.project={project!r}: use at most 128 letters, digits, '_', '.', '-'")


class Wandb(RunLogger):
    """Weights & Biases, offline or online."""

    @dataclass(frozen=True)
    class Options:
        """The project, and whether its server is used."""

        project: str = MISSING
        mode: str = MISSING  # offline | online

    package = "wandb"
    options: Options

    @override
    def check(self, key: str) -> None:
        super().check(key)
        _check_project(key, self.options.project)
        if self.options.mode not in ("offline", "online"):
            raise ConfigError(f"{key}.mode={self.options.mode!r}: choose one of offline, online")

    @override
    def make(self) -> Any:
        from pytorch_lightning.loggers import WandbLogger
        from pytorch_lightning.utilities import rank_zero_only

        rank_zero_only(_silence_wandb)()
        spec = self.spec
        axes = [spec.strategy, spec.model, spec.budget or "no budget", *spec.corpus.values()]
        tags = [*axes, *filter(None, [spec.variant]), f"seed={spec.seed}"]
        return WandbLogger(
            project=self.options.project,
            group=spec.study,
            name=spec.label,
            id=spec.run_id,
            tags=list(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags)),
            config=spec.science,
            save_dir=str(spec.folder),
            mode=self.options.mode,
            resume="allow",
            reinit="finish_previous",
        )

    @override
    def summarize(self, summary: Mapping[str, Any], step: int) -> None:
        self.lightning.experiment.summary.update(summary)

    @override
    def close(self, exit_code: int) -> None:
        self.lightning.experiment.finish(exit_code=exit_code)


def _silence_wandb() -> None:
    """Silence W&B before Lightning's first call, whose defaults cause warnings."""
    import wandb  # takes 0.8 s, so only where it is used

    wandb.setup(wandb.Settings(silent=True))


class TensorBoard(RunLogger):
    """Lightning's TensorBoard logger; event files in the run's folder."""

    @dataclass(frozen=True)
    class Options:
        """No option."""

    package = "tensorboard"

    @override
    def make(self) -> Any:
        from pytorch_lightning.loggers import TensorBoardLogger

        return TensorBoardLogger(str(self.spec.folder), name="tensorboard", version="")


class Csv(RunLogger):
    """Lightning's CSV logger; each start of a run has a table, since Lightning deletes an earlier one."""

    @dataclass(frozen=True)
    class Options:
        """No option."""

    @override
    def make(self) -> Any:
        from pytorch_lightning.loggers import CSVLogger

        return CSVLogger(str(self.spec.folder), name="csv")


class Trackio(RunLogger):
    """Trackio, a tracker with the interface of W&B that keeps its data on this machine."""

    @dataclass(frozen=True)
    class Options:
        """The project under which `trackio show` lists the runs."""

        project: str = MISSING

    package = "trackio"
    options: Options

    @override
    def check(self, key: str) -> None:
        super().check(key)
        _check_project(key, self.options.project)

    @override
    def make(self) -> Any:
        from bench.training.trackio_logger import TrackioLogger

        return TrackioLogger(self.options.project, self.spec)
