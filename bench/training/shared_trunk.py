"""Runs that share their beginning: those that differ in `strategy.shares` alone, or in compute under WSD.

The first phase, or the stable phase, of such runs is the same, step for step: same seed, data order, rate. A
run leaves its state where it ends, and where shorter runs will branch; another one whose phase is at least as
long starts there. The numbers are those of a run that was trained alone, on CPU bit for bit; the record says
what was shared.
"""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from bench.config.run_spec import RunSpec
from bench.models.flops import StepCost, n_steps
from bench.objectives import optim
from bench.records import write_atomically
from bench.training import branching, checkpoint
from bench.training.loggers import METRICS_FILE

ENTERED = "trunk.json"  # in a run's folder: where it branched off


class Trunk(Callback):
    """The shared beginning of a run, kept beside the study's runs."""

    def __init__(self, spec: RunSpec, folder: Path, ends: Collection[int]) -> None:
        """`ends`: the steps to leave the state at, the run's own the last."""
        self.run_id, self.own, self.folder = spec.run_id, spec.folder, folder
        self.ends, self.end = frozenset(ends), max(ends)

    def enter(self, cost: StepCost) -> Path | None:
        """A checkpoint at which to start: the last that another run has left, if not beyond the own end.

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
        """Keep the state for others where they branch."""
        step = trainer.global_step
        path = checkpoint.path_at(self.folder, step)
        if step not in self.ends or trainer.strategy.broadcast(path.exists()):
            return
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            logged = (self.own / METRICS_FILE).read_text(encoding="utf-8")
            write_atomically(path.with_suffix(".jsonl"), logged)
            origin = {"run_id": self.run_id, "steps": step}
            write_atomically(path.with_suffix(".json"), json.dumps(origin))
        checkpoint.write(trainer, path, self.own / "trunk.partial")


def phase_trunk(spec: RunSpec, share: float, steps: int) -> Trunk:
    """Of the first phase, which takes a `share` of the run's `steps`."""
    strategy = {key: value for key, value in spec.science["strategy"].items() if key != "shares"}
    folder = branching.folder_of(spec, [spec.science | {"strategy": strategy}, steps])
    return Trunk(spec, folder, [math.ceil(share * steps - 1e-9)])


def stable_trunk(spec: RunSpec, steps: int, cost: StepCost) -> Trunk | None:
    """Of the stable phase, for runs of other compute; None where it is not shared."""
    folder = branching.stable_trunk(spec)
    if folder is None:
        return None
    lengths = {n_steps(other, cost) for other in branching.branches(folder)}
    ends = {optim.cooldown_start(n, spec.typed().optim) for n in (*lengths, steps) if n <= steps}
    return Trunk(spec, folder, ends)


def entered(folder: Path) -> dict[str, Any]:
    """For the record: {"trunk": whose steps a run began with, and how many}; nothing where it began alone."""
    path = folder / ENTERED
    return {"trunk": json.loads(path.read_text())} if path.exists() else {}
