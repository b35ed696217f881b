"""Batch i is a pure function of (seed, i): no order, worker or rank can change what is trained on."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from toy_data import ToyPairs, prepare, toy_pairs
from toy_models import equal_batches, make_strategy, text_rows

from bench.data.batches import Batch, BatchModule, PairRows, Stream, TextRows, make_batch, row_indices
from bench.data.pairs import prepare_pairs
from bench.data.shards import TextData
from bench.errors import ConfigError

N_ROWS, PER_STEP = 20, 8


class ToyRows:
    """Row i is i, four times."""

    def __len__(self) -> int:
        return N_ROWS

    def read(self, indices) -> Batch:
        return {"tokens": torch.from_numpy(indices)[:, None].expand(-1, 4).contiguous()}


def jitter(rows: Batch, generator: torch.Generator, progress: float) -> Batch:
    """A corruption that shows the step's generator and place in every row."""
    n_rows = len(rows["tokens"])
    return rows | {"noise": torch.rand(n_rows, generator=generator), "at": torch.full((n_rows,), progress)}


def batch_at(step: int, seed: int = 0) -> Batch:
    return make_batch(ToyRows(), jitter, seed=seed, step=step, rows_per_step=PER_STEP, progress=step / 6)


def stream(start: int = 0, stop: int = 6, rank: int = 0, world: int = 1) -> Stream:
    return Stream(ToyRows(), jitter, 0, PER_STEP, start, stop, rank, world)


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    assert all(equal_batches(a, b) for a, b in zip(found, expected, strict=True))


# Order


def test_a_batch_is_the_same_whenever_it_is_asked_for():
    forward = [batch_at(step) for step in range(6)]
    steps = [3, 0, 5, 1, 4, 2]
    torch.manual_seed(5)  # the global state has no say
    assert_same([{step: batch_at(step) for step in steps}[step] for step in range(6)], forward)
    assert not equal_batches(forward[0], batch_at(0, seed=1))
    assert len({float(batch["noise"][0]) for batch in forward}) == 6


def test_every_epoch_visits_every_row_once_in_an_order_of_its_own():
    seen = np.concatenate([row_indices(0, step, PER_STEP, N_ROWS) for step in range(5)])
    epochs = seen.reshape(2, N_ROWS)  # five steps of eight rows
    assert [sorted(epoch) for epoch in epochs.tolist()] == [list(range(N_ROWS))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    assert epochs[0].tolist() != sorted(epochs[0].tolist())
    assert row_indices(1, 0, PER_STEP, N_ROWS).tolist() != epochs[0, :PER_STEP].tolist()


def test_two_seeds_never_share_a_steps_noise():
    noises = {float(batch_at(step, seed)["noise"][0]) for step in range(20) for seed in range(5)}
    assert len(noises) == 100


# Workers and ranks


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_number_of_loader_workers_changes_nothing(workers: int):
    loader = DataLoader(stream(), batch_size=None, num_workers=workers)
    assert_same(list(loader), [batch_at(step) for step in range(6)])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_slices_of_all_ranks_are_the_batch_of_one(world: int):
    slices = [list(stream(rank=rank, world=world)) for rank in range(world)]
    joint = [
        {key: torch.cat([slices[rank][step][key] for rank in range(world)]) for key in slices[0][step]}
        for step in range(6)
    ]
    assert_same(joint, [batch_at(step) for step in range(6)])


def test_corruption_does_not_know_the_ranks():
    model, tokens = make_strategy("mlm"), text_rows(N_ROWS)["tokens"]

    class Rows(ToyRows):
        def read(self, indices) -> Batch:
            return {"tokens": tokens[torch.from_numpy(indices)]}

    alone = next(iter(Stream(Rows(), model.corrupt_at, 0, PER_STEP, 3, 4, 0, 1)))
    halves = [next(iter(Stream(Rows(), model.corrupt_at, 0, PER_STEP, 3, 4, rank, 2))) for rank in range(2)]
    assert equal_batches(alone, {key: torch.cat([half[key] for half in halves]) for key in alone})


# Resuming


def loader_of(step: int, *, world: int = 1, per_step: int = PER_STEP) -> DataLoader[Batch]:
    module = BatchModule(
        train=ToyRows(), corrupt=jitter, seed=0, rows_per_step=per_step, ranks=world, loader_workers=0
    )
    device = SimpleNamespace(root_device=torch.device("cpu"))
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=step, max_steps=6, world_size=world, global_rank=0, strategy=device
    )
    return module.train_dataloader()


@pytest.mark.parametrize("step", [0, 1, 4, 6])
def test_resuming_at_a_step_gives_the_rest_of_the_run(step: int):
    assert_same(list(loader_of(step)), [batch_at(i) for i in range(step, 6)])


# Refusals


def test_rows_that_do_not_divide_among_ranks_are_refused():
    with pytest.raises(ConfigError, match=r"8 rows per step .* 3 ranks"):
        loader_of(0, world=3)


def test_a_budget_smaller_than_one_step_is_refused():
    with pytest.raises(ConfigError, match="20 rows, but one step takes 21"):
        loader_of(0, per_step=21)


# Rows


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextData:
    return prepare(tmp_path_factory.mktemp("toy"))


def test_text_rows_cut_the_packed_documents_one_after_another(text: TextData):
    tokens = text.train()
    rows = TextRows(tokens, 10)
    assert len(rows) == tokens.n_tokens // 10
    read = rows.read(np.array([3, 0, len(rows) - 1]))["tokens"]
    assert read.dtype == torch.int64
    packed = tokens.read(0, tokens.n_tokens).tolist()
    expected = [packed[10 * i : 10 * (i + 1)] for i in (3, 0, len(rows) - 1)]
    assert read.tolist() == expected


def test_the_rows_of_a_budget_are_the_first_of_all(text: TextData):
    whole, small = TextRows(text.train(), 10), TextRows(text.train(500), 10)
    assert 0 < len(small) < len(whole)
    every = np.arange(len(small))
    assert equal_batches(small.read(every), whole.read(every))


def test_pair_rows_keep_images_with_captions_and_budgets_nest(text: TextData, tmp_path: Path):
    data = prepare_pairs(ToyPairs(toy_pairs()), text.tokenizer_path, 6, tmp_path)
    rows = PairRows(data.train())
    some = rows.read(np.array([5, 2]))
    assert {key: (values.shape, values.dtype) for key, values in some.items()} == {
        "images": ((2, 4, 4, 3), torch.uint8),
        "captions": ((2, 6), torch.int64),
    }
    everything = rows.all()
    assert equal_batches(some, {key: values[[5, 2]] for key, values in everything.items()})
    few = PairRows(data.train(7)).all()
    assert equal_batches(few, {key: values[:7] for key, values in everything.items()})


def test_writing_into_a_batch_leaves_the_data_alone(text: TextData, tmp_path: Path):
    data = prepare_pairs(ToyPairs(toy_pairs()), text.tokenizer_path, 6, tmp_path)
    for rows in (TextRows(text.train(), 10), PairRows(data.train())):
        before = rows.read(np.array([0]))
        for values in rows.read(np.array([0])).values():
            values.zero_()
        assert equal_batches(rows.read(np.array([0])), before)
