"""`bench verify`: a report that says what its records do not say is found out."""

from pathlib import Path

import matplotlib as mpl
import pytest
from toy_reports import FIGURES, write_report
from toy_runs import make_run, toy_runs, write_study

from bench.errors import ConfigError
from bench.report.verify import Verified, verify

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A report of a toy study."""
    return write_report(write_study(tmp_path, toy_runs())).parent


def verified(folder: Path) -> Verified:
    return verify("toy", folder.parents[1] / "experiments", folder.parent, FIGURES)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_report_as_it_was_made_has_no_difference(folder: Path):
    found = verified(folder)
    assert found.differences == []
    assert found.n_files == sum(path.is_file() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("report.html", "0.630 [", "0.730 ["),
        ("report.md", "0.630", "0.730"),
        ("tables/cells.csv", "0.63", "0.73"),
        ("tables/headline.tex", "0.630", "0.730"),
    ],
)
def test_a_number_edited_by_hand_is_found(folder: Path, name: str, old: str, new: str):
    edit(folder / name, old, new)
    [line] = verified(folder).differences
    assert line.startswith(f"{name}, line ")
    assert new in line.split("records say")[0]
    assert old in line.split("records say")[1]


def test_another_picture_a_missing_and_a_foreign_file_are_found(folder: Path):
    (folder / "figures/loss_curves.png").write_bytes(b"")
    (folder / "tables/runs.csv").unlink()
    (folder / "tables/mine.csv").write_text("1")
    assert verified(folder).differences == [
        "figures/loss_curves.png: another picture",
        "tables/mine.csv: is none of the report's files",
        "tables/runs.csv: is missing",
    ]


def test_a_report_older_than_its_records_is_found(folder: Path):
    write_study(folder.parents[1], [make_run("mlm", 0, 0.9)])
    names = {line.partition(",")[0] for line in verified(folder).differences}
    assert {"report.html", "report.md", "tables/runs.csv"} <= names


def test_figures_of_another_matplotlib_are_left_out_and_numbers_are_not(folder: Path):
    for path in folder.glob("figures/*"):
        path.write_bytes(path.read_bytes().replace(f"v{mpl.__version__}".encode(), b"v0.0.1"))
    assert "figures not compared: drawn by matplotlib 0.0.1" in verified(folder).note
    assert verified(folder).differences == []
    edit(folder / "report.html", "0.630 [", "0.730 [")
    assert len(verified(folder).differences) == 1


def test_a_study_without_a_report_is_one_line(tmp_path: Path):
    write_study(tmp_path, toy_runs())
    with pytest.raises(ConfigError, match="bench report study=toy"):
        verify("toy", tmp_path / "experiments", tmp_path / "reports", FIGURES)
