"""Laws of `bench tune`: an equal search for all strategies, resumed from records, and frozen rates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from command_lines import many, one

from bench.config.command_settings import split_settings
from bench.config.compose import compose_evaluations
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.records import CurvePoint, write_record
from bench.sweep import tune as tuning
from bench.sweep.tune import Tune, table, tune

EXPERIMENT = """\
# @package _global_
defaults:
  - override /task: [library_probe]
  - override /tuned: {study}
study: {study}
tokenizer:
  vocab_size: 1024
budget:
  tokens: 40_000
hydra:
  sweeper:
    params:
      strategy: clm,mlm,scratch
      model: 0.2m,0.5m
      seed: range(3)
"""
Loss = Callable[[RunSpec], float]


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    folder = tmp_path / "my_conf"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment/rated.yaml").write_text(EXPERIMENT.format(study="rated"))
    return folder


@pytest.fixture
def words(conf: Path, tmp_path: Path) -> list[str]:
    return [f"hydra.searchpath=[{conf}]", "experiment=rated", f"paths.experiments={tmp_path}/experiments"]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """The runs that were done; the loss of clm is lowest at 0.024, that of mlm at 0.006, without noise."""
    found: list[RunSpec] = []

    def launch(specs: Sequence[RunSpec]) -> dict[str, str]:
        for spec in specs:
            if spec.recorded() is None:
                found.append(spec)
                rate, best = spec.config["optim"]["lr_peak"], {"clm": 0.024, "mlm": 0.006}[spec.strategy]
                loss = 3 + abs(math.log(rate / best)) + 0.001 * (spec.seed - 1000)
                loss += abs(spec.config["optim"]["weight_decay"] - 0.1)
                status = (
                    "diverged" if spec.strategy == "mlm" and rate > 0.02 and spec.seed == 1001 else "finished"
                )
                curve = (CurvePoint(1, 10, 1.0, 5.0, 5.0), CurvePoint(2, 20, 2.0, loss, loss))
                write_record(replace(spec.record(status), curve=curve), spec.records)
        return {spec.run_id: "finished" for spec in specs}

    monkeypatch.setattr(tuning, "launch", launch)
    monkeypatch.setattr(tuning, "_unigram_nats", lambda spec: 3.5 if spec.strategy == "clm" else None)
    return found


def searched(words: Sequence[str], *own: str) -> list[tuning.Choice]:
    settings, rest = split_settings("tune", Tune, [*words, *own])
    return tune(rest, settings, lambda line: None)


def test_the_grid_is_extended_for_all_and_every_strategy_has_the_same_budget(
    words: list[str], done: list[RunSpec], conf: Path
) -> None:
    clm, mlm = searched(words)
    assert clm.best.lr_peak == 0.024
    assert mlm.best.lr_peak == 0.006
    assert math.isinf(mlm.losses[max(mlm.losses)])  # one seed of two has diverged
    assert list(clm.losses) == list(mlm.losses)
    assert {t.lr_peak for t in clm.losses} == {0.0015, 0.003, 0.006, 0.012, 0.024, 0.048}
    assert len(done) == 2 * 6 * 2
    assert {spec.config["budget"]["tokens"] for spec in done} == {10_000}
    assert {spec.seed for spec in done} == {1000, 1001}
    assert {spec.model for spec in done} == {"0.2m"}
    assert {spec.study for spec in done} == {"rated_tuning"}
    assert {len(spec.config["task"]) for spec in done} == {0}
    written = yaml.safe_load((conf / "tuned/rated.yaml").read_text())
    assert written["strategies"].keys() == {"clm", "mlm"}
    assert set(written["strategies"]["clm"]["runs"]) == {s.run_id for s in done if s.strategy == "clm"}
    lines = table([clm, mlm])
    assert lines[1].split() == ["clm", "5.7731", "5.0799", "4.3868", "3.6936", "3.0005*", "3.6936"]
    assert lines[2].split()[-2:] == ["diverged", "diverged"]
    assert lines[3:] == ["mlm: its loss cannot be held against the entropy of single tokens"]


def test_a_search_that_is_started_again_does_only_what_is_left(words: list[str], done: list[RunSpec]) -> None:
    edge = searched(words, "tune.most_extensions=0")
    assert [choice.edge for choice in edge] == [1, 0]
    assert "3.6936!" in table(edge)[1]
    assert "tune.most_extensions" in table(edge)[3]
    n = len(done)
    searched(words)
    assert len(done) == n + 2 * 2 * 2
    searched(words)
    assert len(done) == n + 2 * 2 * 2


def test_runs_use_their_strategys_rate_and_keep_their_names(words: list[str], done: list[RunSpec]) -> None:
    with pytest.raises(
        ConfigError, match=r"tuned=rated: there is no conf/tuned/rated\.yaml; run `bench tune exp"
    ):
        many(*words)
    searched(words, "tune.weight_decay=[0.01,0.2]")
    runs = many(*words, "model=0.2m", "seed=0")
    assert [(s.strategy, s.config["optim"]["lr_peak"]) for s in runs][:2] == [("clm", 0.024), ("mlm", 0.006)]
    assert {spec.config["optim"]["weight_decay"] for spec in runs[:2]} == {0.01}
    assert {spec.variant for spec in runs} == {""}
    same = one("strategy=clm", *_plain(words), "optim.lr_peak=0.024", "optim.weight_decay=0.01")
    assert same.run_id == runs[0].run_id  # the id holds the rate, not where it comes from
    [shared] = many(*words, "model=0.2m", "seed=0", "strategy=clm", "tuned=none")
    assert shared.variant == "optim.lr_peak=0.006 optim.weight_decay=0.1"
    [given] = many(*words, "model=0.2m", "seed=0", "strategy=clm", "optim.lr_peak=0.5")
    assert given.config["optim"]["lr_peak"] == 0.5
    with pytest.raises(ConfigError, match="tuned=rated: no rate of rtd; run `bench tune experiment=rated`"):
        many(*words, "strategy=rtd")


def _plain(words: Sequence[str]) -> list[str]:
    return [*words, "model=0.2m", "seed=0", "tuned=none"]


def test_rates_of_a_study_with_records_are_frozen(words: list[str], done: list[RunSpec], conf: Path) -> None:
    searched(words)
    spec = many(*words)[0]
    write_record(spec.record("finished"), spec.records)
    searched(words)  # the same rates
    path = conf / "tuned/rated.yaml"
    path.write_text(path.read_text().replace("lr_peak: 0.024", "lr_peak: 0.1"))
    with pytest.raises(ConfigError, match="study rated has 1 runs, so its rates are frozen"):
        searched(words)
    with pytest.raises(ConfigError, match="tuned is fixed by the study's runs"):
        compose_evaluations([words[0], words[2], "study=rated", "task=[library_probe]", "tuned=none"])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("tune.seeds=[1000,2]", "tune.seeds: 2 is a seed of the study"),
        ("tune.share=0.1", r"tune\.share=0\.1: use 0\.25 or more"),
        ("tune.seed=[1]", "tune.seed: there is no such key; did you mean seeds"),
        ("optim.lr_peak=1e-3,2e-3", "optim.lr_peak differs between the experiment's runs"),
        ("tuned.strategies.clm.lr_peak=1", "tuned.strategies.clm.lr_peak has no effect here: set optim"),
        ("strategy=scratch", "no strategy of this experiment is pretrained"),
    ],
)
def test_what_would_be_no_equal_search_is_refused_by_its_key(
    own: str, message: str, words: list[str], done: list[RunSpec]
) -> None:
    with pytest.raises(ConfigError, match=message):
        searched(words, own)
    assert not done
