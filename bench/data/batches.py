"""tokens -> batches: batch i is a pure function of (seed, i), so nothing needs saving to resume.

Row n of a run is position n mod N of a fresh permutation of the N unique rows for each epoch n div N.
A step takes the next rows for all ranks together, corrupts them with the step's own generator and hands
each rank its slice: the number of ranks and of loader workers cannot change what is trained on.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bench.data.pairs import PairArray
from bench.data.tokens import TokenArray
from bench.errors import ConfigError

Batch = dict[str, torch.Tensor]
Corrupt = Callable[[Batch, torch.Generator, float], Batch]  # `Objective.corrupt_at`
VALIDATION_SEED = 0  # every run of a study is validated on the same rows, hidden in the same way


class Rows(Protocol):
    """Unique rows of training data."""

    def __len__(self) -> int: ...

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """The rows at `indices`, stacked."""
        ...


class TextRows:
    """Token sequences of fixed length, cut from the packed documents one after another."""

    def __init__(self, tokens: TokenArray, sequence_length: int) -> None:
        self.tokens, self.length = tokens, sequence_length

    def __len__(self) -> int:
        return self.tokens.n_tokens // self.length

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """{"tokens": (B, T)}."""
        rows = [self.tokens.read(i * self.length, (i + 1) * self.length) for i in indices.tolist()]
        return {"tokens": torch.from_numpy(np.stack(rows).astype(np.int64))}


class PairRows:
    """Images with their captions. S pixels a side, L tokens a caption."""

    def __init__(self, pairs: PairArray) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """{"images": (B, S, S, 3) uint8, "captions": (B, L)}."""
        images, captions = self.pairs.images[indices], self.pairs.captions[indices]
        return {"images": torch.from_numpy(images), "captions": torch.from_numpy(captions.astype(np.int64))}

    def all(self) -> Batch:
        """All pairs, in order."""
        return self.read(np.arange(len(self)))


def row_indices(seed: int, step: int, rows_per_step: int, n_rows: int) -> NDArray[np.int64]:
    """The unique rows of one step: (rows_per_step,) indices below n_rows."""
    stream = np.arange(step * rows_per_step, (step + 1) * rows_per_step)
    epochs, positions = np.divmod(stream, n_rows)
    return np.array(
        [_order(seed, e, n_rows)[p] for e, p in zip(epochs.tolist(), positions.tolist(), strict=True)]
    )


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n_rows: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(n_rows)


def make_batch(
    rows: Rows, corrupt: Corrupt, *, seed: int, step: int, rows_per_step: int, progress: float
) -> Batch:
    """The whole batch of one step, over all ranks: a pure function of its arguments."""
    clean = rows.read(row_indices(seed, step, rows_per_step, len(rows)))
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))
    return corrupt(clean, generator, progress)


@dataclass(frozen=True)
class Stream(IterableDataset[Batch]):
    """Steps `start` to `stop` of a run, this rank's slice of each."""

    rows: Rows
    corrupt: Corrupt
    seed: int
    rows_per_step: int
    start: int
    stop: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        share = self.rows_per_step // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        for step in range(self.start + first, self.stop, stride):
            batch = make_batch(
                self.rows,
                self.corrupt,
                seed=self.seed,
                step=step,
                rows_per_step=self.rows_per_step,
                progress=step / self.stop,
            )
            yield {name: values[mine] for name, values in batch.items()}


def loader(stream: Stream, workers: int, device: torch.device) -> DataLoader[Batch]:
    """Its batches, made ahead by so many processes, ready to be copied to a GPU while it computes.

    Forked where that can be: under a forkserver they would be its children, and outlive a run that is killed.
    """
    is_forked = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork" if is_forked else None,
    )


class BatchModule(LightningDataModule):
    """Training steps from the trainer's current step on: resuming needs no other state."""

    def __init__(
        self,
        *,
        train: Rows,
        corrupt: Corrupt,
        seed: int,
        rows_per_step: int,
        ranks: int,
        loader_workers: int,
    ) -> None:
        super().__init__()
        if len(train) < rows_per_step:
            raise ConfigError(
                f"the data budget holds {len(train)} rows, one step takes {rows_per_step}; raise "
                "budget.unique_bytes or budget.unique_pairs, or lower optim.tokens_per_step"
            )
        if rows_per_step % ranks:
            raise ConfigError(
                f"{rows_per_step} rows a step do not divide among {ranks} ranks; change "
                "optim.tokens_per_step, trainer.devices or trainer.nodes"
            )
        self.rows, self.corrupt, self.seed = train, corrupt, seed
        self.rows_per_step, self.loader_workers = rows_per_step, loader_workers

    def train_dataloader(self) -> DataLoader[Batch]:
        """This rank's slices of the steps that remain."""
        trainer = self.trainer
        assert trainer is not None
        stream = Stream(
            rows=self.rows,
            corrupt=self.corrupt,
            seed=self.seed,
            rows_per_step=self.rows_per_step,
            start=trainer.global_step,
            stop=trainer.max_steps,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        return loader(stream, self.loader_workers, trainer.strategy.root_device)
