"""Laws of `sweeper=optuna`: better proposals with time, the same again when resumed, and never a claim."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from command_lines import many
from toy_runs import make_run, tables_of, toy_runs

from bench.analysis import claims
from bench.analysis.judging import examine
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.records import CurvePoint, write_record
from bench.report.tables.provenance import warnings
from bench.sweep import search as searching
from bench.sweep.search import search

pytestmark = pytest.mark.slow

KEYS = ("strategy=clm", "optim.lr_peak=tag(log,interval(1e-4,1e-1))")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the runs that were done, each with a loss that is lowest at a rate of 0.01."""
    done: list[str] = []

    def launch(specs: Sequence[RunSpec]) -> dict[str, str]:
        for spec in specs:
            if spec.recorded() is None:
                rate = spec.config["optim"]["lr_peak"]
                loss = abs(rate - 0.01) + 1 + 0.001 * spec.seed
                curve = (CurvePoint(1, 10, 1.0, 5.0, 5.0), CurvePoint(2, 20, 2.0, loss, loss))
                write_record(replace(spec.record("finished"), curve=curve), spec.records)
                done.append(spec.run_id)
        return {spec.run_id: "finished" for spec in specs}

    monkeypatch.setattr(searching, "launch", launch)
    return done


def words(folder: Path, *others: str) -> list[str]:
    return ["sweeper=optuna", f"paths.experiments={folder}", "study=s", *KEYS, *others]


def test_a_search_comes_closer_to_the_best_than_its_first_proposals(tmp_path: Path, launched: list[str]):
    values = [trial.value for trial in search(words(tmp_path, "sweeper.trials=30"))]
    known = [value for value in values if value is not None]
    assert len(known) == len(launched) == 30
    assert min(known) < 1.002 < min(known[:4])


def test_a_search_that_is_started_again_asks_the_same_and_runs_only_what_is_left(
    tmp_path: Path, launched: list[str]
):
    whole = [t.specs[0].run_id for t in search(words(tmp_path / "a", "sweeper.trials=8"))]
    before = len(launched)
    list(search(words(tmp_path / "b", "sweeper.trials=4")))
    assert [t.specs[0].run_id for t in search(words(tmp_path / "b", "sweeper.trials=8"))] == whole
    assert len(launched) - before == 8


def test_seeds_are_runs_of_one_trial_whose_value_is_their_mean(tmp_path: Path, launched: list[str]):
    [trial] = search(words(tmp_path, "sweeper.trials=1", "seed=0,2"))
    rate = trial.specs[0].config["optim"]["lr_peak"]
    assert [spec.seed for spec in trial.specs] == [0, 2]
    assert trial.value == pytest.approx(abs(rate - 0.01) + 1.001)
    assert len(launched) == 2


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("strategy=clm", "model=0.2m,0.5m"), {"0.2m", "0.5m"}),
        (("strategy=clm", "seed=0", "sequence_length=range(32,97,32)"), {"0.5m"}),
    ],
)
def test_choices_and_ranges_are_proposed(
    given: tuple[str, ...], found: set[str], tmp_path: Path, launched: list[str]
):
    line = ["sweeper=optuna", f"paths.experiments={tmp_path}", "study=s", "sweeper.trials=12", *given]
    trials = list(search(line))
    assert {trial.specs[0].model for trial in trials} == found
    assert {trial.specs[0].config["sequence_length"] for trial in trials} <= {32, 64, 96}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["sweeper=optuna", "strategy=clm"], "no key to search"),
        (["sweeper=optuna", "optim.lr_pek=interval(0,1)"], "lr_pek"),
        (["sweeper=optuna", "optim.lr_peak=interval(1,0.1)"], "optim.lr_peak"),
        (["sweeper=optuna", "optim.lr_peak=tag(log,interval(0,0.1))"], "optim.lr_peak"),
        (["sweeper=optuna", "strategy=mlm,clm"], "cannot be compared"),
        (["sweeper=optuna", "sweeper.trials=0", "optim.lr_peak=interval(0.1,1)"], "sweeper.trials=0"),
        (["sweeper=optuna", "sweeper.metric=loss", "optim.lr_peak=interval(0.1,1)"], "sweeper.metric=loss"),
    ],
)
def test_a_wrong_search_is_one_line_and_runs_nothing(
    given: list[str], told: str, tmp_path: Path, launched: list[str]
):
    with pytest.raises(ConfigError, match=told) as caught:
        list(search([*given, f"paths.experiments={tmp_path}"]))
    assert "\n" not in str(caught.value)
    assert launched == []


def test_a_study_with_claims_is_not_searched(tmp_path: Path, launched: list[str]):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / claims.FILE).write_text("written: 2026-01-01\nclaims: {}\n")
    with pytest.raises(ConfigError, match="has claims"):
        list(search(words(tmp_path)))


def test_a_search_is_recorded_and_changes_no_id():
    [spec] = many("strategy=clm")
    [chosen] = many("strategy=clm", "sweeper=optuna")
    assert chosen.run_id == spec.run_id
    assert (spec.record("finished").exploratory, chosen.record("finished").exploratory) == (False, True)


def test_exploratory_runs_are_named_on_the_page_and_decide_no_claim():
    runs = [*toy_runs(), *(make_run("mlm", seed, 0.9, exploratory=True) for seed in range(3))]
    tables = tables_of(runs)
    assert sum(line.startswith("Exploratory: 3 of") for line in warnings(tables)) == 1
    sides = [claims.Side(strategy=name) for name in ("mlm", "clm")]
    claim = claims.Claim("", "", "superiority", *sides, claims.Side(), "probe", "accuracy")
    assert "only explores" in examine(tables, claim).why_not
    assert tables.runs["exploratory"].sum() == 3
