"""Laws of the report, its figures and the status table."""

import io
import json
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console
from toy_reports import CONF, FIGURES, HOSTILE, Page, write_report
from toy_runs import PROBE, make_run, tables_of, toy_runs, toy_tables, write_study

from bench import analysis
from bench.analysis.format import latex_escape
from bench.analysis.readme import blocks
from bench.config import schema
from bench.config.build import build
from bench.errors import BenchError, ConfigError, DataError
from bench.records import Score
from bench.report import write
from bench.report.figures.base import Figure, render
from bench.report.figures.quality_vs_cost import round_ticks
from bench.report.figures.quality_vs_data import tick_label, with_room
from bench.report.figures.style import STYLE
from bench.report.rendering import visible
from bench.sweep import status
from bench.sweep.locks import lock

pytestmark = pytest.mark.slow

ALWAYS = {"quality_vs_data", "quality_vs_flops", "loss_curves"}  # figures that no task needs to be done for


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path, [*toy_runs(), make_run("mlm", 0, None)])


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes(study: Path):
    write_report(study)
    first = contents(study / "reports")
    write_report(study)
    assert first == contents(study / "reports")


def test_the_report_has_its_page_tables_and_figures(study: Path):
    files = contents(write_report(study).parent)
    for name in ("headline", "cells", "differences", "runs"):
        assert files["headline.csv" if name == "headline" else f"tables/{name}.csv"]
        assert files[f"tables/{name}.tex"].startswith(b"%")
    for name in ALWAYS:
        assert b"<svg" in files[f"figures/{name}.svg"]
        assert files[f"figures/{name}.png"].startswith(b"\x89PNG")
        assert files[f"figures/{name}.pdf"].startswith(b"%PDF")
    assert {Path(name).stem for name in files if name.startswith("figures/")} == ALWAYS


def test_the_short_report_has_the_headline_two_figures_the_cost_and_the_commands(study: Path):
    folder = write_report(study).parent
    short, full = ((folder / name).read_text() for name in ("report.md", "report_full.md"))
    for shown in ("| chance | 0.250 |", "quality_vs_flops.svg", "## Cost", "bench verify study=toy"):
        assert shown in short
    images = re.findall(r"!\[.*?\]\((.*?)\)", short)
    assert images == ["quality_vs_flops.svg", "loss_curves.svg"]  # the first other by name
    assert all((folder / image).read_bytes() == (folder / "figures" / image).read_bytes() for image in images)
    assert len(short) < 0.5 * len(full)


def test_git_ignores_all_of_a_report_but_what_is_read_on_a_code_host(study: Path):
    names = sorted(contents(write_report(study).parent))
    paths = [f"reports/toy/{name}" for name in names]
    asked = ["git", "-C", str(CONF.parent), "check-ignore", "--no-index", *paths]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode > 1:
        pytest.skip("not a git repository")
    committed = set(names) - {line.removeprefix("reports/toy/") for line in done.stdout.splitlines()}
    assert committed == {name for name in names if write.is_committed(name)}
    assert committed == {
        *("report.md", "headline.csv", "manifest.json"),
        *("quality_vs_flops.svg", "loss_curves.svg"),
    }


def test_every_link_of_the_page_leads_somewhere(study: Path):
    path = write_report(study)
    page = Page(path.read_text())
    assert len(page.ids) == len(set(page.ids))
    assert page.silent_images == 0
    assert page.n_scripts == 1  # ours, at the end
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert (path.parent / link).exists(), link
    assert any(link.endswith("experiments/toy/records/clm-1kb-0.json") for link in page.links)


def test_the_page_shows_failures_with_their_reason_and_never_a_number_for_them(study: Path):
    text = write_report(study).read_text()
    assert "failed: out of memory" in text
    cells = (study / "reports/toy/tables/cells.csv").read_text()
    assert "probe,accuracy,,mlm,,tiny,1kb,,,,0,,mlm-1kb-0" in cells


def test_the_headline_has_chance_scratch_and_every_strategy(study: Path):
    table = write.headline_markdown("toy", study / "experiments")
    assert "| chance | 0.250 |" in table
    assert "| scratch | 0.520 \\[0.470, 0.570\\] |" in table
    assert "| clm | 0.630 \\[0.555, 0.705\\] ▲ |" in table
    assert "95 % t interval" in table


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_appear_as_text(tmp_path: Path, name: str):
    hostile = [
        make_run(name, seed, 0.7, run_id=f"h{seed}", model=name, reason=name, config={name: name})
        for seed in range(2)
    ]
    write_study(tmp_path, [*toy_runs(), *hostile])
    (tmp_path / "experiments/toy/README.md").write_text(f"# {name}\n\n- {name}\n")
    path = write_report(tmp_path)
    page = Page(path.read_text())
    assert page.n_scripts == 1
    assert "b" not in page.tags
    assert visible(name) in page.text  # a mark of direction is shown as an escape
    for file in ("report.md", "report_full.md"):
        markdown = (path.parent / file).read_text()
        assert "<script>" not in markdown
        links = re.findall(r"(?<!\\)\]\((.*?)\)", markdown)
        assert all((path.parent / link).exists() for link in links), links
    for table in (path.parent / "tables").glob("*.tex"):
        assert is_balanced(table.read_text()), table


def is_balanced(latex: str) -> bool:
    """Does every row keep the table's columns, and every brace and dollar have its partner?"""
    [columns] = re.findall(r"begin\{tabular\}\{(\w+)\}", latex)
    bare = re.sub(r"\\[&%$#_{}]", "", latex.replace("\\\\", ""))
    rows = [line for line in bare.splitlines() if "&" in line]
    return (
        all(row.count("&") == len(columns) - 1 for row in rows)
        and bare.count("{") == bare.count("}")
        and bare.count("$") % 2 == 0
        and "%" not in bare.replace("\n%", "").removeprefix("%")
        and "\N{RIGHT-TO-LEFT OVERRIDE}" not in bare
    )


def test_a_study_whose_runs_all_failed_says_so(tmp_path: Path):
    write_study(tmp_path, [make_run("clm", seed, None) for seed in range(2)])
    path = write_report(tmp_path)
    assert "No run of this study finished" in path.read_text()
    assert "failed: out of memory" in path.read_text()
    for name in ("report.md", "report_full.md"):
        assert "No run of this study finished" in (path.parent / name).read_text()


def test_a_single_seed_has_no_interval(tmp_path: Path):
    write_study(tmp_path, [make_run("scratch", 0, 0.5), make_run("clm", 0, 0.6)])
    text = write_report(tmp_path).read_text()
    assert "0.600 [one seed]" in text
    assert "inconclusive (fewer than three seeds)" in text


@pytest.mark.slow
def test_a_damaged_record_is_told_and_left_out(study: Path):
    (study / "experiments/toy/records/bad.json").write_text("{")
    text = write_report(study).read_text()
    assert "Damaged record left out: bad.json" in text
    assert str(study) not in text


@pytest.mark.slow
def test_a_damaged_audit_is_told_and_left_out(study: Path):
    (study / "experiments/toy/audit.json").write_text("{")
    text = write_report(study).read_text()
    assert "Damaged audit left out: audit.json" in text
    assert str(study) not in text


def test_a_study_without_records_is_one_line(tmp_path: Path):
    (tmp_path / "experiments").mkdir()
    with pytest.raises(BenchError, match="no run record") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="not a study's name"):
        write.write("../toy", tmp_path, tmp_path, FIGURES)


def test_captions_state_the_computed_numbers():
    tables = toy_tables(make_run("mlm", 0, None))
    drawn = {name: build(node, Figure, name) for name, node in FIGURES.items()}  # type: ignore[type-abstract]
    captions = {name: figure.caption(tables) for name, figure in drawn.items()}
    for name in ("quality_vs_data", "quality_vs_flops"):
        assert "+0.110 [+0.049, +0.171], 3 seeds each, p = 0.009" in captions[name]
        assert "1 failed" in captions[name]
    assert "clm (tiny, 1kb) 2.500 [2.500, 2.500], n = 3 seeds" in captions["loss_curves"]


@pytest.mark.parametrize("name", ["loss_curves", "quality_vs_flops"])
def test_a_legend_of_long_names_stays_within_the_page(name: str):
    budgets = [f"4mb[tokens={2**i * 125_000}]" for i in range(5)]
    tables = toy_tables(*(make_run("mlm", 0, 0.5, budget=budget) for budget in budgets))
    with mpl.rc_context(STYLE):
        canvas = build(FIGURES[name], Figure, name).draw(tables)  # type: ignore[type-abstract]
        canvas.draw_without_rendering()
    [legend] = canvas.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= canvas.bbox.width


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_without_data_says_so(name: str):
    tables = tables_of([make_run("clm", 0, None)])
    figure = build(FIGURES[name], Figure, name)  # type: ignore[type-abstract]
    assert "nothing to draw" in figure.caption(tables)
    assert render(partial(figure.draw, tables), name)["png"]


def test_a_figure_of_an_unknown_task_is_one_clear_error():
    node = FIGURES["quality_vs_data"] | {"tasks": ["nope"]}
    figure = build(node, Figure, "figure.quality_vs_data")  # type: ignore[type-abstract]
    with pytest.raises(ConfigError, match=f"nope.*{PROBE.task}/{PROBE.metric}"):
        figure.draw(toy_tables())


@pytest.mark.parametrize(("low", "high"), [(1e12, 1.1e12), (1e12, 3e12), (1e9, 1e15), (1e9, 1e30)])
def test_log_axes_have_a_few_ticks_inside(low: float, high: float):
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= 5
    assert all(low <= tick <= high for tick in ticks)


def test_the_shipped_config_composes_and_names_every_figure():
    schema.register()
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("report", overrides=["study=toy"])
        nowhere = compose("report", overrides=["experiments_dir=no_such_folder"])
    assert set(cfg.figure) == set(FIGURES)
    with pytest.raises(ConfigError, match="no study has records in no_such_folder"):
        write.main(nowhere)


def test_status_tells_running_interrupted_and_recorded_runs(study: Path):
    beat = {"label": "clm 2kb", "step": 5, "total_steps": 10, "tokens_per_s": 1234.5, "phase": "pretrain"}
    alive = beat | {"status": "running", "updated_at": time.time() - 1000, "pid": 1}
    gone = beat | {"status": "running", "updated_at": time.time() + 1000}  # a clock may be wrong
    for run_id, state in (("alive", alive), ("gone", gone), ("clm-1kb-0", alive)):
        folder = study / "experiments/toy/runs" / run_id
        folder.mkdir(parents=True)
        (folder / "status.json").write_text(json.dumps(state))
    runs = study / "experiments/toy/runs"
    with lock(runs / "alive"), lock(runs / "clm-1kb-0"):
        rows = {row.run_id: row for row in status.rows("toy", study / "experiments")}
    states = {name: rows[name].state for name in ("alive", "gone", "clm-1kb-0", "mlm-1kb-0")}
    assert states == {
        "alive": "running",
        "gone": "interrupted",
        "clm-1kb-0": "running",  # its record is there: more tasks
        "mlm-1kb-0": "failed",
    }
    assert "step 5 of 10" in rows["alive"].detail
    console = Console(record=True, width=120, file=io.StringIO())
    with lock(runs / "alive"), lock(runs / "clm-1kb-0"):
        console.print(status.table("toy", study / "experiments"))
        console.print(status.overview(study / "experiments"))
    assert "5 finished, 2 running, 1 interrupted, 1 failed" in console.export_text()


def test_status_of_an_unknown_study_names_the_known_ones(study: Path):
    with pytest.raises(ConfigError, match="toy"):
        status.rows("nope", study / "experiments")


@pytest.mark.parametrize(
    ("module", "absent"), [("report.write", ("torch",)), ("sweep.status", ("torch", "pandas", "matplotlib"))]
)
def test_reading_results_imports_no_training_code(module: str, absent: tuple[str, ...]):
    wanted = (*absent, "pytorch_lightning")
    code = f"import sys, bench.{module}; print([m for m in {wanted} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_readmes_items_stay_whole_and_its_code_keeps_its_lines():
    text = "# A\n\nOne\ntwo.\n- three\n  four\n- `five`\n\n```\nbench train\nbench report\n```\nsix\n"
    assert blocks(text) == [
        ("h", "A"),
        ("p", "One two."),
        ("li", "three four"),
        ("li", "five"),
        ("pre", "bench train\nbench report"),
        ("p", "six"),
    ]


def test_a_second_record_of_a_run_is_told_and_not_counted(study: Path):
    records = study / "experiments/toy/records"
    copy = json.loads((records / "clm-1kb-0.json").read_text()) | {"seed": 7, "parameters": 5}
    (records / "zz.json").write_text(json.dumps(copy))
    path = write_report(study)
    assert "zz.json: holds run clm-1kb-0, whose record is clm-1kb-0.json" in path.read_text()
    assert "zz" not in (path.parent / "tables/runs.csv").read_text()


@pytest.mark.slow
def test_a_record_of_another_version_is_told(study: Path):
    path = study / "experiments/toy/records/clm-1kb-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    assert "clm-1kb-0.json: record schema 99, this version reads" in write_report(study).read_text()


@pytest.mark.slow
def test_a_table_that_is_no_longer_made_is_removed_and_notes_of_others_stay(study: Path):
    folder = write_report(study).parent
    (folder / "tables/old.csv").write_text("1")
    (folder / "notes.txt").write_text("mine")
    write_report(study)
    assert not (folder / "tables/old.csv").exists()
    assert (folder / "notes.txt").exists()


def test_the_budgets_on_an_axis_stand_in_lines_that_do_not_reach_each_other():
    assert tick_label("1mb") == "1mb"
    assert tick_label("4mb[tokens=1200000]") == "4mb\ntokens\n1.2M"
    assert tick_label("4mb[flops=1e13,unique_pairs=64]") == "4mb\nflops\n1e13\nunique_pairs\n64"


def test_latex_sets_every_sign_that_tables_use():
    """Beyond ASCII, pdflatex knows no sign by itself."""
    sources = Path(analysis.__file__).parent.glob("*.py")
    signs = {char for path in sources for char in path.read_text(encoding="utf-8") if not char.isascii()}
    assert len(signs) > 20
    assert {sign for sign in signs if not latex_escape(sign).isascii()} == set()


def test_the_best_mean_is_bold_in_latex_and_lower_is_better_where_it_is(tmp_path: Path):
    def runs(strategy: str, value: float) -> list[Any]:
        return [
            make_run(strategy, i, 0.5, scores=[Score("probe", "error", value + i / 100, None, 100, False)])
            for i in range(3)
        ]

    folder = write_report(
        write_study(tmp_path, [*runs("clm", 0.2), *runs("mlm", 0.3), *runs("scratch", 0.4)])
    ).parent
    latex = (folder / "tables/headline.tex").read_text()
    assert "clm & \\textbf{0.210" in latex
    assert latex.count("textbf") == 1


def test_all_studies_are_listed_with_their_verdicts(study: Path):
    write_report(study)
    (study / "experiments/other/records").mkdir(parents=True)
    text = write.write_index(study / "experiments", study / "reports").read_text()
    assert '<a href="toy/report.html" title="toy">' in text
    assert "1 ahead of scratch" in text
    assert "no report yet: bench report study=other" in text
    (study / "reports/toy/summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary.json.*bench report"):
        write.write_index(study / "experiments", study / "reports")


def test_of_many_budgets_so_many_are_labelled_as_there_is_room_for_and_the_largest_is():
    labels = [f"{2**i}mb" for i in range(10)]
    assert list(with_room(labels[:3], width_in=2.0)) == [0, 1, 2]
    assert list(with_room(labels, width_in=1.2)) == [0, 3, 6, 9]  # 0.35 in for each of "512mb"
