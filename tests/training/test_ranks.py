"""Two ranks give the weights of one process for every strategy and layout, and go on from each other."""

import socket
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from safetensors.torch import load_file
from torch import Tensor
from toy_models import make_strategy, with_pretraining
from two_ranks import one_of_two, ranks, trained

from bench.errors import DataError, LostRankError
from bench.training import pretrain
from bench.training.distributed import Agreement, Sharded, lost_ranks_named

TRAINED = with_pretraining()
LIMIT_S = 300


def on_two_ranks(folder: Path, layouts: Sequence[str], strategies: Sequence[str]) -> None:
    """Train in two forks of the server in `deadly`, which has imported all; their files are the result."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = get_context("forkserver")
    both = [
        context.Process(target=one_of_two, args=(rank, port, folder, layouts, strategies), daemon=True)
        for rank in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(LIMIT_S)
    assert [process.exitcode for process in both] == [0, 0]  # None: it hangs


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest of any element; a step moves one by about 1e-2."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.product
@pytest.mark.slow
def test_two_ranks_give_the_weights_of_one_process_for_every_strategy(tmp_path: Path):
    layouts = ("none", "full", "parts")
    on_two_ranks(tmp_path, layouts, TRAINED)
    far = {}
    for stem in TRAINED:
        alone = trained(stem, ranks(1))
        untrained = {name: weight.double() for name, weight in make_strategy(stem).state_dict().items()}
        assert difference(alone, untrained) > 1e-2
        for layout in layouts[:2] if make_strategy(stem).couples_rows else layouts:
            apart = difference(alone, load_file(tmp_path / f"{layout}-{stem}.safetensors"))
            if not apart < 1e-11:
                far[stem, layout] = apart
    assert far == {}


def rounding(stem: str) -> float:
    """Between a CPU and a GPU; pixels become floats of single precision, whatever the model's."""
    return 1e-5 if make_strategy(stem).modality == "pairs" else 1e-9


@pytest.mark.gpu
@pytest.mark.parametrize("stem", TRAINED)
def test_a_gpu_gives_the_weights_of_a_cpu(stem: str):
    gpu = replace(ranks(1), accelerator="gpu", loader_workers=1)
    assert difference(trained(stem, ranks(1)), trained(stem, gpu)) < rounding(stem)


@pytest.mark.gpu
@pytest.mark.parametrize("stem", ["clm", "clip", "clm_then_mlm"])
def test_a_gpu_gives_the_same_bits_again(stem: str):
    for precision in ("64-true", "32-true", "bf16-mixed"):
        gpu = replace(ranks(1), accelerator="gpu", precision=precision)
        assert difference(trained(stem, gpu), trained(stem, gpu)) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", [DDPStrategy, Sharded])
@pytest.mark.parametrize("stem", ["clm", "clip", "rtd"])
def test_one_rank_under_nccl_gives_the_weights_of_a_cpu(
    strategy: type[DDPStrategy], stem: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pretrain, "strategy_of", lambda *_, **__: strategy())
    with monkeypatch.context() as plain:
        plain.setattr(pretrain, "strategy_of", lambda *_, **__: "auto")
        alone = trained(stem, ranks(1))
    try:
        assert difference(alone, trained(stem, replace(ranks(1), accelerator="gpu"))) < rounding(stem)
        assert dist.get_backend() == "nccl"
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks_sharded_or_not(tmp_path: Path):
    strategies = ("clip", "clm_then_mlm")
    alone = {stem: trained(stem, ranks(1), keep=tmp_path / f"start-{stem}.ckpt") for stem in strategies}
    on_two_ranks(tmp_path, ("full",), strategies)  # their second halves alone
    for stem in strategies:
        assert difference(alone[stem], load_file(tmp_path / f"full-{stem}.safetensors")) < 1e-11
    for path in tmp_path.glob("start-*"):
        path.unlink()
    on_two_ranks(tmp_path, ("full",), strategies)
    for stem in strategies:
        again = trained(stem, ranks(1), start=tmp_path / f"full-{stem}.ckpt")
        assert difference(alone[stem], again) < 1e-11


def test_ranks_with_different_input_stop_in_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch):
    mine, theirs = {"config": "a", "tokenizer": "x"}, {"config": "a", "tokenizer": "y"}

    def all_gather(found: list[dict[str, str]], own: dict[str, str]) -> None:
        found[:] = [theirs, own]

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    two, model = SimpleNamespace(world_size=2), make_strategy("clm")
    Agreement(theirs).setup(two, model, "fit")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"^rank 1 has another tokenizer than rank 0; .*paths\.data"):
        Agreement(mine).setup(two, model, "fit")  # type: ignore[arg-type]


def test_a_broken_connection_becomes_one_line_and_other_errors_stay():
    with pytest.raises(LostRankError, match=r"trainer\.timeout_s=60"), lost_ranks_named(ranks(2)):
        raise RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="shapes"), lost_ranks_named(ranks(2)):
        raise RuntimeError("shapes do not fit")
