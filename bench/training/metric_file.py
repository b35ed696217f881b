"""What a run reports into its folder while it runs: a metric file and a status file.

These files are authoritative. `bench.training.loggers` mirrors them, and nothing is read back from there.
"""

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from typing_extensions import override

from bench.config.run_spec import STATUS_FILE
from bench.records import CurvePoint, write_atomically

METRICS_FILE = "metrics.jsonl"
HEARTBEAT_S = 0.5


class MetricFile(Logger):
    """A Lightning logger that appends one JSON line per call to `metrics.jsonl`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / METRICS_FILE
        self._end_cut_line()

    @property
    @override
    def name(self) -> str:
        return "files"

    @property
    @override
    def version(self) -> str:
        return ""  # runs have ids, not versions

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # type: ignore[override]
        """Append the metrics of one optimizer step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    @rank_zero_only
    def _end_cut_line(self) -> None:
        """End a line that a full disk has cut, so that the next one is not joined to it."""
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass  # the config is in `config.json`


def read_metrics(folder: Path) -> dict[int, dict[str, float]]:
    """Return logged metrics by step; if a resumed run logged a step again, the later value counts."""
    path = folder / METRICS_FILE
    by_step: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # a line that a kill has cut
            continue
        step = int(row.pop("step"))
        by_step[step] = by_step.get(step, {}) | {k: float(v) for k, v in row.items()}
    return by_step


def curve(folder: Path) -> tuple[CurvePoint, ...]:
    """Return the loss curve at validated steps; the training loss is averaged since the previous one."""
    points: list[CurvePoint] = []
    train: list[float] = []
    for step, row in sorted(read_metrics(folder).items()):
        if "train_loss_nats" in row:
            train.append(row["train_loss_nats"])
        if "validation_loss_nats" in row:
            mean = sum(train) / len(train) if train else None
            tokens, flops = int(row["forward_tokens"]), row["flops"]
            points.append(CurvePoint(step, tokens, flops, mean, row["validation_loss_nats"]))
            train = []
    return tuple(points)


@dataclass
class StatusFile:
    """`status.json` of one run, for `bench status` and the progress display."""

    folder: Path
    label: str
    _written_at: float = 0.0

    @rank_zero_only
    def write(
        self,
        status: str,
        phase: str,
        step: int = 0,
        total_steps: int = 0,
        *,
        tokens_per_s: float = 0.0,
        seconds_left: float | None = None,
    ) -> None:
        """Write it now; `seconds_left` of this phase, None if unknown."""
        self._written_at = time.monotonic()
        state = {
            "status": status,
            "label": self.label,
            "phase": phase,
            "step": step,
            "total_steps": total_steps,
            "tokens_per_s": tokens_per_s,
            "seconds_left": seconds_left,
            "updated_at": time.time(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        # Not durable: it is written twice a second, between two steps, and soon outdated.
        write_atomically(self.folder / STATUS_FILE, json.dumps(state) + "\n", is_durable=False)

    def due(self) -> bool:
        """Return whether the last write is old enough for a new one."""
        return time.monotonic() - self._written_at >= HEARTBEAT_S
