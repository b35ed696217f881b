"""Checkpoints that survive a kill: written aside, checked by a digest, the last two kept."""

import hashlib
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

KEPT = 2
SUFFIX = ".ckpt"


def save(trainer: Trainer, folder: Path) -> None:
    """Save the trainer's state as `step=N.ckpt` with its SHA-256 beside it; all ranks call this."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step={trainer.global_step:09d}{SUFFIX}"
    partial = path.with_suffix(".partial")
    trainer.save_checkpoint(partial)
    if trainer.is_global_zero:
        # The digest first: a checkpoint without one never counts, one with a wrong one neither.
        _digest_file(path).write_text(_digest(partial))
        partial.replace(path)
        for old in sorted(folder.glob(f"*{SUFFIX}"))[:-KEPT]:
            old.unlink()
            _digest_file(old).unlink(missing_ok=True)


def latest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint, or None."""
    for path in sorted(folder.glob(f"*{SUFFIX}"), reverse=True):
        digest = _digest_file(path)
        if digest.exists() and digest.read_text() == _digest(path):
            return path
    return None


class Checkpoints(Callback):
    """Saves every so many seconds."""

    def __init__(self, folder: Path, every_s: float) -> None:
        self.folder, self.every_s = folder, every_s
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        """Save if it is time; rank 0's clock decides for all."""
        due = time.monotonic() - self.saved_at >= self.every_s
        if trainer.strategy.broadcast(due) and trainer.global_step < trainer.max_steps:
            save(trainer, self.folder)
            self.saved_at = time.monotonic()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")
