"""What a run is before it is done: its axes, its config and its identity. No torch.

A run's id is the hash of its science: what could change a number. Where it runs, where its files lie
and how it is logged are left out.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bench import schema
from bench.records import PRETRAINING_ONLY, RunRecord, Status

NOT_SCIENCE = ("study", "trainer", "logger", "launcher", "paths")


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
    command: str  # that asked for it

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
    def record_path(self) -> Path:
        """The run's own record, there or not."""
        return self.records / f"{self.run_id}.json"

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


def science_of(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that may change a number; without pretraining, budget and optimizer cannot."""
    trainer = config["trainer"]
    science = {key: value for key, value in config.items() if key not in NOT_SCIENCE}
    science["precision"] = trainer["precision"]
    # When losses are measured, and on how much, stands in the record's curve.
    science["validation"] = {key: trainer[key] for key in ("n_validations", "validation_batches")}
    # How a server is reached and paid changes no answer of it.
    science["strategy"] = {key: value for key, value in config["strategy"].items() if key != "access"}
    is_pretrained = config["strategy"]["modality"] != "none"
    return {key: value for key, value in science.items() if is_pretrained or key not in PRETRAINING_ONLY}
