"""Every YAML in conf/ composes and passes the checks; a run's identity is its science."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from command_lines import composed_whole, many, one
from omegaconf import OmegaConf
from toy_models import CONF, stems

from bench.config import schema
from bench.config.checks import validate
from bench.config.compose import compose_config
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.models import flops
from bench.records import read_records

GROUPS = sorted(
    path.relative_to(CONF).as_posix()
    for path in CONF.rglob("*")
    if path.is_dir() and list(path.glob("*.yaml"))
)
OF_A_RUN = [group for group in GROUPS if group not in ("experiment", "figure")]
CHOICES = [(group, stem) for group in OF_A_RUN for stem in stems(group)]
ROOT = CONF.parent
# Studies whose settings are those of conf/ today; the first ones also have all tasks measured but those whose
# protocol has changed since.
DONE = ["aa", "compute_budgets", "quickstart", "scaling", "strategy_comparison"]
CHANGED = {
    "library_probe",
    "qc_probe",
    "ner_ieer",
    "ner_ieer_finetune",
    "docstring_qa_probe",
    "generation_nucleus",
}
FOUND = [*DONE, "strategies", "suite_smoke"]
TOLERANCE = 0.15  # of a preset's name against its parameters


def filled(*overrides: str) -> list[str]:
    """The overrides, and something for each key that is left to the user."""
    run = composed_whole(overrides)
    unnamed = ["model.name"] if run.model.d_model == 0 else []  # a checkpoint, whose sizes are read from it
    return [*overrides, *(f"{key}=toy" for key in [*OmegaConf.missing_keys(run), *unnamed])]


# Everything that ships


@pytest.mark.slow
@pytest.mark.parametrize(("group", "stem"), CHOICES)
def test_every_choice_composes_and_passes_the_checks(group: str, stem: str):
    choice = f"[{stem}]" if group == "task" else stem
    spec = one(*filled(f"{group}={choice}"))
    validate(spec.typed())


@pytest.mark.parametrize("stem", stems("figure"))
def test_every_figure_composes_under_its_name(stem: str):
    assert list(compose_config("report", ["study=toy", f"figure=[{stem}]"]).figure) == [stem]


@pytest.mark.slow
@pytest.mark.parametrize("stem", stems("experiment"))
def test_every_experiment_is_a_sweep_of_checked_runs_under_its_own_name(
    stem: str, monkeypatch: pytest.MonkeyPatch
):
    """All laws of an experiment in one test, since composing it takes longest."""
    monkeypatch.chdir(ROOT)
    specs = many(f"experiment={stem}")
    assert len(specs) > 1
    for spec in specs:
        validate(spec.typed())
        assert spec.study == stem
    assert len({spec.label for spec in specs}) == len(specs)
    require_paired_seeds(specs)
    assert (ROOT / "experiments" / stem / "README.md").exists()
    if stem in FOUND:
        require_known_records(stem, specs)


def require_paired_seeds(specs: Sequence[RunSpec]) -> None:
    """Every cell has the same seeds."""
    seeds: dict[tuple[str, ...], set[int]] = {}
    for spec in specs:
        cell = (spec.strategy, spec.model, spec.budget or "", spec.variant)
        seeds.setdefault(cell, set()).add(spec.seed)
    assert len({frozenset(found) for found in seeds.values()}) == 1


def require_known_records(study: str, specs: Sequence[RunSpec]) -> None:
    """A study launched again finds its records, those of older ids, too."""
    records, _ = read_records(ROOT / "experiments" / study / "records")
    assert {spec.run_id for spec in specs} == {record.run_id for record in records}
    if study in DONE:
        assert all(spec.pending_tasks().keys() <= CHANGED for spec in specs)


@pytest.mark.parametrize("stem", [stem for stem in stems("model") if stem != "hf"])
def test_a_models_name_is_its_number_of_parameters(stem: str):
    text = (CONF / "model" / f"{stem}.yaml").read_text()
    stated = re.search(r"vocabulary of ([\d,]+) tokens", text)
    assert stated, "the comment does not state the vocabulary"
    value, unit = re.fullmatch(r"([\d.]+)([mb])", stem).groups()  # type: ignore[union-attr]
    named = float(value) * {"m": 1e6, "b": 1e9}[unit]
    model = schema.Model(**OmegaConf.load(CONF / "model" / f"{stem}.yaml"))  # type: ignore[arg-type]
    counted = flops.text_parameters(model, int(stated[1].replace(",", "")))
    assert counted == pytest.approx(named, rel=TOLERANCE)


# Identity


@pytest.fixture(scope="module")
def plain() -> RunSpec:
    return one()


def other_choices(group: str) -> Iterator[str]:
    yield from (f"{group}={stem}" for stem in stems(group))


@pytest.mark.parametrize(
    "override",
    [
        *other_choices("logger"),
        *other_choices("launcher"),
        *(f"trainer={stem}" for stem in stems("trainer")),
        "study=other",
        "paths.data=elsewhere",
        "paths.experiments=elsewhere",
        "trainer.devices=4",
        "trainer.checkpoint_every_s=1",
        "trainer.accumulate_grad_batches=2",
        "trainer.compile=true",
        "trainer.profiler=simple",
        "trainer.precision=32",
        "trainer.accelerator=cuda",
        "callbacks=[device_stats,learning_rate]",
        "trainer.log_every_n_steps=1",
        "launcher.workers=7",
        "launcher.workers_by=throughput",
    ],
)
def test_where_and_how_a_run_happens_is_not_its_identity(override: str, plain: RunSpec):
    assert one(override).run_id == plain.run_id


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "strategy=clm",
        "strategy.mask_rate=0.15",
        "strategy.pooling=last",
        "model=0.2m",
        "model.d_ff=64",
        "budget=64kb",
        "budget.tokens=1000",
        "optim=wsd",
        "optim.lr_peak=1e-5",
        "tokenizer.vocab_size=300",
        "sequence_length=32",
        "caption_length=8",
        "corpus.text.min_chars=81",
        "corpus/text=nltk",
        "trainer.precision=bf16-mixed",
        "trainer.n_validations=3",
    ],
)
def test_what_may_change_a_number_is_the_identity(override: str, plain: RunSpec):
    assert one(override).run_id != plain.run_id


def test_the_same_science_written_otherwise_is_the_same_run(plain: RunSpec):
    assert one("optim.lr_peak=0.006").run_id == one("optim.lr_peak=6e-3").run_id
    assert one("model=0.5m", "seed=0").run_id == one("seed=0", "model=0.5m").run_id == plain.run_id


def test_a_strategy_without_pretraining_has_no_budget_and_no_optimizer():
    first, second = one("strategy=scratch", "budget=64kb"), one("strategy=scratch", "optim.lr_peak=1e-5")
    assert first.run_id == second.run_id
    assert first.budget is None
    assert first.run_id != one("strategy=scratch", "seed=1").run_id


def test_a_run_survives_the_way_to_its_worker(plain: RunSpec):
    again: dict[str, Any] = json.loads(plain.to_json())
    assert RunSpec(**again) == plain
    assert RunSpec(**again).typed() == plain.typed()


# Names


def test_a_changed_strategy_option_shows_in_the_strategys_name():
    specs = many("strategy=mlm", "strategy.mask_rate=0.15,0.4")
    assert [spec.strategy for spec in specs] == ["mlm[mask_rate=0.15]", "mlm[mask_rate=0.4]"]
    assert {spec.variant for spec in specs} == {""}


def test_any_other_changed_science_shows_as_a_variant():
    specs = many("optim.lr_peak=1e-3,2e-3", "optim=wsd", "trainer=gpu", "study=s", "seed=4")
    assert [spec.variant for spec in specs] == [
        "optim=wsd optim.lr_peak=0.001",
        "optim=wsd optim.lr_peak=0.002",
    ]
    assert {(spec.strategy, spec.model, spec.budget) for spec in specs} == {("mlm", "0.5m", "1mb")}


@pytest.mark.parametrize("tasks", ["task=[library_probe]", "task.library_probe.validation_items=7"])
def test_how_a_run_is_measured_is_no_part_of_its_identity(tasks: str, plain: RunSpec):
    assert one(tasks).run_id == plain.run_id
    assert one(tasks).pending_tasks() != plain.pending_tasks()


@pytest.mark.parametrize("swept", ["task.library_probe.test_items=350,700", "task=[a],[b]"])
def test_tasks_are_no_axis_of_a_sweep(swept: str):
    with pytest.raises(ConfigError, match="task settings cannot be swept"):
        many(swept)


def test_two_runs_of_a_sweep_never_share_a_name():
    specs = many("corpus.text.min_chars=80,200")
    assert len({spec.run_id for spec in specs}) == 2
    assert len({(spec.label, *spec.corpus.values()) for spec in specs}) == 2


def test_names_come_from_values_and_not_from_how_they_were_typed():
    assert one("strategy=mlm", "strategy.mask_rate=0.3").strategy == "mlm"
    assert one("budget.tokens=3_000_000").budget == one("budget.tokens=3000000").budget
    forced = many("strategy=mlm", "++strategy.mask_rate=0.15,0.4")
    assert [spec.strategy for spec in forced] == ["mlm[mask_rate=0.15]", "mlm[mask_rate=0.4]"]
    assert one("trainer.precision=64-true").variant == "precision=64-true"
