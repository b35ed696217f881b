"""tokens -> batches. Batch i is a pure function of (seed, i), so resuming needs no saved state.

Row n of a run is entry n mod N of a new permutation of the N unique rows, drawn for epoch n div N. A step
takes the next rows for all ranks together, corrupts them with the step's own generator and gives each rank
its slice. The numbers of ranks and loader workers therefore do not change the training data.
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
from bench.data.shards import TokenArray
from bench.data.tokenizer import EOS
from bench.errors import ConfigError

Batch = dict[str, torch.Tensor]
Corrupt = Callable[[Batch, torch.Generator, float], Batch]  # `Objective.corrupt_at`
DOCUMENTS = "documents"  # key of a batch: the document of each token, where attention stays within documents
VALIDATION_SEED = 0  # every run of a study is validated on the same rows with the same corruption


class Rows(Protocol):
    """Unique rows of training data."""

    def __len__(self) -> int: ...

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return the rows at `indices`, stacked."""
        ...


class TextRows:
    """Consecutive token sequences of fixed length, cut from the packed documents.

    `numbered`: rows also say to which of their documents each token belongs, for attention within documents.
    """

    def __init__(self, tokens: TokenArray, sequence_length: int, *, numbered: bool = False) -> None:
        self.tokens, self.length, self.numbered = tokens, sequence_length, numbered

    def __len__(self) -> int:
        return self.tokens.n_tokens // self.length

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return {"tokens": (B, T)}, and {DOCUMENTS: (B, T)} if numbered."""
        rows = [self.tokens.read(i * self.length, (i + 1) * self.length) for i in indices.tolist()]
        tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
        return {"tokens": tokens} | ({DOCUMENTS: document_numbers(tokens)} if self.numbered else {})


def document_numbers(tokens: torch.Tensor) -> torch.Tensor:
    """Number the documents of packed rows from 0: (B, T) ids -> (B, T). EOS closes a document.

    >>> document_numbers(torch.tensor([[7, EOS, 8, 9, EOS]])).tolist()
    [[0, 0, 1, 1, 1]]
    """
    is_end = (tokens == EOS).long()
    return is_end.cumsum(dim=1) - is_end


def numbers_of(rows: Batch) -> Batch:
    """Return the entry `DOCUMENTS` of rows, if they have one."""
    return {DOCUMENTS: rows[DOCUMENTS]} if DOCUMENTS in rows else {}


class PairRows:
    """Images of S x S pixels with captions of L tokens."""

    def __init__(self, pairs: PairArray) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, indices: NDArray[np.int64]) -> Batch:
        """Return {"images": (B, S, S, 3) uint8, "captions": (B, L)}."""
        images, captions = self.pairs.images[indices], self.pairs.captions[indices]
        return {"images": torch.from_numpy(images), "captions": torch.from_numpy(captions.astype(np.int64))}

    def all(self) -> Batch:
        """Return all pairs, in order."""
        return self.read(np.arange(len(self)))


def row_indices(seed: int, step: int, rows_per_step: int, n_rows: int) -> NDArray[np.int64]:
    """Return the unique rows of one step: (rows_per_step,) indices below n_rows."""
    stream = range(step * rows_per_step, (step + 1) * rows_per_step)
    return np.array([_order(seed, n // n_rows, n_rows)[n % n_rows] for n in stream])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n_rows: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(n_rows)


def make_batch(
    rows: Rows, corrupt: Corrupt, *, seed: int, step: int, rows_per_step: int, progress: float
) -> Batch:
    """Return the batch of one step for all ranks, a pure function of the arguments."""
    clean = rows.read(row_indices(seed, step, rows_per_step, len(rows)))
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))
    return corrupt(clean, generator, progress)


@dataclass(frozen=True)
class Stream(IterableDataset[Batch]):
    """This rank's slices of the batches of steps `start` to `stop`."""

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
    """Return a loader whose batches are made in advance by `workers` processes.

    The processes are forked where possible: those of a forkserver would survive a run that is killed.
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
    """Provide training batches from the trainer's current step on; resuming needs no other state."""

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
                f"the data budget holds {len(train)} rows, but one step takes {rows_per_step}; raise "
                "budget.unique_bytes or budget.unique_pairs, or lower optim.tokens_per_step"
            )
        if rows_per_step % ranks:
            raise ConfigError(
                f"{rows_per_step} rows per step cannot be divided among {ranks} ranks; change "
                "optim.tokens_per_step, trainer.devices or trainer.nodes"
            )
        self.rows, self.corrupt, self.seed = train, corrupt, seed
        self.rows_per_step, self.loader_workers = rows_per_step, loader_workers

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return this rank's slices of the remaining steps."""
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
