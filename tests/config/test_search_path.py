"""A user's own folder adds choices everywhere; a run's id does not depend on where a file lies."""

import json
from pathlib import Path

import pytest
from command_lines import many, one

from bench.cli import main
from bench.config.compose import compose_evaluations, compose_runs, located
from bench.config.installation import CONF
from bench.config.search_path import choices, search_path, searching
from bench.errors import ConfigError
from bench.records import RunRecord, write_record

pytestmark = pytest.mark.slow


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with a strategy, a task and an experiment that sweeps the strategy."""
    folder = tmp_path / "my conf"
    shipped = (CONF / "strategy" / "mlm.yaml").read_text()
    write(folder, "strategy/own.yaml", shipped.replace("mask_rate: 0.3", "mask_rate: 0.5"))
    task = (CONF / "task" / "qc_probe.yaml").read_text()
    write(folder, "task/own_probe.yaml", task.replace("qc_probe:", "own_probe:", 1))
    experiment = (
        "study: own_study\ndefaults:\n  - override /task: [own_probe]\nhydra:\n  sweeper:\n    params:\n"
    )
    write(folder, "experiment/own.yaml", f"# @package _global_\n{experiment}      strategy: own,clm\n")
    return folder


def test_an_experiment_of_ones_own_sweeps_a_strategy_and_a_task_of_ones_own(mine: Path):
    specs = many(f"hydra.searchpath=['{mine}']", "experiment=own")
    assert [(spec.study, spec.strategy, list(spec.config["task"])) for spec in specs] == [
        ("own_study", "own", ["own_probe"]),
        ("own_study", "clm", ["own_probe"]),
    ]
    assert specs[0].config["strategy"]["mask_rate"] == 0.5


def test_the_folder_is_no_part_of_the_id_but_the_run_remembers_it(mine: Path, tmp_path: Path):
    moved = mine.rename(tmp_path / "moved")
    (spec,) = compose_runs([f"hydra.searchpath=[{moved}]", "strategy=own"], multirun=False)
    again = moved.rename(tmp_path / "again")
    (other,) = compose_runs([f"hydra.searchpath=[{again}]", "strategy=own"], multirun=False)
    assert spec.run_id == other.run_id
    assert (spec.config["paths"]["config_dirs"], other.config["paths"]["config_dirs"]) == (
        [str(moved)],
        [str(again)],
    )
    assert "moved" not in json.dumps(spec.science)
    assert one(f"hydra.searchpath=[{again}]").run_id == one().run_id


def test_a_recorded_run_finds_its_strategy_again_without_the_flag(mine: Path):
    (spec,) = compose_runs([f"hydra.searchpath=['{mine}']", "strategy=own"], multirun=False)
    assert located(spec.config, "own", spec.corpus)["strategy"] == spec.config["strategy"]
    without = spec.config | {"paths": {}}
    with pytest.raises(ConfigError, match="strategy=own: no such choice"):
        located(without, "own", spec.corpus)


def test_more_tasks_are_evaluated_of_a_run_with_a_strategy_of_ones_own(mine: Path, tmp_path: Path):
    place = f"paths.experiments={tmp_path}"
    (spec,) = compose_runs([f"hydra.searchpath=['{mine}']", "strategy=own", "study=s", place], multirun=False)
    spec.folder.mkdir(parents=True)
    (spec.folder / "config.json").write_text(spec.to_json())
    record: RunRecord = spec.record("finished")
    write_record(record, spec.records)
    (found,) = compose_evaluations(["study=s", "task=[qc_probe]", place])
    assert (found.run_id, found.config["strategy"]) == (spec.run_id, spec.config["strategy"])
    assert found.config["paths"]["config_dirs"] == [str(mine)]  # and can be found the next time
    moved = mine.rename(tmp_path / "moved")
    (again,) = compose_evaluations(["study=s", "task=[qc_probe]", place, f"hydra.searchpath=[{moved}]"])
    assert again.config["strategy"] == spec.config["strategy"]


def test_the_folder_is_searched_inside_its_command_only(mine: Path):
    before = search_path()
    with searching([str(mine)]):
        assert "own" in choices("strategy")
        assert one("strategy=own").strategy == "own"
    assert search_path() == before
    with pytest.raises(ConfigError, match="strategy=own: no such choice"):
        one("strategy=own")


def test_globs_and_messages_know_the_folder(mine: Path):
    words = [f"hydra.searchpath=['{mine}']", "strategy=glob(o*)"]
    assert [spec.strategy for spec in compose_runs(words, multirun=True)] == ["own"]
    with pytest.raises(ConfigError, match=r"choose one of .*mntp, own, prefix_lm"):
        one(words[0], "strategy=no_such")


def test_a_package_is_a_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "some_plugin/__init__.py", "")
    write(tmp_path, "some_plugin/budget/tiny.yaml", (CONF / "budget" / "64kb.yaml").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    assert one("hydra.searchpath=[pkg://some_plugin]", "budget=tiny").budget == "tiny"


def test_a_folder_without_effect_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path, "empty/notes.yaml", "a: 1")
    write(tmp_path, "taken/strategy/mlm.yaml", "a: 1")
    wrong = {
        "no_such": "no such folder",
        "empty": "holds no choices",
        "taken": "strategy=mlm is in",
    }
    for name, line in wrong.items():
        assert main(["train", "--config-dir", str(tmp_path / name), "--list"]) == 2
        assert line in capsys.readouterr().err
    assert main(["train", "hydra.searchpath=[pkg://no_such_package]"]) == 2
    assert "no such package" in capsys.readouterr().err


def test_the_command_of_a_run_names_the_folder(mine: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--config-dir", str(mine), "strategy=own", "--list"]) == 0
    assert "  own " in capsys.readouterr().out
    (spec,) = compose_runs(["strategy=own", f"hydra.searchpath=['{mine}']"], multirun=False)
    assert str(mine) in spec.command
