"""`bench verify`: a report that says what its records do not say is found out."""

import hashlib
import json
from pathlib import Path

import pytest
from toy_reports import FIGURES, write_report
from toy_runs import make_run, toy_runs, write_study

from bench.errors import ConfigError, DataError
from bench.report.verify import Verified, verify
from bench.report.write import is_committed

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A report of a toy study."""
    return write_report(write_study(tmp_path, toy_runs())).parent


def verified(folder: Path) -> Verified:
    return verify("toy", folder.parents[1] / "experiments", folder.parent, FIGURES)


def without_build(folder: Path) -> None:
    """Leave what is committed, as after a clone."""
    for path in folder.rglob("*.*"):
        if not is_committed(path.relative_to(folder).as_posix()):
            path.unlink()


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
        ("report_full.md", "0.630", "0.730"),
        ("headline.csv", "0.63", "0.73"),
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


@pytest.mark.parametrize(
    ("name", "old", "new"), [("report.md", "0.630", "0.730"), ("headline.csv", "0.63", "0.73")]
)
def test_a_number_edited_by_hand_is_found_in_a_fresh_clone(folder: Path, name: str, old: str, new: str):
    without_build(folder)
    assert verified(folder).differences == []
    edit(folder / name, old, new)
    [line] = verified(folder).differences
    assert line.startswith(f"{name}, line ")


def test_in_a_fresh_clone_the_manifest_stands_for_what_is_not_committed(folder: Path):
    without_build(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] |= {
        "tables/runs.csv": "0" * 64,
        "figures/loss_curves.png": "0" * 64,
        "tables/x.csv": "0",
    }
    del manifest["sha256"]["tables/cells.csv"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "loss_curves.svg").unlink()
    told = "manifest.json has another SHA-256 than the records give"
    assert [line.removesuffix("; run `bench report` again") for line in verified(folder).differences] == [
        f"figures/loss_curves.png: {told}",
        "loss_curves.svg: is missing",
        f"tables/cells.csv: {told}",
        f"tables/runs.csv: {told}",
        "tables/x.csv: the records and the installed figures do not give this file",
    ]


def test_a_manifest_that_names_files_elsewhere_or_is_damaged_is_one_line(folder: Path):
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("../notes.txt", "/etc/passwd", "tables/../../x", "a/b/c"):
        (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": {name: ""}}))
        with pytest.raises(DataError, match="is not a file of a report"):
            verified(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not a report's manifest"):
        verified(folder)


def test_another_picture_a_missing_and_a_foreign_file_are_found(folder: Path):
    (folder / "figures/loss_curves.png").write_bytes(b"")
    (folder / "tables/runs.csv").unlink()
    (folder / "tables/mine.csv").write_text("1")
    assert verified(folder).differences == [
        "figures/loss_curves.png: the picture differs",
        "tables/mine.csv: the records and the installed figures do not give this file",
        "tables/runs.csv: is missing",
    ]


def test_a_report_older_than_its_records_is_found(folder: Path):
    write_study(folder.parents[1], [make_run("mlm", 0, 0.9)])
    names = {line.partition(",")[0] for line in verified(folder).differences}
    assert {"report.html", "report.md", "tables/runs.csv"} <= names


def test_figures_of_another_matplotlib_are_left_out_and_numbers_are_not(folder: Path):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["rendered_with"]["matplotlib"] = "0.0.1"
    for path in folder.glob("**/*.svg"):
        path.write_bytes(path.read_bytes() + b"\n")  # as another version draws it
        name = path.relative_to(folder).as_posix()
        manifest["sha256"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "figures not compared: drawn with matplotlib 0.0.1 (here " in verified(folder).note
    assert verified(folder).differences == []
    edit(folder / "report.html", "0.630 [", "0.730 [")
    assert len(verified(folder).differences) == 1
    (folder / "figures/loss_curves.svg").write_bytes(b"<svg/>")  # not what was drawn there either
    assert len(verified(folder).differences) == 2


def test_a_study_without_a_report_is_one_line(tmp_path: Path):
    write_study(tmp_path, toy_runs())
    with pytest.raises(ConfigError, match="bench report study=toy"):
        verify("toy", tmp_path / "experiments", tmp_path / "reports", FIGURES)
