"""A sweep is expanded as Hydra would; a mistake on the command line is one line that names it."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest
from command_lines import composed_whole, many, one
from omegaconf import OmegaConf

from bench.config.checks import validate
from bench.errors import ConfigError

pytestmark = pytest.mark.slow


def resolved(overrides: Sequence[str]) -> Any:
    whole = OmegaConf.to_container(composed_whole(overrides), resolve=True)
    assert isinstance(whole, dict)
    return whole | {"tuned": None}  # a file of rates is read into `optim`


# Sweeps


def test_a_sweep_is_the_product_in_order_and_scratch_stands_in_it_once():
    specs = many("strategy=scratch,clm", "budget=64kb,1mb", "seed=range(2)")
    found = [(spec.strategy, spec.budget, spec.seed) for spec in specs]
    assert found == [
        ("scratch", None, 0),
        ("scratch", None, 1),
        *(("clm", size, seed) for size in ("64kb", "1mb") for seed in (0, 1)),
    ]


@pytest.mark.slow
def test_each_run_of_a_sweep_is_what_hydra_composes_of_its_line():
    """Ours sets values in what choices gave."""
    shares = ("{clm: 0.1}", "{mlm: 0.5}")  # a part of a mapping leaves the rest
    axes = {
        "strategy": ("clm_then_mlm", "mixture"),
        "strategy.shares": shares,
        "model": ("0.2m", "0.5m"),
        "budget.tokens": ("1000", "1_000_000"),
    }
    specs = many(*(f"{key}={','.join(values)}" for key, values in axes.items()))
    lines = itertools.product(*([f"{key}={value}" for value in values] for key, values in axes.items()))
    assert [spec.config for spec in specs] == [resolved(line) for line in lines]
    assert len({spec.run_id for spec in specs}) == 16


@pytest.mark.parametrize(
    "words",
    [
        ("strategy.mask_rate=0.2", "optim=wsd", "strategy=mlm", "optim.lr_peak=2e-3"),
        ("budget.tokens=null", "budget.flops=1e10", "corpus.text.packages=[torch]"),
        ("experiment=quickstart", "task.library_probe.max_labels=300", "~task.retrieval_fitted"),
        ("++strategy.mask_rate=0.2", "study=other"),
        ("strategy.mask_rate=0.3", "strategy={mask_rate: 0.2}"),
        ("strategy.mask_rate=0.3", "++strategy.mask_rate=0.2", "seed=3", "strategy=mlm"),
        ("strategy=mixture", "strategy.shares={clm: 0.1}", "+task.library_probe.note=x"),
    ],
)
def test_a_run_is_what_hydra_composes_of_its_line(words: tuple[str, ...]):
    assert one(*words).config == resolved(words)


def test_the_command_line_wins_over_the_experiment():
    specs = many("experiment=quickstart", "strategy=clm", "model=1m", "budget=1mb")
    assert {(spec.strategy, spec.model, spec.budget) for spec in specs} == {("clm", "1m", "1mb")}
    assert [spec.seed for spec in specs] == [0, 1]


def test_a_sweep_has_to_be_asked_for():
    with pytest.raises(ConfigError, match="add -m"):
        one("seed=1,2")


# Mistakes


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("strategy=clmm", ["clmm"]),
        ("modle=1m", ["modle"]),
        ("model.d_modle=3", ["d_modle"]),
        ("strategy.mask_rte=0.1", ["mask_rte"]),
        ("strategy.mask_rate=high", ["strategy.mask_rate", "high"]),
        ("model.d_model=wide", ["wide"]),
        ("optim.lr_peak=fast", ["fast"]),
        ("seed=", ["seed"]),
        ("corpus/text=text_files", ["path"]),
        ("strategy.pooling=3", ["strategy.pooling"]),
        ("hydra=toy", ["hydra"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(override: str, parts: list[str]):
    with pytest.raises(ConfigError) as caught:
        one(override)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.n_heads=5", "model.n_heads"),
        ("model.n_heads=32", "RoPE"),
        ("model.n_layers=0", "model.n_layers"),
        ("model=hf", "model.name"),
        ("model.name=bert", "model=hf"),
        ("budget.flops=1e9", "budget.tokens"),
        ("budget.tokens=null", "budget.tokens"),
        ("budget.tokens=0", "budget.tokens"),
        ("budget.unique_bytes=0", "budget.unique_bytes"),
        ("optim.schedule=linear", "optim.schedule"),
        ("optim.warmup_share=1.5", "optim.warmup_share"),
        ("optim.clip_norm=0", "optim.clip_norm"),
        ("optim.schedule=wsd", "optim.cooldown_share"),
        ("sequence_length=1", "sequence_length"),
        ("caption_length=1", "caption_length"),
        ("seed=-1", "seed"),
        ("trainer.accelerator=tpu", "trainer.accelerator"),
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed needs trainer.accelerator=gpu"),
        ("trainer.devices=0", "trainer.devices"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches"),
        ("trainer.profiler=pytorch", "trainer.profiler"),
        ("strategy.modality=sound", "strategy.modality"),
    ],
)
def test_settings_that_cannot_work_together_name_a_key(override: str, key: str):
    with pytest.raises(ConfigError, match=re.escape(key)) as caught:
        validate(one(override).typed())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ("trainer=fsdp", "trainer.accumulate_grad_batches=2"),
        ("trainer=fsdp", "trainer.compile=true"),
        ("trainer=gpu", "trainer.precision=16-mixed", "trainer.accumulate_grad_batches=2"),
    ],
)
def test_ways_to_compute_a_step_that_do_not_go_together_are_refused(words: tuple[str, str]):
    with pytest.raises(ConfigError, match=r"trainer\.(accumulate_grad_batches|compile)"):
        validate(one(*words).typed())
