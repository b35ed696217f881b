"""Contrastive losses by their formulas; two processes are one: the same loss and the same gradients."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from toy_models import SHAPES, generator, make_strategy, pair_rows, text_rows, with_pretraining

from bench.data.batches import Batch
from bench.data.tokenizer import EOS
from bench.objectives.base import Loss, Objective, mean_over_ranks
from bench.objectives.contrastive import chunked_sigmoid_loss, gather_rows, info_nce, sigmoid_loss

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


def with_gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The loss, then its gradient to each input."""
    leaves = [values.detach().clone().requires_grad_() for values in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def test_info_nce_is_the_loss_of_transformers_clip():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    def theirs(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        return image_text_contrastive_loss(scale * texts @ images.T) * len(images)  # theirs is a mean

    inputs = unit_rows(6, 0), unit_rows(6, 1), torch.tensor(7.0)
    for mine, expected in zip(
        with_gradients(info_nce, *inputs), with_gradients(theirs, *inputs), strict=True
    ):
        assert_close(mine, expected)


def sigmoid_by_formula(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's double sum with the bias of its algorithm 1; the texts of others come last."""
    total = torch.zeros(())
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            z = 1 if i == j else -1
            total = total - torch.log(1 / (1 + torch.exp(-z * (scale * image @ text + bias))))
    return total


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (3.0, 0.5)])
def test_the_sigmoid_loss_is_the_papers_double_sum(scale: float, bias: float):
    inputs = unit_rows(4, 0), unit_rows(4, 1), torch.tensor(scale), torch.tensor(bias)
    expected = with_gradients(sigmoid_by_formula, *inputs)
    for mine, theirs in zip(with_gradients(sigmoid_loss, *inputs), expected, strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_sigmoid_loss_by_hand():
    images, texts = torch.eye(2), torch.eye(2)  # own logits log 3, others -log 3: each right with 3/4
    loss = sigmoid_loss(images, texts, torch.tensor(9.0).log(), -torch.tensor(3.0).log())
    assert_close(loss, 4 * torch.tensor(4 / 3).log())


@pytest.mark.parametrize("own", [0, 2])
def test_the_sigmoid_loss_in_chunks_is_that_of_the_whole(own: int):
    inputs = unit_rows(4, 0), unit_rows(12, 1), torch.tensor(10.0), torch.tensor(-10.0)

    def chunked(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return chunked_sigmoid_loss(images, texts.split(4), own, scale, bias)

    def whole(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return sigmoid_by_formula(images, texts.roll(-4 * own, dims=0), scale, bias)

    for mine, theirs in zip(with_gradients(chunked, *inputs), with_gradients(whole, *inputs), strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_backward_keeps_no_logits_of_a_chunk():
    images, kept = unit_rows(40, 0).requires_grad_(), []

    def keep(values: Tensor) -> Tensor:
        kept.append(values.numel())
        return values

    chunks = unit_rows(120, 1).split(40)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
        chunked_sigmoid_loss(images, chunks, 0, torch.tensor(10.0), torch.tensor(-10.0))
    assert max(kept) < 40 * 40


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
    return model, model.corrupt_at(rows, generator(), progress=0.0)


def one_step(model: Objective, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """The mean loss, and the gradients as DDP leaves them: their mean over ranks, zero of idle weights."""
    model.training_step(batch, 0).backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
        if p.requires_grad
    }
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
        results[stem] = (*one_step(model, mine), torch.as_tensor(model.loss(mine).count))
    results["mean"] = mean_over_ranks(Loss(torch.tensor([3.0, 5.0][rank]), [1, 3][rank]))
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


STEMS = tuple(with_pretraining())


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    # Forks of the server in `deadly`, which has torch imported already.
    mp.start_processes(_work, args=(STEMS, folder), nprocs=WORLD, start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.parametrize("stem", STEMS)
def test_two_processes_equal_one_in_loss_and_gradient(stem: str, ranks: list[dict]):
    expected_loss, expected = one_step(*joint_batch(stem))
    for loss, gradients, _ in (results[stem] for results in ranks):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        for name, gradient in expected.items():
            atol = 1e-5 * float(gradient.abs().max())
            assert_close(gradients[name], gradient, rtol=1e-5, atol=atol)


@pytest.mark.slow
def test_ranks_with_unequal_counts_are_weighed_by_them(ranks: list[dict]):
    counts = [results["mlm"][2] for results in ranks]
    assert counts[0] > counts[1] > 0
    for mean, count, world in (results["mean"] for results in ranks):
        assert (float(mean), count, world) == (2.0, 4.0, WORLD)  # not the mean of 3 and 5/3
    assert SHAPES.sequence_length * 4 > counts[0]
