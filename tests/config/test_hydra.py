"""Every row of docs/hydra.md: what is said to work composes, what is refused is refused with that text."""

import re
import shlex
from pathlib import Path

import pytest
from bad_inputs import assert_one_line

from bench.cli import main
from bench.config.checks import validate

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "hydra.md"
ROWS = re.findall(r"^\| `bench (.*?)` \| (works|refused)(?:: `(.*)`)?.*\|$", PAGE.read_text(), re.MULTILINE)
REFUSED = [(words, line) for words, what, line in ROWS if what == "refused"]
MINE = """\
_target_: bench.objectives.mlm.MaskedLM
modality: text
attention: bidirectional
pooling: mean
mask_rate: 0.4
scheme: bert
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with YAML files of one's own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_conf" / "strategy" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(MINE)


def test_all_rows_are_read():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(ROWS) == len(rows) > 70
    assert all(line for _, line in REFUSED)


@pytest.mark.parametrize("words", [words for words, what, _ in ROWS if what == "works"])
def test_what_is_said_to_work_works(words: str, capsys: pytest.CaptureFixture[str]):
    argv = shlex.split(words)
    stops = {"--help", "--list", "--cfg", "-sc", "--shell-completion"}
    try:
        code = main(argv if stops & {*argv} else [*argv, "--list"])
    except SystemExit as stop:  # --help
        code = stop.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.strip()


@pytest.mark.parametrize(("words", "line"), REFUSED)
def test_what_is_said_to_be_refused_is_refused_with_that_line(
    words: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bench.cli.launch", lambda specs: [validate(spec.typed()) for spec in specs])
    assert main(shlex.split(words)) == 2
    out, err = capsys.readouterr()
    assert line in err
    assert_one_line(err[:-1])
    assert not out


def test_an_experiment_cannot_hide_settings_of_hydra(capsys: pytest.CaptureFixture[str]):
    path = Path("my_conf/experiment/hidden.yaml")
    path.parent.mkdir()
    hidden = {
        "hydra: {run: {dir: x}}": "hydra.run",
        "defaults: [{override /hydra/launcher: basic}]": "hydra/launcher",
    }
    for text, key in hidden.items():
        path.write_text(f"# @package _global_\n{text}\n")
        assert main(["train", "-m", "--config-dir", "my_conf", "experiment=hidden", "--list"]) == 2
        assert f"hidden.yaml: {key} has no effect here" in capsys.readouterr().err
