"""Checkpoints that survive a kill: written aside, checked by a digest, the last two kept."""

import hashlib
import os
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_model, save_file
from torch import nn

from bench.errors import DataError

KEPT = 2
SUFFIX = ".ckpt"


def save(trainer: Trainer, folder: Path) -> None:
    """Save the trainer's state as `step=N.ckpt` and keep the last two; all ranks call this."""
    folder.mkdir(parents=True, exist_ok=True)
    write(trainer, path_at(folder, trainer.global_step))
    if trainer.is_global_zero:
        for old in sorted(folder.glob(f"*{SUFFIX}"))[:-KEPT]:
            old.unlink()
            _digest_file(old).unlink(missing_ok=True)


def path_at(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return folder / f"step={step:09d}{SUFFIX}"


def write(trainer: Trainer, path: Path) -> None:
    """Write one checkpoint with its SHA-256 beside it, whole or not at all; all ranks call this."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    trainer.save_checkpoint(partial)
    if trainer.is_global_zero:
        # The digest first: a checkpoint without one never counts, one with a wrong one neither.
        _digest_file(path).write_text(_digest(partial))
        partial.replace(path)


def write_weights(module: nn.Module, path: Path) -> None:
    """A module's weights alone, each once under its first name: equal weights, equal bytes.

    Safetensors' own `save_model` picks the name of a tensor that has several anew in every process.
    """
    named = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    weights = {name: tensor for name, tensor in module.state_dict().items() if name in named}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


def read_weights(module: nn.Module, path: Path) -> None:
    """Load what `write_weights` wrote.

    Raises:
        DataError: damaged, or of another model.
    """
    try:
        load_model(module, path, strict=True)
    except Exception as error:  # safetensors and torch raise several kinds
        reason = textwrap.shorten(str(error), 200)
        raise DataError(f"{path} does not fit the strategy ({reason})") from error


def undamaged(folder: Path) -> Iterator[Path]:
    """The checkpoints that are whole, the newest first."""
    for path in sorted(folder.glob(f"*{SUFFIX}"), reverse=True):
        digest = _digest_file(path)
        if digest.exists() and digest.read_text() == _digest(path):
            yield path


def latest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint, or None."""
    return next(undamaged(folder), None)


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
