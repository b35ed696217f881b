"""Strategies as conf/ ships them on a tiny backbone, and toy rows for them to train on."""

from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from bench.config import schema
from bench.config.build import build, find_class
from bench.config.compose import compose_config
from bench.config.plugins import plugins
from bench.data.batches import Batch
from bench.data.tokenizer import EOS, PAD, SPECIAL_TOKENS
from bench.models.transformer import Transformer
from bench.objectives.base import Core, Objective, Shapes
from bench.objectives.reference import Reference

CONF = Path(__file__).parents[2] / "conf"
N_SPECIAL = len(SPECIAL_TOKENS)
MODEL = schema.Model(d_model=32, n_layers=2, n_heads=2, d_ff=48, patch_size=4)
SHAPES = Shapes(model=MODEL, vocab_size=64, sequence_length=16, caption_length=6, image_size=8)
OPTIM = schema.Optim(
    lr_peak=1e-2,
    lr_width=32,
    schedule="cosine",
    warmup_share=0.1,
    cooldown_share=0.2,
    final_lr_share=0.1,
    weight_decay=0.1,
    beta1=0.9,
    beta2=0.98,
    clip_norm=1.0,
    tokens_per_step=128,
)


@contextmanager
def saved_tensors(besides: Container[tuple[int, ...]] = ()) -> Iterator[dict[int, Tensor]]:
    """What autograd keeps of the passes inside, each storage once; `besides`: tensors of these shapes."""
    kept: dict[int, Tensor] = {}  # held, so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        if tuple(tensor.shape) not in besides:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def stems(folder: str) -> list[str]:
    """The choices of a config group, those of installed plug-ins as well."""
    return sorted(path.stem for path in paths_of(folder))


def paths_of(folder: str) -> list[Path]:
    """The files of a config group."""
    return [path for conf in (CONF, *plugins().values()) for path in sorted((conf / folder).glob("*.yaml"))]


def with_features() -> list[str]:
    """The strategies whose weights are here; an endpoint's are not."""
    return [
        stem for stem in stems("strategy") if find_class(strategy_node(stem), Objective, stem).has_weights
    ]


@lru_cache
def composed(stem: str) -> DictConfig:
    return compose_config("config", [f"strategy={stem}"]).strategy


def with_pretraining() -> list[str]:
    """The strategies that are pretrained here."""
    return [stem for stem in stems("strategy") if strategy_node(stem)["modality"] != "none"]


def strategy_node(stem: str, **changes: Any) -> dict[str, Any]:
    """A strategy's YAML with the parts that its defaults list brings."""
    node = OmegaConf.to_container(composed(stem))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()} | changes


def make_strategy(stem: str, *, seed: int = 0, shapes: Shapes = SHAPES, **changes: Any) -> Objective:
    node = strategy_node(stem, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        given = {"core": toy_core(shapes)} if find_class(node, Objective, "strategy") is Reference else {}
        return build(node, Objective, "strategy", shapes=shapes, optimizer=OPTIM, **given).eval()


def toy_core(shapes: Shapes) -> Core:
    """In place of a checkpoint: our backbone, with the attention that it has."""
    backbone = Transformer(shapes.model, shapes.vocab_size)
    backbone.is_causal = False
    return Core(backbone, torch.nn.Identity())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text_rows(n: int, seed: int = 0, shapes: Shapes = SHAPES) -> Batch:
    """Tokens with an EOS here and there, as packed documents have."""
    tokens = torch.randint(
        N_SPECIAL, shapes.vocab_size, (n, shapes.sequence_length), generator=generator(seed)
    )
    tokens[::2, 5] = EOS
    return {"tokens": tokens}


def pair_rows(n: int, seed: int = 0, shapes: Shapes = SHAPES) -> Batch:
    """Images of one colour each, captions of two or three tokens."""
    colours = torch.randint(256, (n, 1, 1, 3), generator=generator(seed))
    images = colours.expand(-1, shapes.image_size, shapes.image_size, -1).to(torch.uint8).contiguous()
    captions = torch.full((n, shapes.caption_length), PAD)
    captions[:, :3] = torch.randint(N_SPECIAL, shapes.vocab_size, (n, 3), generator=generator(seed + 1))
    captions[torch.arange(n), 2 + torch.arange(n) % 2] = EOS
    return {"images": images, "captions": captions}


def rows_for(model: Objective, n: int, seed: int = 0) -> Batch:
    return pair_rows(n, seed) if model.modality == "pairs" else text_rows(n, seed)


def ragged_tokens(lengths: list[int], seed: int = 0, vocab_size: int = SHAPES.vocab_size) -> Tensor:
    """Texts of these lengths, padded on the right: (N, longest)."""
    tokens = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(N_SPECIAL, vocab_size, (length,), generator=generator(seed + length))
    return tokens


def equal_batches(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
