"""Our training steps as contenders: the full fit, a bare loop, data loading alone, matrix products alone.

Data are random ids and pixels in files of the same format as prepared data; speed does not depend on content.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from bench.config.run_spec import RunSpec
from bench.config.schema import Budget, Config, Trainer
from bench.data import shards
from bench.data.batches import Batch, Stream, loader
from bench.data.pairs import PairData
from bench.data.prepare import Prepared
from bench.data.shards import TextData
from bench.data.tokenizer import EOS, SPECIAL_TOKENS
from bench.models.flops import StepCost
from bench.objectives import optim
from bench.objectives.base import Objective
from bench.speed.ablations import ablated
from bench.speed.settings import Facts, Pace, Task
from bench.training.energy import EnergyMeter
from bench.training.metric_file import StatusFile
from bench.training.pretrain import Job, build_objective, held_out_batches, pretrain, rows_of
from bench.training.step import computed_as, device_of
from bench.training.stopping import Stop

MOST_ROWS = 8192  # unique rows; longer runs repeat them
SQUARE = {"cpu": 1024, "cuda": 8192}  # sides of the products that are not the model's
REPEATS = {"cpu": 1, "cuda": 10}  # products between two readings of the clock
PRODUCT_S = 0.03  # duration for which each product is repeated
GIGA = 1e9


@dataclass(frozen=True)
class Setup:
    """One of our runs, ready for its first step."""

    spec: RunSpec
    config: Config
    objective: Objective
    cost: StepCost
    data: Prepared
    n_steps: int

    @property
    def device(self) -> torch.device:
        """Return the device of its steps."""
        return device_of(self.config.trainer)

    def autocast(self) -> torch.autocast:
        """Return a context that computes products in the precision of the run."""
        is_on = self.config.trainer.precision == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_on)

    def batches(self, workers: int = 0) -> "DataLoader[Batch]":
        """Return the batches of its steps, as `bench.data.batches.BatchModule` makes them."""
        train, _ = rows_of(self.spec, self.objective, self.data)
        stream = Stream(
            rows=train,
            corrupt=self.objective.corrupt_at,
            seed=self.spec.seed,
            rows_per_step=self.cost.rows,
            start=0,
            stop=self.n_steps,
            rank=0,
            world=1,
        )
        return loader(stream, workers, self.device)

    def held_out(self) -> list[Batch]:
        """Return its validation batches."""
        _, validation = rows_of(self.spec, self.objective, self.data)
        return held_out_batches(self.config, self.objective, validation, self.cost)

    def facts(self, what: str) -> Facts:
        """Return the facts of one step."""
        parameters = sum(p.numel() for p in self.objective.parameters())
        return Facts(what, parameters, self.cost.forward_tokens, self.cost.flops)


def set_up(task: Task, folder: Path) -> Setup:
    """Build the objective with its initial weights and write data for all steps into `folder`."""
    config = task.spec.typed()
    objective = build_objective(task.spec, vocab_size=config.tokenizer.vocab_size, image_size=task.image_size)
    cost = objective.step_cost(config.optim.tokens_per_step)
    plain = task.spec.config
    budget = asdict(Budget(tokens=task.n_steps * cost.forward_tokens, repeat=True))
    paths = {name: str(folder / name) for name in ("data", "experiments", "reports")}
    spec = replace(task.spec, config=plain | {"budget": budget, "paths": paths})
    data = random_data(config, folder, cost.rows, task)
    return Setup(spec, spec.typed(), objective, cost, data, task.n_steps)


def random_data(config: Config, folder: Path, rows_per_step: int, task: Task) -> Prepared:
    """Write corpora of random tokens and pixels in the format of prepared data; calls are deterministic."""
    random = np.random.default_rng(config.seed)
    n_rows = {"train": min(task.n_steps * rows_per_step, MOST_ROWS), "validation": rows_per_step}
    n_rows["train"] = max(n_rows["train"], rows_per_step)
    low, high = len(SPECIAL_TOKENS), config.tokenizer.vocab_size
    dtype = np.dtype(np.uint16 if high <= shards.NARROW_VOCAB_SIZE else np.uint32)
    folder.mkdir(parents=True, exist_ok=True)
    texts, pairs = {}, {}
    for split in ("train", "validation"):
        n, side = n_rows[split], task.image_size
        tokens = random.integers(low, high, n * config.sequence_length, dtype)
        tokens.tofile(shards.shard_path(folder, split, 0))
        captions = random.integers(low, high, (n, config.caption_length), dtype)
        captions[:, -1] = EOS
        np.save(folder / f"{split}.captions.npy", captions)
        np.save(folder / f"{split}.images.npy", random.integers(0, 256, (n, side, side, 3), np.uint8))
        texts[split] = {"documents": n, "bytes": tokens.nbytes, "tokens": tokens.size}
        pairs[split] = {"pairs": n}
    shared = {"content_sha256": "", "provenance": {"source": "random"}}
    text = {"vocab_size": high, "dtype": dtype.name, "shard_tokens": shards.SHARD_TOKENS, "splits": texts}
    return Prepared(
        TextData(folder, shared | text | {"tokenizer_sha256": ""}),
        PairData(folder, shared | {"image_size": task.image_size, "splits": pairs}),
        checkpoint=None,
    )


class _StepCounter(Stop):
    """A stop that `bench.training.callbacks.Progress` queries after each step, which marks the step's end."""

    def __init__(self, pace: Pace) -> None:
        super().__init__([])
        self.pace = pace

    @override
    def listen(self) -> None:  # the process that times handles signals
        pass

    @override
    def wanted(self) -> bool:
        self.pace.step()
        return False


def fit(task: Task, folder: Path, pace: Pace) -> Objective:
    """Call `bench.training.pretrain.pretrain` as `bench train` does, with its callbacks and files."""
    ready = set_up(task, folder)
    ready.spec.folder.mkdir(parents=True)
    status = StatusFile(ready.spec.folder, ready.spec.label)
    energy = EnergyMeter(ready.config.energy)
    job = Job(ready.spec, ready.spec.folder, [], status, _StepCounter(pace), energy)
    how = "its blocks compiled" if ready.config.trainer.compile else "under Lightning"
    pace.start(ready.facts(f"ours, {how}"))
    pretrain(job, ready.objective, ready.data)
    return ready.objective


def fit_without(optimisation: str, task: Task, folder: Path, pace: Pace) -> Objective:
    """Call `fit` without one of the optimisations that `ABLATIONS` names."""
    with ablated(optimisation):
        return fit(task, folder, pace)


def bare_loop(task: Task, folder: Path, pace: Pace) -> Objective:
    """Do the same steps without Lightning, loggers and callbacks."""
    ready = set_up(task, folder)
    torch.use_deterministic_algorithms(True, warn_only=ready.device.type == "cuda")  # as in make_trainer
    pace.start(ready.facts("the same in a bare loop"))
    for _ in plain_steps(ready):
        pace.step()
    return ready.objective


def plain_steps(ready: Setup) -> Iterator[Tensor]:
    """Train on all batches in a plain loop, and yield the loss after each step."""
    objective, settings, place = ready.objective.to(ready.device), ready.config.optim, ready.config.trainer
    optimizer = optim.optimizer_of(objective, settings, objective.shapes.model.d_model)
    scheduler = optim.schedule(optimizer, settings, ready.n_steps)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]  # in Lightning's order
    objective.train()
    with computed_as(objective, place):
        for i, batch in enumerate(ready.batches(place.loader_workers)):
            moved = {name: values.to(ready.device, non_blocking=True) for name, values in batch.items()}
            with ready.autocast():
                loss = objective.training_step(moved, i)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
            scheduler.step()
            yield loss.detach()


def data_alone(task: Task, folder: Path, pace: Pace) -> None:
    """Make the batches of the same steps and discard them."""
    ready = set_up(task, folder)
    pace.start(Facts("its batches alone", 0, ready.cost.forward_tokens, 0))
    for _ in ready.batches():
        pace.step()


def products_alone(task: Task, folder: Path, pace: Pace) -> None:
    """Time the fastest of some matrix products, an upper limit for any model made of them.

    It reports the seconds of 10^9 FLOPs.
    """
    ready = set_up(task, folder)
    pace.start(Facts("matrix products alone", 0, 0, GIGA))
    kind = torch.bfloat16 if ready.config.trainer.precision == "bf16-mixed" else torch.float32
    make, wait = partial(torch.randn, device=ready.device, dtype=kind), waiting(ready.config.trainer)
    pairs = [(make(m, k), make(k, n)) for m, k, n in product_shapes(ready)]
    flops = [2.0 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in pairs]  # a multiply-add counts as two
    while True:
        pace.tell(min(_seconds(a, b, wait) * GIGA / n for (a, b), n in zip(pairs, flops, strict=True)))


def product_shapes(ready: Setup) -> list[tuple[int, int, int]]:
    """Return (M, K, N) of the products of the model's matrices with all tokens, and of large squares."""
    model, tokens = ready.config.model, ready.cost.forward_tokens
    targets = max(1, round(ready.cost.predicted_tokens))
    d, f, v = model.d_model, model.d_ff, ready.config.tokenizer.vocab_size
    of_model = [(tokens, d, 3 * d), (tokens, d, d), (tokens, d, 2 * f), (tokens, f, d)]
    side = SQUARE[ready.device.type]
    return [*of_model, (targets, d, v), (side, side, side), (2 * side, side, 2 * side)]


def waiting(trainer: Trainer) -> Callable[[], None]:
    """Return a function that waits for all started work, since a GPU works asynchronously."""
    return torch.cuda.synchronize if trainer.accelerator == "gpu" else lambda: None


def _seconds(a: Tensor, b: Tensor, wait: Callable[[], None]) -> float:
    """Return the shortest duration of one product."""
    out, n = torch.mm(a, b), REPEATS[a.device.type]
    wait()
    best, began = float("inf"), time.perf_counter()
    while (now := time.perf_counter()) < began + PRODUCT_S:
        for _ in range(n):
            torch.mm(a, b, out=out)
        wait()
        best = min(best, (time.perf_counter() - now) / n)
    return best
