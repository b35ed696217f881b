"""Each logger mirrors metrics, and what is not installed is refused by its key before any work."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_lines import one
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel
from toy_models import stems

from bench.config import installation
from bench.config.checks import validate
from bench.config.run_spec import RunSpec
from bench.errors import ConfigError
from bench.training.loggers import check_loggers, close, make_loggers, mirror_result
from bench.training.metric_file import MetricFile
from bench.training.pretrain import make_observers, profiler_of


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    run = one("logger=csv", f"paths.experiments={tmp_path}")
    run.folder.mkdir(parents=True)
    return run


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_csv_logger_has_every_metric_and_a_resumed_run_keeps_the_first_table(spec: RunSpec):
    for start in (0, 5):
        (mirror,) = make_loggers(spec)
        mirror.lightning.log_metrics({"train_loss_nats": 2.5}, step=start + 1)
        close([mirror])
    first, second = (table(spec.folder / f"csv/version_{i}/metrics.csv") for i in (0, 1))
    assert first == [{"step": "1", "train_loss_nats": "2.5"}]
    assert second == [{"step": "6", "train_loss_nats": "2.5"}]


def test_the_result_is_mirrored_as_numbers_of_the_last_step(spec: RunSpec):
    mirrors = make_loggers(spec)
    record = replace(spec.record("finished"), parameters=7)
    mirror_result(mirrors, replace(record, spent=replace(record.spent, steps=12, flops=3.0)), {})
    (row,) = table(spec.folder / "csv/version_0/metrics.csv")
    assert (row["step"], row["parameters"], row["spent/flops"]) == ("12", "7", "3.0")
    assert "status" not in row  # a text


def test_several_loggers_are_made_in_the_order_of_the_command_line():
    made = make_loggers(one(f"logger=[{','.join(stems('logger'))}]"))
    assert [type(mirror).__name__ for mirror in made] == ["Csv", "TensorBoard", "Trackio", "Wandb"]
    assert make_loggers(one()) == make_loggers(one("logger=files")) == []


@pytest.mark.parametrize(("stem", "package"), [("tensorboard", "tensorboard"), ("trackio", "trackio")])
def test_a_missing_package_is_named_with_its_extra(stem: str, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(installation, "is_installed", lambda package: False)
    with pytest.raises(
        ConfigError, match=rf"logger\.{stem} needs the package {package}: pip install"
    ) as caught:
        check_loggers([one(f"logger={stem}")])
    assert f"[{stem}]'" in str(caught.value)


def test_a_class_that_is_no_logger_is_refused():
    node = "+logger.mine={_target_: bench.sweep.launchers.local.Local}"
    with pytest.raises(ConfigError, match=r"logger\.mine\._target_=.*is not a RunLogger"):
        check_loggers([one(node)])


@pytest.mark.parametrize(("stem", "package"), [("tensorboard", "tensorboard"), ("trackio", "trackio")])
def test_an_optional_logger_takes_metrics_and_a_result(
    stem: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(package)
    run = one(f"logger={stem}", f"paths.experiments={tmp_path}")
    run.folder.mkdir(parents=True)
    mirrors = make_loggers(run)
    mirrors[0].lightning.log_metrics({"train_loss_nats": 2.5}, step=1)
    mirror_result(mirrors, run.record("finished"), {})
    assert capsys.readouterr().out == ""
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    assert any(b"train_loss_nats" in path.read_bytes() for path in written)


def test_a_secret_among_a_loggers_options_is_refused():
    with pytest.raises(ConfigError, match=r"logger\.wandb\.api_key: remove it"):
        validate(one("logger=wandb", "+logger.wandb.api_key=sk-0123").typed())


def test_the_callbacks_of_a_run_log_what_they_observe(tmp_path: Path):
    """Lightning calls ours as its own: the names of options reach them, and each has an effect."""
    config = one(f"callbacks=[{','.join(stems('callbacks'))}]").typed()
    Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=MetricFile(tmp_path),
        log_every_n_steps=1,
        callbacks=make_observers(config),
        profiler=profiler_of("simple", tmp_path),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    ).fit(BoringModel())
    seen = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    keys = {key for row in seen for key in row}
    assert any(key.startswith("lr-") for key in keys)
    assert any("cpu_percent" in key for key in keys)
    assert "run_training_batch" in (tmp_path / "fit-profile.txt").read_text()
