"""Checkpoints and weights that survive a kill: written aside, then renamed, and checked by a digest."""

import hashlib
import io
import logging
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_file
from torch import Tensor, nn

from bench.errors import DataError, DivergedError
from bench.objectives.base import Objective
from bench.records import replacing

log = logging.getLogger(__name__)
KEPT = 2
SUFFIX = ".ckpt"


def save(trainer: Trainer, folder: Path) -> None:
    """Save the trainer's state as `step=N.ckpt` and keep the last two; all ranks must call this.

    Raises DivergedError if a weight is not finite; earlier checkpoints are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = path_at(folder, trainer.global_step)
    write(trainer, path, path.with_suffix(".partial"))
    if trainer.is_global_zero:
        for old in sorted(folder.glob(f"*{SUFFIX}"))[:-KEPT]:
            old.unlink()
            _digest_file(old).unlink(missing_ok=True)


def path_at(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` steps."""
    return folder / f"step={step:09d}{SUFFIX}"


def write(trainer: Trainer, path: Path, partial: Path) -> None:
    """Write one checkpoint with its SHA-256 beside it, whole or not at all; all ranks must call this.

    It is written to `partial` first, on the same file system. Raises DivergedError if a weight is not finite,
    because no run should continue from there.
    """
    module = trainer.lightning_module
    assert isinstance(module, Objective)
    if not all(torch.isfinite(weight).all() for weight in module.parameters()):
        raise DivergedError(*(module.last_finite or (0, None)))
    if not trainer.is_global_zero:
        trainer.save_checkpoint(partial)  # takes part in gathering; rank 0 writes
        return
    with replacing(path, partial):
        trainer.save_checkpoint(partial)
        # The digest first: a checkpoint without a digest, or with a wrong one, is never used.
        _digest_file(path).write_text(_digest(partial))


def write_weights(module: nn.Module, path: Path) -> None:
    """Write a module's weights with their SHA-256, each once under its first name, whole or not at all.

    Equal weights give equal bytes. With safetensors' own `save_model` they would not: it chooses among the
    names of a tensor differently in every process.
    """
    named = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    state = module.state_dict()
    weights = {name: state[name].detach().cpu().contiguous() for name in sorted(named & state.keys())}
    stated = {"sha256": _content_digest(weights.items())}
    partial = path.with_suffix(".partial")
    with replacing(path, partial):
        save_file(weights, partial, stated)


def read_weights(module: nn.Module, path: Path) -> None:
    """Load what `write_weights` wrote; raise DataError if it is damaged or belongs to another model."""
    try:
        load_model(module, path, strict=True)
    except Exception as error:  # safetensors and torch raise several kinds
        reason = textwrap.shorten(str(error), 200)
        raise DataError(f"{path} does not fit the strategy ({reason})") from error
    if not is_whole(path):
        raise DataError(f"{path} is damaged: its weights do not match their digest")


def is_whole(path: Path) -> bool:
    """Return whether weights are readable and match their digest, if the file has one."""
    try:
        with safe_open(path, "pt") as file:
            stated = (file.metadata() or {}).get("sha256")
            tensors = ((name, file.get_tensor(name)) for name in sorted(file.keys()))
            return stated is None or stated == _content_digest(tensors)
    except (SafetensorError, OSError):
        return False


def undamaged(folder: Path) -> Iterator[Path]:
    """Yield the undamaged checkpoints, newest first."""
    for path in sorted(folder.glob(f"*{SUFFIX}"), reverse=True):
        digest = _digest_file(path)
        if digest.exists() and digest.read_text() == _digest(path):
            yield path
        else:
            log.warning("%s is damaged; an earlier checkpoint is used, if there is one", path)


def latest(folder: Path) -> Path | None:
    """Return the newest undamaged checkpoint, or None."""
    return next(undamaged(folder), None)


class InPlace(TorchCheckpointIO):
    """Write checkpoints without Lightning's detour through the system's temporary folder.

    It may be on another disk, so that the last step is a copy, and a kill would leave files there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file at once, because torch hides the error message of a full disk."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).write_bytes(content.getbuffer())


class Checkpoints(Callback):
    """Save a checkpoint every `every_s` seconds."""

    def __init__(self, folder: Path, every_s: float) -> None:
        self.folder, self.every_s = folder, every_s
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        """Save if it is time, by the clock of rank 0."""
        due = time.monotonic() - self.saved_at >= self.every_s
        if trainer.strategy.broadcast(due) and trainer.global_step < trainer.max_steps:
            save(trainer, self.folder)
            self.saved_at = time.monotonic()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    content = hashlib.sha256()
    for name, tensor in tensors:
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")
