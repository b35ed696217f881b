"""A whole study against scripts of Trainer: they do the same work, and the page says what was seen."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from harness import Place

from bench.errors import ConfigError
from bench.records import read_evaluations
from bench.speed import script, whole_study
from bench.speed.whole_study import OURS, PACKED, SCRIPTS, Measurement, Round, verdict


def rounds(*ours: float) -> list[Round]:
    return [Round({OURS: seconds, SCRIPTS: 30.0, PACKED: 20.0}, 0.01) for seconds in ours]


@pytest.mark.parametrize(
    ("ours", "expected"), [((10.0, 9.0), "met"), ((10.0, 11.0), "open"), ((11.0, 12.0), "missed")]
)
def test_a_third_is_met_or_missed_where_all_rounds_agree(ours: tuple[float, ...], expected: str):
    assert verdict(rounds(*ours)) == expected


def measurement(*rounds: Round, **changes: Any) -> Measurement:
    names = ("cpu", "threads", "torch", "pytorch-lightning", "transformers", "commit")
    stated = {"command": "bench speed experiment=toy", "machine": dict.fromkeys(names, "toy"), "runs": 4}
    return Measurement(**stated | changes, started_at="now", rounds=list(rounds))


def test_the_page_shows_each_round_and_its_ratio():
    noisy = Round({OURS: 6, SCRIPTS: 30, PACKED: 20}, 0.2)
    page = whole_study.markdown(measurement(*rounds(10.0), noisy))
    assert "| 30, 30 | 0.33, 0.20 |" in page
    assert "| 20, 20 | 0.50, 0.30 |" in page
    assert "in 1 of 2 rounds; repeat the measurement" in page


def test_the_same_command_goes_on_after_the_rounds_that_were_done(tmp_path: Path):
    whole_study._keep(measurement(*rounds(10.0, 9.0)), tmp_path)
    path, started = tmp_path / "study.json", measurement()
    dirty = measurement(machine=started.machine | {"commit": "toy-dirty"})  # by the file, where it is tracked
    assert started.earlier(path, 3).rounds == dirty.earlier(path, 3).rounds == rounds(10.0, 9.0)
    assert not started.earlier(path, 2).rounds  # was done: again from the first
    for change in (
        {"command": "bench speed experiment=other"},
        {"machine": started.machine | {"commit": "other"}},
    ):
        assert not measurement(**change).earlier(path, 3).rounds
    path.write_text(path.read_text()[:-9])
    assert not started.earlier(path, 3).rounds
    assert not started.earlier(tmp_path / "none", 3).rounds


def test_a_strategy_that_no_stock_class_trains_like_is_refused(settings: list[str]):
    with pytest.raises(ConfigError, match="strategy=rtd: no stock class"):
        whole_study.main([*settings, "strategy=rtd", "rounds=1"])


def test_a_script_that_fails_ends_the_measurement_with_its_last_words(tmp_path: Path):
    commands = [["sh", "-c", "echo no memory; exit 3"], ["sleep", "600"]]
    with pytest.raises(ConfigError, match="no memory"):
        whole_study._run(commands, tmp_path, os.environ, side_by_side=2, done=lambda: None)


@pytest.mark.faults
def test_scripts_do_what_the_sweep_does(place: Place):
    out = place.folder / "out"
    words = [*place.settings, "strategy=clm,scratch", "rounds=1", f"out={out}"]
    assert whole_study.main(words) == 0
    record = json.loads((out / "study.json").read_text())
    assert record["runs"] == 2
    (one,) = record["rounds"]
    assert all(seconds > 0 for seconds in one["seconds"].values())
    assert str(place.folder) not in (out / "study.md").read_text().replace(record["command"], "")


@pytest.mark.faults
def test_a_script_writes_weights_and_the_outcomes_of_all_tasks(place: Place):
    [spec] = whole_study.compose_runs([*place.settings, "strategy=mlm"], multirun=False)
    path = place.folder / "spec.json"
    path.write_text(spec.to_json())
    assert script.main(path, place.folder / "work", "modernbert") == 0
    assert (place.folder / "work/trainer/model.safetensors").exists()
    found, damaged = read_evaluations(place.folder / "work/adhoc/evaluations")
    assert not damaged
    [evaluation] = found[spec.run_id]
    assert {result.task for result in evaluation.results} == set(spec.config["task"])
