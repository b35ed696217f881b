"""A shell completes commands, choices and keys; the help of a command shows its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import main
from bench.config.completion import SCRIPTS, script


def completed(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    return capsys.readouterr().out.split("\n")[:-1]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("bench re", ["report "]),
        ("bench train bud", ["budget.", "budget="]),
        ("bench train budget=", ["budget=1mb", "budget=4mb", "budget=64kb"]),
        ("bench train -m budget=1", ["budget=1mb"]),
        ("bench train strategy=mlm strategy.mask", ["strategy.mask_rate="]),
        ("bench train strategy=clm strategy.mask", [""]),
        ("bench train strategy=mlm strategy.mask_rate=", ["strategy.mask_rate=0.3"]),
        ("bench train corpus/t", ["corpus/text="]),
        ("bench train ~task.retrieval_z", ["~task.retrieval_zero_shot."]),
        ("bench report reports", ["reports_dir="]),
        ("bench report strat", [""]),
        ("bench speed warm", ["warmup_steps="]),
        ("bench tune tune.see", ["tune.seeds="]),
        ("bench plan plan.pilot=", ["plan.pilot=null"]),
        ("bench train tuned=", ["tuned=none"]),
        ("bench export ", ["run=", "to=", "experiments_dir="]),
    ],
)
def test_a_word_is_completed(
    line: str, found: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert completed(line, monkeypatch, capsys) == found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_by_the_script(tmp_path: Path):
    program = tmp_path / "bench"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m bench.cli "$@"\n')
    program.chmod(0o755)
    line = "bench train budget=6"
    lines = [
        script("bash"),
        f"COMP_LINE='{line}' COMP_POINT={len(line)}",
        "_bench",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "budget=64kb\n"


@pytest.mark.parametrize("shell", [shell for shell in SCRIPTS if shutil.which(shell)])
def test_a_shell_can_read_its_script(shell: str):
    subprocess.run([shell, "-n"], input=script(shell), text=True, check=True)


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_help_of_a_command_shows_its_own_settings(capsys: pytest.CaptureFixture[str]):
    shown = help_of("report", capsys)
    assert "reports_dir=reports" in shown
    assert "figure=attention_rollout | canary_exposure" in shown
    assert "bench report study=" in shown
    assert "strategy=" not in shown
    assert "sequence_length" not in shown
    assert "experiments_dir=experiments" in help_of("export", capsys)
    train = help_of("train", capsys)
    assert "strategy=captioning | clip" in train
    assert "energy.country=USA" in train
    assert "figure=" not in train
