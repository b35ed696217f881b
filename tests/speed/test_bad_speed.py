"""What `bench speed` cannot measure is refused in one line that names the setting."""

from pathlib import Path

import pytest
import torch
from toy_models import CONF

from bench.cli import main
from bench.errors import ConfigError
from bench.speed import settings
from bench.speed.settings import plan, settings_of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategies=[]", "strategies="),
        ("strategies=[clm,clm]", "each once"),
        ("strategies=[scratch]", "scratch has no pretraining step"),
        ("strategies=[bert]", "strategy=bert: no such choice"),
        ("models=[2x2]", "unknown size 2x2"),
        ("rounds=0", "rounds=0: use 1 or more"),
        ("rounds=100000", "small steps exceed 100000; lower one"),
        ("steps_per_round=1.5", "steps_per_round=1.5"),
        ("warmup_steps=0", "warmup_steps=0"),
        ("threads=0", "threads=0"),
        ("seed=-1", "seed=-1"),
        ("nanogpt=/nowhere", "nanogpt=/nowhere: no such file .*git clone"),
        ("peers.clm=[bert]", "peers.clm: unknown peer bert"),
        ("+peers.rtd=[gpt2]", "nearest.rtd is also in peers"),
        ("image_size=33", "image_size=33"),
        ("out=''", "out is empty"),
        ("vocab_size=10", "vocab_size=10"),
        ("sequence_length=4", "sequence_length=4"),
        ("sizes={64x4: {n_heads: 5}}", "models=64x4: model.d_model=64 is not a multiple"),
        ("sizes={64x4: {rows_per_step: 0}}", "sizes.64x4.rows_per_step=0"),
        ("sizes={64x4: {rows_per_step: 100000}}", "lower one"),
        ("sizes={64x4: {targets: {data_share: -1}}}", "sizes.64x4.targets.data_share=-1"),
        ("round=3", "did you mean rounds"),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu: choose cpu or gpu"),
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed: choose 32-true or bf16-mixed"),
    ],
)
def test_nonsense_is_refused_in_one_line(override: str, message: str):
    with pytest.raises(ConfigError, match=message) as refused:
        plan(settings_of([override]))
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_without_a_gpu_nobody_is_timed_on_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["speed", "trainer.accelerator=gpu", f"out={tmp_path / 'out'}"]) == 2
    assert "torch finds 0 GPUs here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_accelerate_the_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install accelerate"):
        settings_of([])


def test_the_yaml_names_no_place():
    assert "nanogpt: null" in (CONF / "speed.yaml").read_text()
