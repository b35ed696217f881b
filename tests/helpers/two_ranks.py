"""Toy strategies, trained as a run trains them, by one process or as one of two ranks."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor
from toy_models import OPTIM, make_strategy, rows_for

from bench.config import schema
from bench.data.batches import Batch, BatchModule
from bench.objectives.base import Objective
from bench.training import checkpoint
from bench.training.distributed import WholeWeights
from bench.training.pretrain import make_trainer
from bench.training.process import quiet_libraries
from bench.training.step import computed_as

N_ROWS, PER_STEP, N_STEPS = 24, 8, 8


class ToyRows:
    """Rows of a strategy's modality."""

    def __init__(self, model: Objective) -> None:
        self.rows = rows_for(model, N_ROWS)

    def __len__(self) -> int:
        return N_ROWS

    def read(self, indices: NDArray[np.int64]) -> Batch:
        return {name: values[torch.from_numpy(indices)] for name, values in self.rows.items()}


class Halfway(Callback):
    """Leaves a checkpoint in the middle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step == N_STEPS // 2:
            checkpoint.write(trainer, self.path, self.path.with_suffix(".partial"))


def ranks(devices: int, layout: str = "none") -> schema.Trainer:
    """Of a layout: none, full (sharded), or parts (gradients accumulated, activations computed again)."""
    place = schema.Trainer(
        accelerator="cpu", devices=devices, nodes=1, timeout_s=60, precision="64-true", loader_workers=0
    )
    if layout == "parts":
        return replace(place, sharding="none", accumulate_grad_batches=2, recompute=True)
    return replace(place, sharding=layout)


def trained(
    stem: str, trainer: schema.Trainer, *, keep: Path | None = None, start: Path | None = None
) -> dict[str, Tensor]:
    """Whole weights after some steps; by default in double precision, where rounding cannot hide a mistake.

    `keep`: where to leave a checkpoint of half the way; `start`: the one to begin with.
    """
    model = make_strategy(stem).train()
    if trainer.precision == "64-true":
        model = model.double()
    batches = BatchModule(
        train=ToyRows(model),
        corrupt=model.corrupt_at,
        seed=0,
        rows_per_step=PER_STEP,
        ranks=trainer.n_ranks,
        loader_workers=trainer.loader_workers,
    )
    config, gathered = schema.Config(trainer=trainer, optim=OPTIM), WholeWeights()
    callbacks: list[Callback] = [gathered, *([Halfway(keep)] if keep else [])]
    fit = make_trainer(config, N_STEPS, callbacks, [], has_idle_weights=model.has_idle_weights).fit
    with computed_as(model, trainer):
        fit(model, batches, ckpt_path=start, weights_only=True)
    return gathered.weights or model.state_dict()


def one_of_two(rank: int, port: int, folder: Path, layouts: Sequence[str], stems: Sequence[str]) -> None:
    """Be a rank as torchrun starts it; save each strategy's weights and checkpoint as FOLDER/LAYOUT-STEM.*.

    From FOLDER/start-STEM.ckpt, where there is one; not in parts where they cannot be.
    """
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": rank}
    place = {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "toy"}
    os.environ.update({name: str(value) for name, value in (meeting | place).items()})
    quiet_libraries()
    torch.set_num_threads(1)
    for layout in layouts:
        for stem in stems:
            if layout == "parts" and make_strategy(stem).couples_rows:
                continue
            path, start = folder / f"{layout}-{stem}.safetensors", folder / f"start-{stem}.ckpt"
            keep = path.with_suffix(".ckpt")
            given = start if start.exists() else None
            weights = trained(stem, ranks(2, layout), keep=keep, start=given)
            if torch.distributed.get_rank() == 0:
                save_file({name: tensor.clone() for name, tensor in weights.items()}, path)
