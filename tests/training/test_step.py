"""How a step is computed changes no gradient beyond rounding: recomputed, in parts, compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from capabilities import product, representatives
from toy_models import make_strategy, rows_for, saved_tensors, with_pretraining

from bench.config import schema
from bench.data.batches import Batch
from bench.errors import ConfigError
from bench.objectives.base import Loss, Objective
from bench.training.step import computed_as

TRAINED = with_pretraining()
IN_PARTS = [stem for stem in TRAINED if not make_strategy(stem).couples_rows]
N_ROWS = 8


def place(**settings: Any) -> schema.Trainer:
    return schema.Trainer(accelerator="cpu", precision="64-true", **settings)


def batch_of(model: Objective) -> Batch:
    return model.corrupt_at(rows_for(model, N_ROWS), torch.Generator().manual_seed(0), 0.9)


def step(model: Objective, settings: schema.Trainer) -> tuple[Loss, dict[str, torch.Tensor], int]:
    """Loss, gradients of the mean of each term, and the bytes that autograd keeps on the way."""
    with computed_as(model, settings), saved_tensors() as kept:
        loss = model.loss(batch_of(model))
        n_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        (loss.sum / torch.as_tensor(loss.count)).sum().backward()
    return loss, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}, n_bytes


@pytest.mark.parametrize("stem", TRAINED)
def test_a_step_that_recomputes_has_the_same_gradients_from_fewer_bytes(stem: str):
    plain, frugal = make_strategy(stem).train(), make_strategy(stem).train()
    (loss, gradients, n_bytes), (again, others, fewer) = (
        step(plain, place()),
        step(frugal, place(recompute=True)),
    )
    assert frugal.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(loss.sum, again.sum)
    assert gradients.keys() == others.keys()
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())
    assert fewer < 0.8 * n_bytes


@pytest.mark.slow
@pytest.mark.parametrize("n_parts", [3, 8, 20])  # that do not divide the rows, as many, more
@pytest.mark.parametrize("stem", IN_PARTS)
def test_a_step_in_parts_has_the_gradients_of_the_whole(stem: str, n_parts: int):
    whole, split = make_strategy(stem).train().double(), make_strategy(stem).train().double()
    loss, gradients, _ = step(whole, place())
    again, others, _ = step(split, place(accumulate_grad_batches=n_parts))
    torch.testing.assert_close(again.sum, loss.sum)
    assert torch.equal(torch.as_tensor(again.count), torch.as_tensor(loss.count))
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-9, atol=1e-12)


@contextmanager
def most_alive() -> Iterator[list[int]]:
    """The most bytes that autograd keeps at one time, inside."""
    sizes: dict[int, int] = {}
    most = [0]

    class Held:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor
            sizes[id(self)] = tensor.nbytes
            most[0] = max(most[0], sum(sizes.values()))

        def __del__(self) -> None:
            sizes.pop(id(self), None)

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        yield most


@pytest.mark.parametrize("stem", ["clm", "rtd"])
def test_a_step_in_parts_holds_one_part_at_a_time(stem: str):
    held = []
    for n_parts in (1, N_ROWS):
        model = make_strategy(stem).train()
        with computed_as(model, place(accumulate_grad_batches=n_parts)), most_alive() as most:
            model.loss(batch_of(model)).sum.sum().backward()
        held.append(most[0])
    weights = sum(parameter.nbytes for parameter in make_strategy(stem).parameters())
    assert held[1] < held[0] / 3 + weights


def test_parts_of_rows_that_a_loss_holds_against_each_other_are_refused():
    with (
        pytest.raises(ConfigError, match=r"trainer\.accumulate_grad_batches=2: Clip compares all rows"),
        computed_as(make_strategy("clip"), place(accumulate_grad_batches=2)),
    ):
        pass


COMPILED = ["clm", "mlm", "masked_diffusion", "prefix_lm", "clip"]


def modality(stem: str) -> str:
    return make_strategy(stem).modality


@pytest.mark.slow
@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])  # what is compiled for one; here both on the CPU
@pytest.mark.parametrize("stem", product(COMPILED, representatives(COMPILED, modality)))
def test_a_compiled_step_has_the_same_gradients_and_leaves_no_trace(
    stem: str, accelerator: str, monkeypatch: pytest.MonkeyPatch
):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile_, backend="aot_eager", fullgraph=True))
    plain, compiled = make_strategy(stem).train().double(), make_strategy(stem).train().double()
    loss, gradients, _ = step(plain, place())
    again, others, _ = step(compiled, replace(place(compile=True), accelerator=accelerator))
    torch.testing.assert_close(again.sum, loss.sum)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-9, atol=1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not any({"forward", "nll_and_gradient"} & vars(module).keys() for module in compiled.modules())


@pytest.mark.gpu
@pytest.mark.parametrize("stem", TRAINED)
def test_on_a_gpu_a_step_in_bf16_is_near_the_cpus_in_full(stem: str):
    compare_on_gpu(stem, place())


@pytest.mark.gpu
@pytest.mark.parametrize("stem", ["clm", "mlm", "span_corruption", "clip"])
@pytest.mark.parametrize("recompute", [False, True])
def test_on_a_gpu_a_compiled_step_is_near_the_cpus(stem: str, recompute: bool):
    compare_on_gpu(stem, replace(place(compile=True, recompute=recompute), accelerator="gpu"))


def compare_on_gpu(stem: str, settings: schema.Trainer) -> None:
    plain, model = make_strategy(stem).train(), make_strategy(stem).train().to("cuda")
    loss, gradients, _ = step(plain, place())
    batch = {name: values.to("cuda") for name, values in batch_of(plain).items()}
    with computed_as(model, settings), torch.autocast("cuda", torch.bfloat16):
        again = model.loss(batch)
    (again.sum / torch.as_tensor(again.count).to("cuda")).sum().backward()
    torch.testing.assert_close(again.sum.cpu(), loss.sum, rtol=0.02, atol=0.02)
    mine = torch.cat([p.grad.cpu().flatten() for k, p in model.named_parameters() if k in gradients])
    theirs = torch.cat([gradients[k].flatten() for k, _ in model.named_parameters() if k in gradients])
    assert (mine - theirs).norm() < 0.05 * theirs.norm()
