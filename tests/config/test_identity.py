"""A run's id follows from names and options: classes may move, and older records are still found."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_lines import many, one
from toy_models import CONF

from bench.analysis.frames import load
from bench.analysis.matching import changes
from bench.config import identity
from bench.config.checks import validate
from bench.config.compose import compose_evaluations, read_run
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.records import holds_settings, read_record, settings_agree, without_targets, write_record

ROOT = CONF.parent
EXPERIMENTS = ROOT / "experiments"
OLD = EXPERIMENTS / "quickstart/records/02bdf02b0ef6.json"


def moved(node: Any) -> Any:
    """The same settings after every class has moved."""
    if isinstance(node, dict):
        return {key: "elsewhere.Class" if key == "_target_" else moved(v) for key, v in node.items()}
    return [moved(value) for value in node] if isinstance(node, list) else node


@pytest.mark.parametrize("strategy", ["mlm", "mixture", "clip", "scratch"])
def test_moving_classes_changes_neither_id_nor_pending_tasks(strategy: str, tmp_path: Path):
    spec = one(f"strategy={strategy}", f"paths.experiments={tmp_path}")
    other = replace(spec, config=moved(spec.config))
    assert other.science == spec.science
    assert identity.identity_of(other.science) == spec.run_id
    assert "_target_" not in json.dumps(spec.science)
    results = spec.failed_evaluation("x").results
    assert "_target_" not in json.dumps([result.config for result in results])


def test_another_choice_is_another_id_even_with_the_same_options():
    spec = one("strategy=mlm")
    for changed in (
        replace(spec, strategy="clm"),
        replace(spec, corpus=spec.corpus | {"text": "other"}),
    ):
        assert identity.identity_of(changed.science) != spec.run_id


def test_muon_is_another_id_and_needs_whole_matrices():
    usual, muon = one("strategy=clm"), one("strategy=clm", "optim.name=muon")
    assert usual.run_id != muon.run_id
    assert "name" not in usual.science["optim"]
    assert muon.variant == "optim.name=muon"
    with pytest.raises(ConfigError, match=r"optim\.name=muon needs whole matrices"):
        validate(one("strategy=clm", "optim.name=muon", "trainer=fsdp", "trainer.accelerator=gpu").typed())


def test_the_table_of_old_and_new_ids_is_current(capsys: pytest.CaptureFixture[str]):
    identity.main(EXPERIMENTS)
    assert capsys.readouterr().out == (EXPERIMENTS / "run_ids.csv").read_text()


def test_no_two_runs_of_a_study_share_an_identity():
    with (EXPERIMENTS / "run_ids.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({(row["study"], row["new_id"]) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    "override",
    [
        "strategy._target_=bench.objectives.clm.CausalLM",
        "strategy={_target_: bench.objectives.clm.CausalLM}",
        "corpus.text._target_=bench.data.corpora.nltk.Nltk",
        "corpus.pairs._target_=x.Y",
        "task.library_probe._target_=x.Y",
        "+strategy.choice=clm",
    ],
)
def test_what_an_identity_would_not_see_is_refused(override: str):
    with pytest.raises(ConfigError) as caught:
        one(override)
    assert str(caught.value).startswith(override.lstrip("+").partition("=")[0])
    assert "\n" not in str(caught.value)


def test_a_task_without_a_file_is_named_by_its_class():
    assert one("+task.mine={_target_: a.B}").config["task"]["mine"] == {"_target_": "a.B"}


# Records and folders of version 2


def copied(tmp_path: Path, study: str = "quickstart") -> Path:
    folder = tmp_path / "experiments" / study
    for kind in ("records", "evaluations"):
        (folder / kind).mkdir(parents=True)
        for path in (EXPERIMENTS / study / kind).glob(f"{OLD.stem}*"):
            shutil.copy(path, folder / kind)
    return folder


def test_a_record_of_version_2_is_read_as_one_of_version_3_that_keeps_its_id():
    raw, record = json.loads(OLD.read_text()), read_record(OLD)
    assert (raw["schema_version"], record.schema_version, record.run_id) == (2, 3, OLD.stem)
    assert record.spent.predicted_tokens == raw["spent"]["supervised_tokens"]
    own = raw["config"]["strategy"]
    assert record.config["strategy"] == {"choice": "clm"} | without_targets(own)
    assert record.config["corpus"]["text"]["choice"] == raw["corpus"]["text"]
    assert record.config["budget"]["predicted_tokens"] is None
    assert "_target_" not in json.dumps(record.config)


def test_a_record_in_the_old_form_and_in_the_new_one_do_not_differ(tmp_path: Path):
    old = copied(tmp_path)
    new = shutil.copytree(old, tmp_path / "experiments/again")
    record = read_record(OLD)
    write_record(record, new / "records")
    assert read_record(new / "records" / OLD.name) == record
    left, right = (load(name, tmp_path / "experiments")[0] for name in ("quickstart", "again"))
    assert changes(left, right) == []


def old_folder(study: Path) -> Path:
    """The folder of a run from before classes moved and a key was renamed."""
    record = read_record(OLD)
    run = one("experiment=quickstart", "strategy=clm", "seed=1")
    config = moved(run.config)
    config["budget"]["supervised_tokens"] = config["budget"].pop("predicted_tokens")
    folder = study / "runs" / OLD.stem
    folder.mkdir(parents=True)
    spec = replace(run, run_id=record.run_id, config=config)
    (folder / "config.json").write_text(spec.to_json())
    return folder


def test_a_run_folder_of_before_classes_moved_is_usable(tmp_path: Path):
    spec = read_run(old_folder(copied(tmp_path)))
    today = one("experiment=quickstart", "strategy=clm", "seed=1")
    for part in ("strategy", "corpus", "budget"):
        assert spec.config[part] == today.config[part]
    assert spec.typed().budget.predicted_tokens is None


@pytest.mark.parametrize("has_folder", [True, False])
def test_more_tasks_for_an_old_run_use_the_classes_of_today(has_folder: bool, tmp_path: Path):
    study = copied(tmp_path)
    if has_folder:
        old_folder(study)
    words = ("study=quickstart", "task=[qc_probe]", f"paths.experiments={tmp_path / 'experiments'}")
    (spec,) = compose_evaluations(words)
    assert spec.run_id == OLD.stem
    assert spec.config["strategy"] == one("strategy=clm").config["strategy"]
    assert list(spec.pending_tasks()) == ["qc_probe"]


def test_recorded_keys_of_no_effect_leave_nothing_to_do_and_changed_ones_do():
    (spec,) = many("experiment=quickstart", "strategy=clm", "model=0.5m", "budget=1mb", "seed=1")
    recorded, today = spec.results()["library_probe"].config, spec.config["task"]["library_probe"]
    assert recorded["protocol"] == today["protocol"] == "probe"
    assert set(recorded) - set(today) == {
        *("steps", "batch_size", "lr_grid", "n_fits", "n_validations", "patience")
    }
    assert list(spec.pending_tasks()) == ["library_probe"]  # its penalty is chosen since, which is a setting
    del today["inverse_penalties"]
    assert holds_settings(recorded, today)
    assert not holds_settings(recorded, today | {"test_items": today["test_items"] + 1})
    assert not holds_settings(recorded, today | {"protocol": "finetune"})
    assert not holds_settings(recorded, today | {"a_new_option": 1})
    assert settings_agree(without_targets(today), recorded)
    assert settings_agree(recorded, without_targets(today))


def test_a_mixture_keeps_the_parts_that_only_its_record_names():
    node = {"parts": {"clm": {"rate": 1}, "mine": {"_target_": "a.Mine"}}}
    usual = {"_target_": "b.Mixture", "parts": {"clm": {"_target_": "b.CLM", "rate": 2}}}
    assert identity.relocated(node, usual) == {
        "_target_": "b.Mixture",
        "parts": {"clm": {"_target_": "b.CLM", "rate": 1}, "mine": {"_target_": "a.Mine"}},
    }


def test_where_a_run_is_done_again_its_new_record_takes_the_old_id(tmp_path: Path):
    study = copied(tmp_path)
    words = ("experiment=quickstart", "strategy=clm", "model=0.5m", "budget=1mb", "seed=1")
    (spec,) = many(*words, f"paths.experiments={study.parent}")
    assert isinstance(spec, RunSpec)
    assert spec.run_id == OLD.stem
    record = spec.record("failed", "no memory")
    write_record(record, spec.records)
    (again,) = many(*words, f"paths.experiments={study.parent}")
    assert again.run_id == OLD.stem
