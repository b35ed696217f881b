"""Phases that share their beginning: runs that differ in `strategy.shares` alone branch from one trunk.

The first phase of such runs is the same, step for step: same seed, data order, schedule. A run leaves its
state where its first phase ends; another one whose first phase is at least as long starts there. The numbers
are those of a run that was trained alone, on CPU bit for bit; the record says what was shared.
"""

import json
import math
from hashlib import sha256
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from bench import checkpoint
from bench.budget import StepCost
from bench.records import write_atomically
from bench.spec import RunSpec
from bench.tracking import METRICS_FILE

ENTERED = "trunk.json"  # in a run's folder: where it branched off


class Trunk(Callback):
    """The shared beginning of a run, kept beside the study's runs."""

    def __init__(self, spec: RunSpec, share: float, steps: int) -> None:
        """`share`: of the run's `steps` that its first phase takes."""
        strategy = {key: value for key, value in spec.science["strategy"].items() if key != "shares"}
        common = json.dumps([spec.science | {"strategy": strategy}, steps], sort_keys=True)
        self.run_id, self.own = spec.run_id, spec.folder
        self.folder = spec.folder.parent / f"trunk-{sha256(common.encode()).hexdigest()[:12]}"
        self.end = math.ceil(share * steps - 1e-9)

    def enter(self, cost: StepCost) -> Path | None:
        """A checkpoint at which to start: the end of another run's first phase, if not beyond the own one's.

        What was logged on the way there becomes the run's own, at the FLOPs of its own mean step.
        """
        for path in checkpoint.undamaged(self.folder):
            origin = json.loads(path.with_suffix(".json").read_text())
            if origin["steps"] <= self.end:
                rows = map(json.loads, path.with_suffix(".jsonl").read_text().splitlines())
                own = [row | ({"flops": row["step"] * cost.flops} if "flops" in row else {}) for row in rows]
                write_atomically(self.own / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in own))
                write_atomically(self.own / ENTERED, json.dumps(origin))
                return path
        return None

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        """Keep the state at the end of the first phase for others."""
        step = trainer.global_step
        path = checkpoint.path_at(self.folder, step)
        if step != self.end or trainer.strategy.broadcast(path.exists()):
            return
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            logged = (self.own / METRICS_FILE).read_text(encoding="utf-8")
            write_atomically(path.with_suffix(".jsonl"), logged)
            origin = {"run_id": self.run_id, "steps": step}
            write_atomically(path.with_suffix(".json"), json.dumps(origin))
        checkpoint.write(trainer, path, self.own / "trunk.partial")


def entered(folder: Path) -> dict[str, Any]:
    """For the record: {"trunk": whose steps a run began with, and how many}; nothing where it began alone."""
    path = folder / ENTERED
    return {"trunk": json.loads(path.read_text())} if path.exists() else {}
