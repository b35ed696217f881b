"""InfoNCE by its formula; two processes are one: the same loss and the same gradients."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from toy_models import SHAPES, generator, make_strategy, pair_rows, text_rows

from bench.contrastive import gather_rows, info_nce
from bench.objectives.base import Batch, Loss, Objective, mean_over_ranks
from bench.vocabulary import EOS

WORLD = 2


def unit_rows(n: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, 5, generator=generator(seed)), dim=1)


# One process


def test_info_nce_is_the_mean_of_both_directions_cross_entropies():
    images, texts, scale = unit_rows(4, 0), unit_rows(4, 1), 7.0
    total = 0.0
    for i in range(4):
        own = scale * float(images[i] @ texts[i])
        for others in (texts @ images[i], images @ texts[i]):
            total += (float((scale * others).logsumexp(dim=0)) - own) / 2
    assert float(info_nce(images, texts, torch.tensor(scale))) == pytest.approx(total, rel=1e-5)


def test_info_nce_of_all_equal_rows_is_the_surprise_of_a_guess():
    rows = unit_rows(1, 0).expand(6, -1)
    assert_close(info_nce(rows, rows, torch.tensor(3.0)) / 6, torch.tensor(6.0).log())


def test_info_nce_does_not_know_images_from_texts_nor_the_order_of_pairs():
    images, texts, scale = unit_rows(4, 0), unit_rows(4, 1), torch.tensor(7.0)
    order = torch.tensor([2, 0, 3, 1])
    assert_close(info_nce(texts, images, scale), info_nce(images, texts, scale))
    assert_close(info_nce(images[order], texts[order], scale), info_nce(images, texts, scale))


def test_alone_there_is_nothing_to_gather():
    rows = unit_rows(3, 0)
    assert gather_rows(rows) is rows


# Two processes


def joint_batch(stem: str) -> tuple[Objective, Batch]:
    """A strategy and one step's rows, for all ranks; the text rows of rank 1 hold fewer targets."""
    model = make_strategy(stem)
    if model.modality == "pairs":
        return model, pair_rows(8)
    rows = text_rows(8)
    rows["tokens"][4:, 2:] = EOS
    return model, model.corrupt(rows, generator())


def one_step(model: Objective, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """The mean loss, and the gradients as DDP leaves them: their mean over ranks."""
    model.training_step(batch, 0).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    if dist.is_initialized():
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
    with torch.no_grad():
        return float(mean_over_ranks(model.loss(batch))[0]), gradients


def _work(rank: int, stems: tuple[str, ...], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    results = {}
    for stem in stems:
        model, batch = joint_batch(stem)
        share = len(next(iter(batch.values()))) // WORLD
        mine = {name: values[rank * share : (rank + 1) * share] for name, values in batch.items()}
        results[stem] = (*one_step(model, mine), int(model.loss(mine).count))
    results["mean"] = mean_over_ranks(Loss(torch.tensor([3.0, 5.0][rank]), [1, 3][rank]))
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


STEMS = ("clip", "mlm", "clm")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_work, args=(STEMS, folder), nprocs=WORLD)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("stem", STEMS)
def test_two_processes_equal_one_in_loss_and_gradient(stem: str, ranks: list[dict]):
    expected_loss, expected = one_step(*joint_batch(stem))
    for loss, gradients, _ in (results[stem] for results in ranks):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        for name, gradient in expected.items():
            atol = 1e-5 * float(gradient.abs().max())
            assert_close(gradients[name], gradient, rtol=1e-5, atol=atol)


def test_ranks_with_unequal_counts_are_weighed_by_them(ranks: list[dict]):
    counts = [results["mlm"][2] for results in ranks]
    assert counts[0] > counts[1] > 0
    for mean, count, world in (results["mean"] for results in ranks):
        assert (float(mean), count, world) == (2.0, 4.0, WORLD)  # not the mean of 3 and 5/3
    assert SHAPES.sequence_length * 4 > counts[0]
