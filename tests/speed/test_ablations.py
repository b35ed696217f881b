"""Steps without their savings: other operations, the same losses, and every saving is left out."""

from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode
from toy_models import OPTIM, make_strategy, rows_for, with_pretraining

from bench.objectives import optim
from bench.objectives.base import Objective
from bench.speed.ablations import REPLACEMENTS, ablated
from bench.speed.settings import ABLATIONS, ALL_PLAIN

N_STEPS, N_ROWS = 20, 8
AT_TARGETS = ("mlm", "mntp", "masked_diffusion", "prefix_lm", "captioning")  # logits and the last block


def losses_of_steps(model: Objective, n_steps: int = N_STEPS) -> list[float]:
    optimizer = optim.adamw(model, OPTIM, model.shapes.model.d_model)
    found = []
    for i in range(n_steps):
        rows = rows_for(model, N_ROWS, seed=i)
        loss = model.loss(model.corrupt_at(rows, torch.Generator().manual_seed(i), i / n_steps))
        mean = (loss.sum / torch.as_tensor(loss.count)).sum()
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        found.append(float(mean.detach()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stem", with_pretraining())
def test_after_many_steps_losses_are_those_of_steps_without_any_saving(stem: str):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        losses = losses_of_steps(make_strategy(stem).train().to(dtype))
        with ablated(ALL_PLAIN):
            plain = losses_of_steps(make_strategy(stem).train().to(dtype))
        assert plain == pytest.approx(losses, rel=tolerance)


class Operations(TorchDispatchMode):
    """Counts what torch is asked for inside, by shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
        self.counts[f"{func} {shapes} {deterministic.fill_uninitialized_memory}"] += 1
        return func(*args, **(kwargs or {}))


def operations(stem: str, name: str | None) -> Counter[str]:
    with ablated(name) if name else nullcontext(), Operations() as seen:
        losses_of_steps(make_strategy(stem).train(), 1)
    return seen.counts


@pytest.fixture(autouse=True)
def _nothing_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deterministic, "fill_uninitialized_memory", False)


@pytest.mark.parametrize("stem", AT_TARGETS)
def test_every_saving_that_is_left_out_is_other_work(stem: str):
    kinds = [operations(stem, name) for name in (None, *ABLATIONS)]
    assert all(one != other for i, one in enumerate(kinds) for other in kinds[:i])
    assert operations(stem, None) == kinds[0]  # afterwards as ever


@pytest.mark.parametrize("stem", ["clm", "clip"])
def test_where_nothing_is_spared_nothing_is_left_out(stem: str):
    assert operations(stem, "last_block_everywhere") == operations(stem, None)


def test_every_saving_has_its_words():
    assert {*REPLACEMENTS, ALL_PLAIN} == set(ABLATIONS)
