"""Laws of `bench compare`: what two studies share, what differs, and a study as it was at a git revision."""

import csv
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scipy.stats
from toy_runs import CLM, ToyRun, make_run, results_from, tables_of, toy_runs, write_study

from bench.analysis.format import View, plain
from bench.analysis.frames import Tables
from bench.analysis.matching import Matched, changes, matches, measures, run_pairs, twins, welch
from bench.cli import main
from bench.records import Score
from bench.report.tables.two_studies import Side, views

pytestmark = pytest.mark.slow


def scored(runs: list[ToyRun], strategy: str, seed: int, value: float) -> list[ToyRun]:
    """The same runs, one with another accuracy."""
    results = results_from((Score("probe", "accuracy", value, 0.25, 100),))
    return [replace(r, results=results) if (r.strategy, r.seed) == (strategy, seed) else r for r in runs]


def rows_of(left: Tables, right: Tables) -> dict[str, Matched]:
    return {row.cell.condition.label: row for row in matches(left, right, measures(left, right, every=False))}


def views_of(left: list[ToyRun], right: list[ToyRun], **how: Any) -> tuple[list[str], dict[str, View]]:
    sides = [Side(name, tables_of(runs)) for name, runs in (("A", left), ("B", right))]
    lines, found = views(*sides, **({"every": False} | how))
    return lines, {view.name: view for view in found}


def test_a_study_beside_itself_differs_nowhere():
    lines, found = views_of(toy_runs(), toy_runs())
    assert set(found) == {"comparison"}  # nothing is in one only, no setting differs
    assert [plain(row[4]) for row in found["comparison"].rows] == ["0 (equal)", "0 (equal)"]
    assert [plain(row[6]) for row in found["comparison"].rows] == ["1.000", "1.000"]
    assert "bit-identical (same id, equal scores): 6." in lines[1]
    assert len(lines) == 2


def test_a_changed_score_is_found_with_its_size_paired_by_seed():
    runs = toy_runs()
    for seed, more in enumerate((0.01, 0.02, 0.03)):
        runs = scored(runs, "clm", seed, CLM[seed] + more)
    left, right = tables_of(toy_runs()), tables_of(runs)
    row = rows_of(left, right)["clm"]
    assert (row.test, row.difference.n, row.is_equal) == ("paired", 3, False)
    assert row.difference.mean == pytest.approx(0.02)
    t = 0.02 / (0.01 / math.sqrt(3))
    assert row.p == pytest.approx(2 * (1 - t_cdf_2(t)))
    assert row.p_holm == pytest.approx(2 * row.p)  # two rows are compared
    assert rows_of(left, right)["scratch"].is_equal
    gaps = [(f"clm-1kb-{seed}", pytest.approx(more)) for seed, more in enumerate((0.01, 0.02, 0.03))]
    assert list(twins(left, right).unequal) == gaps
    assert rows_of(right, left)["clm"].difference.mean == pytest.approx(-0.02)


def t_cdf_2(t: float) -> float:
    """Student's t with two degrees of freedom has a closed form."""
    return 0.5 + t / (2 * math.sqrt(2 + t**2))


def test_other_seeds_are_compared_unpaired_and_the_table_says_so():
    runs = [replace(run, seed=run.seed + 10, run_id=f"{run.run_id}0") for run in toy_runs()]
    row = rows_of(tables_of(toy_runs()), tables_of(runs))["scratch"]
    assert (row.test, row.difference.mean, row.p) == ("Welch", pytest.approx(0), pytest.approx(1))
    _, found = views_of(toy_runs(), runs)
    assert {plain(row[5]) for row in found["comparison"].rows} == {"Welch, n = 3 and 3"}


def test_of_partly_shared_seeds_the_shared_ones_are_paired():
    known, new = make_run("scratch", 3, 0.6), make_run("scratch", 7, 0.9)
    row = rows_of(tables_of([*toy_runs(), known]), tables_of([*toy_runs()[1:], known, new]))["scratch"]
    assert (row.test, row.difference.n, row.difference.mean) == ("paired", 3, 0)
    assert row.right.n == 4
    assert not row.is_equal


def test_one_seed_gives_a_difference_without_a_test():
    left, right = ([make_run("clm", 0, value)] for value in (0.5, 0.6))
    row = rows_of(tables_of(left), tables_of(right))["clm"]
    assert (row.test, row.p, row.p_holm, row.difference.low) == ("too few seeds", None, None, None)
    assert row.difference.mean == pytest.approx(0.1)


def test_welchs_test_by_hand():
    left, right = {0: 1.0, 1: 3.0}, {5: 4.0, 6: 8.0}  # means 2 and 6, variances of the mean 1 and 4
    found, p = welch(pd.Series(left), pd.Series(right))
    assert (found.mean, found.n) == (4, 2)
    t, freedom = 4 / math.sqrt(5), 5**2 / (1 + 16)
    assert p == pytest.approx(2 * scipy.stats.t.sf(t, freedom))
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(5)
    assert (found.low, found.high) == (pytest.approx(4 - half), pytest.approx(4 + half))


def test_samples_without_spread_have_no_p():
    found, p = welch(pd.Series({0: 1.0, 1: 1.0}), pd.Series({5: 2.0, 6: 2.0}))
    assert (found.low, found.mean, found.high, p) == (1, 1, 1, None)


def test_what_only_one_has_is_listed_and_a_lost_run_is_no_number():
    extra = Score("other", "f1", 0.5, 0.1, 10)
    left = [*toy_runs(), make_run("mlm", 0, 0.6), make_run("rtd", 0, 0.6)]
    right = [*toy_runs(), make_run("mlm", 0, None), make_run("scratch", 9, 0, scores=(extra,))]
    _, found = views_of(left, right)
    listed = [[plain(entry) for entry in row] for row in found["only_in_one"].rows]
    assert listed == [
        ["A", "rtd tiny 1kb", "1 run, 1 finished; no run in B"],
        ["A", "probe: accuracy\N{NO-BREAK SPACE}↑, mlm tiny 1kb", "B: 1 run, 0 finished"],
        ["B", "other: f1\N{NO-BREAK SPACE}↑", "not measured in A"],
    ]


def test_settings_data_and_software_that_differ_are_listed_with_both_values():
    runs = [
        replace(run, config={"optim": {"lr_peak": 0.002}}, environment={"torch": "2.8"})
        if run.strategy == "clm"
        else run
        for run in toy_runs()
    ]
    left, right = tables_of(toy_runs()), tables_of(runs)
    assert [tuple(change) for change in changes(left, right)] == [
        ("environment.torch", "2.7", "2.8", 3),
        ("optim.lr_peak", "0.001", "0.002", 3),
    ]
    assert len(run_pairs(left, right)) == 6


def test_scores_of_a_task_that_was_set_otherwise_do_not_tell_twins_apart():
    other = replace(
        results_from((Score("probe", "accuracy", 0.1, 0.25, 100),))[0],
        config={"protocol": "finetune", "steps": 2},
    )
    left, right = tables_of(toy_runs()), tables_of([replace(run, results=(other,)) for run in toy_runs()])
    assert twins(left, right) == ((), ())
    assert [change.key for change in changes(left, right)] == ["task.probe.steps"]


def test_headline_measures_unless_all_are_asked_for():
    two = (Score("probe", "accuracy", 0.5, 0.25, 9), Score("probe", "loss", 0.5, None, 9, False))
    runs = [make_run("clm", seed, 0.5, scores=two) for seed in (0, 1)]
    for every, n in ((False, 1), (True, 2)):
        assert len(views_of(runs, runs, every=every)[1]["comparison"].rows) == n


# The command


def git(folder: Path, *words: str) -> None:
    who = {f"GIT_{role}_{key}": "t@t" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True, env=os.environ | who)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits of a study: clm's first seed went from 0.60 to 0.80."""
    write_study(tmp_path, toy_runs())
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "old")
    write_study(tmp_path, scored(toy_runs(), "clm", 0, 0.80))
    git(tmp_path, "commit", "-qam", "new")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_study_is_compared_with_what_it_was(repository: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", "toy@HEAD~1", "toy", "to=c.csv"]) == 0
    out = capsys.readouterr().out
    assert "bit-identical (same id, equal scores): 5." in out
    assert "Same id and task settings, but different scores: clm-1kb-0 (by up to 0.2)." in out
    with Path("c.csv").open() as file:
        [_, clm] = csv.DictReader(file)
    assert clm["strategy"] == "clm"
    assert float(clm["difference_mean"]) == pytest.approx(0.2 / 3)
    assert main(["compare", "toy@HEAD", "toy"]) == 0
    assert "equal in every seed: 2." in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["md", "html", "csv"])
def test_the_same_records_give_the_same_file(repository: Path, ending: str):
    for name in ("a", "b"):
        assert main(["compare", "toy@HEAD~1", "toy", f"to={name}.{ending}", "--all"]) == 0
    assert Path(f"a.{ending}").read_bytes() == Path(f"b.{ending}").read_bytes()


def test_hostile_names_appear_as_text(repository: Path, capsys: pytest.CaptureFixture[str]):
    name = "<script>[red]|x"
    write_study(repository, [replace(run, strategy=name, run_id="h") for run in toy_runs()[:1]])
    assert main(["compare", "toy", "toy", "to=c.html"]) == 0
    assert main(["compare", "toy", "toy", "to=c.md"]) == 0
    assert name in capsys.readouterr().out
    assert "<script>" not in Path("c.html").read_text()
    assert "&lt;script&gt;[red]|x" in Path("c.html").read_text()
    assert r"&lt;script&gt;\[red\]\|x" in Path("c.md").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["toy"], "two studies, not 1"),
        (["toy", "toy", "toy"], "two studies, not 3"),
        (["toy", "nope"], "study=nope: no run record"),
        (["toy@nope", "toy"], "toy@nope: git cannot read it"),
        (["toy@", "toy"], "toy@: git cannot read it"),
        (["toy@--help", "toy"], "toy@--help: git cannot read it"),
        (["nope@HEAD", "toy"], "study=nope: no run record under HEAD:nope/records"),
        (["../toy@HEAD", "toy"], "not a study's name"),
        (["toy", "toy", "to=c.pdf"], "to=c.pdf: give a file"),
        (["toy", "toy", "to=no/c.md"], "to=no/c.md: give a file"),
        (["toy", "toy", "too=c.md"], "'too=c.md' is not a setting"),
    ],
)
def test_bad_input_is_one_line(
    repository: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
):
    assert main(["compare", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_a_folder_outside_git_has_no_revisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_study(tmp_path, toy_runs())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert main(["compare", "toy@HEAD", "toy"]) == 2
    assert "not a git repository" in capsys.readouterr().err


def test_a_damaged_record_at_a_revision_is_told_and_left_out(
    repository: Path, capsys: pytest.CaptureFixture[str]
):
    (repository / "experiments/toy/records/clm-1kb-0.json").write_text("{")
    git(repository, "commit", "-qam", "damage")
    assert main(["compare", "toy@HEAD~1", "toy@HEAD"]) == 0
    assert "toy@HEAD: damaged record left out: clm-1kb-0.json" in " ".join(capsys.readouterr().out.split())
