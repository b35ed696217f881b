"""Laws of the Python API: a study's frames, comparisons, claims and figures, without torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure as Canvas
from toy_runs import CLM, SCRATCH, make_run, results_from, toy_runs, write_study

import bench
from bench.analysis.contrast import verdict_of
from bench.analysis.stats import holm, holm_levels
from bench.errors import ConfigError
from bench.records import Score
from bench.report.csv_tables import csv_tables
from bench.report.study import Study
from bench.report.tables.results import cells, headline

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return bench.load("toy", write_study(tmp_path, toy_runs()) / "experiments")


def test_loading_a_study_needs_no_torch_and_importing_bench_nothing():
    code = (
        "import sys, time; start = time.perf_counter(); import bench; took = time.perf_counter() - start\n"
        "assert not {'pandas', 'hydra', 'torch'} & set(sys.modules)\n"
        "study = bench.load('quickstart'); study.compare('mlm', 'clm'); study.plot('quality_vs_flops')\n"
        "assert 'torch' not in sys.modules; print(took)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.2


def test_every_public_name_is_there_and_documented():
    for name in bench.__all__:
        assert getattr(bench, name).__doc__
        assert name in dir(bench)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = bench.nonsense


def test_frames_have_the_axes_of_runs_and_no_numbers_of_places(study: Study):
    for frame in (study.runs, study.scores, study.curves, study.energies):
        assert {"run_id", "strategy", "model", "budget", "variant", "seed"} <= set(frame.columns)
        assert not {"cell", "measure"} & set(frame.columns)
    assert len(study.runs) == len(toy_runs())


def test_a_difference_is_tested_by_welchs_t(study: Study):
    [row] = study.compare("clm", "scratch", task="probe").to_dict("records")
    assert row["effect"] == pytest.approx(0.11)
    welch = scipy.stats.ttest_ind(CLM, SCRATCH, equal_var=False)
    assert row["p"] == pytest.approx(welch.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(welch.confidence_interval()))
    assert (row["n_seeds"], row["level"], row["verdict"]) == (3, pytest.approx(0.95), "left is better")
    [mirrored] = study.compare("scratch", "clm", task="probe").to_dict("records")
    assert (mirrored["effect"], mirrored["verdict"]) == (pytest.approx(-0.11), "right is better")
    assert mirrored["p"] == pytest.approx(row["p"])


def test_a_condition_that_lost_its_runs_is_not_comparable_and_says_why(tmp_path: Path):
    runs = [*toy_runs(), *(make_run("mlm", seed, None) for seed in range(3))]
    study = bench.load("toy", write_study(tmp_path, runs) / "experiments")
    [row] = study.compare("mlm", "clm").to_dict("records")
    assert row["verdict"] == "not comparable"
    assert "lost" in row["reason"]
    assert np.isnan(row["effect"])


def test_tasks_of_one_call_are_one_family(tmp_path: Path):
    def scores(better: float, seed: int) -> list[Score]:
        values = {"sure": better * (1 + 0.01 * seed), "unsure": better * seed}
        return [Score(task, "accuracy", value, 0.25, 100) for task, value in values.items()]

    runs = [
        make_run(strategy, seed, 0.0, scores=scores(better, seed))
        for strategy, better in (("clm", 0.2), ("mlm", 0.1))
        for seed in range(3)
    ]
    found = bench.load("toy", write_study(tmp_path, runs) / "experiments").compare("clm", "mlm")
    assert found["p_holm"].tolist() == holm(found["p"].tolist())
    assert found["level"].tolist() == pytest.approx([0.975, 0.95])


def test_the_baseline_has_the_name_that_its_task_gives_it(tmp_path: Path):
    runs = []
    for run in toy_runs():
        frozen = results_from([replace(run.results[0].scores[0], task="frozen")], "probe")
        runs.append(replace(run, results=(*run.results, *frozen)))
    write_study(tmp_path, runs)
    study = bench.load("toy", tmp_path / "experiments")
    assert study.compare("clm", "scratch")["task"].tolist() == ["probe"]
    assert study.compare("clm", "random_features")["task"].tolist() == ["frozen"]
    with pytest.raises(ConfigError, match="right=scratch: frozen keeps the network frozen"):
        study.compare("clm", "scratch", task="frozen")
    view = headline(study.tables)
    assert [row[0] for row in view.rows] == ["chance", "random features / scratch", "clm"]
    assert "scratch, the network trained on the task itself (probe), and random features" in view.note
    names = {measure.task: cells(study.tables, measure).rows[0][0] for measure in study.tables.headlines}
    assert names == {"probe": "scratch", "frozen": "random features"}
    assert set(csv_tables(study.tables, study.folder)["headline"]["baseline"]) == {
        "scratch",
        "random features",
    }


@pytest.mark.parametrize(
    ("p", "levels"),
    [
        ([0.01, 0.04], [0.975, 0.95]),
        ([0.04, 0.03], [0.975, 0.975]),  # the first step does not reject, so its level holds for both
        ([0.2, 0.001, 0.02], [0.95, 1 - 0.05 / 3, 0.975]),
    ],
)
def test_an_interval_has_the_level_of_its_step_in_holms_procedure(p: list[float], levels: list[float]):
    assert holm_levels(p) == pytest.approx(levels)


def test_an_interval_excludes_zero_exactly_if_holms_test_rejects():
    p = np.random.default_rng(0).uniform(0, 0.05, (200, 4))
    for row in p:
        rejected = np.array(holm(row)) <= 0.05
        excluded = row < 1 - np.array(
            holm_levels(row)
        )  # a two-sided interval of level 1 - a excludes 0 if p < a
        assert (rejected == excluded).all()


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.05, "left is better"),
        (-0.05, -0.01, "right is better"),
        (-0.01, 0.05, "undecided"),
        (-0.01, 0.015, "equivalent"),
        (0.001, 0.015, "equivalent"),
    ],
)
def test_a_verdict_is_the_place_of_the_interval(low: float, high: float, verdict: str):
    assert verdict_of(low, high, 0.02) == verdict


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda s: s.compare("clmm", "scratch"), "did you mean clm"),
        (lambda s: s.compare("clm", "scratch", task="prob"), "did you mean probe"),
        (lambda s: s.compare("clm", "scratch", task="probe", metric="f1"), "metrics: accuracy"),
        (lambda s: s.compare("clm", "scratch", metric="f1"), "name the task"),
        (lambda s: s.plot("quality"), "did you mean"),
        (lambda s: s.plot("layers"), "did not measure"),
        (lambda s: s.plot("quality_vs_flops", nonsense=1), "nonsense"),
        (lambda s: s.items("prob"), "did you mean probe"),
    ],
)
def test_a_wrong_name_is_one_line(study: Study, call: object, told: str):
    with pytest.raises(ConfigError, match=told) as caught:
        call(study)  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_a_figure_of_the_report_is_a_matplotlib_figure(study: Study):
    assert isinstance(study.plot("quality_vs_flops", tasks=["probe"]), Canvas)


def test_a_damaged_record_is_a_warning(tmp_path: Path):
    experiments = write_study(tmp_path, toy_runs()) / "experiments"
    (experiments / "toy/records/broken.json").write_text("{")
    with pytest.warns(UserWarning, match="broken.json"):
        assert len(bench.load("toy", experiments).runs) == len(toy_runs())


def test_a_study_without_claims_has_a_frame_without_rows(study: Study):
    assert study.claims().empty


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Its cells are run as a script; %-lines are for Jupyter alone."""
    monkeypatch.chdir(ROOT / "examples")
    cells = json.loads(Path("compare_strategies.ipynb").read_text())["cells"]
    code = [line for cell in cells if cell["cell_type"] == "code" for line in [*cell["source"], "\n"]]
    names: dict[str, object] = {}
    exec("".join(line for line in code if not line.startswith("%")), names)  # noqa: S102 - our own notebook
    assert isinstance(names["study"], Study)
    assert "of 500 questions" in capsys.readouterr().out
    assert all(cell["outputs"] for cell in cells if cell["cell_type"] == "code")
