"""The package as it is installed: from a checkout or a wheel, with and without each optional package."""

import importlib.util
import re
import sys
import tomllib
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from bad_inputs import assert_one_line
from colour_squares import make_task
from corpus_builders import pair_corpus, text_corpus
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench import cli
from bench.config import installation
from bench.config.compose import compose_runs
from bench.config.installation import CHECKOUT, EXTRAS, check_installed
from bench.data.corpora.nltk import corpus_reader
from bench.errors import ConfigError
from bench.models import api_client
from bench.sweep.search import search
from bench.sweep.sweep import launch

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
DEFAULT = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRA = {name: list(map(Requirement, lines)) for name, lines in PROJECT["optional-dependencies"].items()}
FOR_DEVELOPERS = {"dev", "audit"}


def run(*words: str) -> None:
    launch(compose_runs(words, multirun=False))


# Each optional package: what needs it, and the setting that the message names.
NEEDS: dict[str, tuple[Callable[[], object], str]] = {
    "wandb": (lambda: run("logger=wandb"), "logger.wandb"),
    "codecarbon": (lambda: run("energy.metered=true"), "energy.metered=true"),
    "ray": (lambda: run("launcher=ray"), "launcher=ray"),
    "submitit": (lambda: run("launcher=slurm"), "launcher=slurm"),
    "datasets": (lambda: text_corpus("hf_text", name="json"), "corpus.text.name='json'"),
    "nltk": (lambda: corpus_reader("brown", "corpus.text.names"), "corpus.text.names"),
    "sacrebleu": (lambda: make_task("image_captioning").check("task.x"), "task.x"),
    "seqeval": (lambda: make_task("ner_ieer").check("task.x"), "task.x"),
    "chatterbot_corpus": (
        lambda: make_task("dialogue_fitted", corpus="chatterbot").check("task.x"),
        "task.x.corpus=chatterbot",
    ),
    "optuna": (
        lambda: list(search(["sweeper=optuna", "optim.lr_peak=interval(0.001,0.01)"])),
        "sweeper=optuna",
    ),
    "tensorboard": (lambda: run("logger=tensorboard"), "logger.tensorboard"),
    "pytrec_eval": (lambda: make_task("beir_scifact").check("task.beir_scifact"), "task.beir_scifact"),
    "trackio": (lambda: run("logger=trackio"), "logger.trackio"),
    "openai": (api_client._openai, "strategy=endpoint"),
}


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_optional_package_is_one_line_with_its_setting_and_its_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("shutil.which", lambda name: name)  # Slurm's commands
    needed, setting = NEEDS[package]
    with pytest.raises(ConfigError) as caught:
        needed()
    assert_one_line(str(caught.value))
    assert f"{setting} needs the package {package}: pip install " in str(caught.value)
    assert str(caught.value).endswith(f"[{EXTRAS[package]}]'")


def test_pairs_of_hugging_face_need_datasets_as_well(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ConfigError, match=r"^corpus\.pairs\.name='json' needs the package datasets: .*\[hf\]'$"
    ):
        pair_corpus("hf_image_text", name="json")


def test_generation_needs_its_metrics_and_part_of_speech_tags_need_none(monkeypatch: pytest.MonkeyPatch):
    for package in ("sacrebleu", "seqeval"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"^task\.x needs the package sacrebleu: "):
        make_task("generation_greedy").check("task.x")
    assert make_task("pos_treebank").packages == ()


def test_a_folder_of_a_packages_name_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "wandb_by_another_name").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("wandb_by_another_name") is not None
    assert not installation.is_installed("wandb_by_another_name")
    assert installation.is_installed("torch")


def test_pyproject_has_an_extra_for_each_optional_package_and_no_other():
    assert set(EXTRA) - FOR_DEVELOPERS == set(EXTRAS.values())
    for package, extra in EXTRAS.items():
        name = {"pytrec_eval": "pytrec-eval-terrier"}.get(package, package.replace("_", "-"))
        assert name in {requirement.name for requirement in EXTRA[extra]}
        assert name not in {requirement.name for requirement in DEFAULT}
    whole = next(requirement for requirement in EXTRA["dev"] if requirement.name == installation.PROJECT)
    assert whole.extras == set(EXTRAS.values()) - {"ray", "trackio"}  # which are large


def test_the_constraints_pin_every_dependency_to_a_version_that_pyproject_allows():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert [name for name, pin in pins.items() if not re.fullmatch(r"[\w.]+", pin)] == []  # no +cpu, no path
    for requirement in [*DEFAULT, *(one for name in EXTRA if name != "audit" for one in EXTRA[name])]:
        if requirement.name != installation.PROJECT:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_wheel_is_told_of_every_package_and_of_conf():
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "bench").rglob("__init__.py")}
    assert set(SETUPTOOLS["packages"]) == found | {"bench.conf"}
    assert {path.suffix for path in (ROOT / "conf").rglob("*") if path.is_file()} == {".yaml"}


def load(package: Path) -> ModuleType:
    """The module as it is when `bench` lies in this folder."""
    path = package / "config" / "installation.py"
    path.parent.mkdir(parents=True)
    path.write_text(Path(installation.__file__).read_text())
    spec = importlib.util.spec_from_file_location("installation_elsewhere", path)
    assert isinstance(spec, ModuleSpec)
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_from_a_wheel_the_installed_conf_is_used_and_no_commit_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "bench" / "conf").mkdir(parents=True)
    (tmp_path / "conf").mkdir()  # of another package in site-packages
    wheel = load(tmp_path / "bench")
    assert tmp_path / "bench" / "conf" == wheel.CONF
    assert wheel.commit() == "unknown"
    assert "commit" not in wheel.version()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r": pip install 'pretraining-bench\[ray\]'$"):
        wheel.check_installed("ray", "launcher=ray")


def test_in_a_checkout_conf_lies_beside_the_package(tmp_path: Path):
    assert tmp_path / "conf" == load(tmp_path / "bench").CONF
    assert installation.CONF == ROOT / "conf"


def test_in_a_checkout_the_command_names_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for folder, place in ((ROOT, "."), (tmp_path, str(CHECKOUT))):
        monkeypatch.chdir(folder)
        with pytest.raises(ConfigError, match=re.escape(f"pip install --editable '{place}[ray]'") + "$"):
            check_installed("ray", "launcher=ray")


def test_the_command_line_shows_the_version_and_the_commit(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert re.fullmatch(r"bench \d+\.\d+\.\d+ \(commit \S+\)\n", capsys.readouterr().out)
