"""A package of one's own, built and installed as a user does: its strategy, task and figure are found."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import HERE, Place

ROOT = Path(__file__).parents[2]
NOUNS = ("array", "value", "list", "index", "name", "shape")
PACKAGE = ROOT / "examples" / "my_strategies"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package is installed into; built from a copy, which leaves the tree as it is."""
    source = shutil.copytree(PACKAGE, tmp_path_factory.mktemp("source") / "my_strategies")
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, cwd=target)
    return target


@pytest.fixture
def place(installed: Path, tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), *([before] if before else [])]))
    return Place(tmp_path / "mine", [word for word in settings if not word.startswith("task")])


def write_sentences(folder: Path) -> Path:
    """Forty files of made-up sentences."""
    rng = random.Random(0)  # noqa: S311 - made-up sentences
    folder.mkdir()
    for i in range(40):
        words = [
            " ".join(rng.choices(["array", "value", "list", "index", "name", "shape"], k=5))
            for _ in range(30)
        ]
        (folder / f"{i}.txt").write_text(" ".join(f"The {part} is here." for part in words))
    return folder


@pytest.mark.product  # half a minute
def test_a_study_of_a_plug_ins_strategy_task_and_figure(place: Place):
    done = place.bench(
        *place.sweep("strategy=reversed_lm,clm", "task=[sentence_order]", "study=mine"),
        *(f"corpus.text.path={write_sentences(place.folder / 'text')}", "sequence_length=64", *HERE),
    )
    assert done.returncode == 0, done.stderr
    results = place.results("mine")
    assert results["clm"]["sentence_order"].status == "finished"
    assert results["clm"]["sentence_order"].scores[0].chance == 0.5
    assert results["reversed_lm"]["sentence_order"].status == "inapplicable"  # it defines no likelihood
    assert place.records("mine")["reversed_lm"].spent.steps > 0
    assert place.bench("report", "study=mine").returncode == 0
    report = place.folder / "reports" / "mine"
    assert (report / "figures" / "seed_spread.svg").is_file()
    assert "The score of every run" in (report / "report_full.md").read_text()
    verified = place.bench("verify", "study=mine")
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.product
def test_a_plug_ins_strategy_and_task_keep_the_contracts(place: Place):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"),
            *("tests/contract", "-k", "reversed_lm or sentence_order"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_without_the_package_its_names_are_unknown(tmp_path: Path, settings: list[str]):
    done = Place(tmp_path / "without", settings).bench_here("train", "strategy=reversed_lm")
    assert done.returncode == 2
    assert "strategy=reversed_lm: no such choice" in done.stderr
