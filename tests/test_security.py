"""Nothing of a config, a file or a record is run: no shell, no pickle, no foreign class, no open archive."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_borders import FILES

from bench.analysis.format import latex_escape
from bench.config import plugins
from bench.config.build import find_class
from bench.data.corpora.base import PairCorpus, TextCorpus
from bench.errors import ConfigError
from bench.report.figures.base import Figure

# Calls that run what they are given, or may; by the last two parts of the name that is called.
FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads"}
FORBIDDEN |= {
    "dill.load",
    "joblib.load",
    "shelve.open",
    "marshal.loads",
    "pd.read_pickle",
    "yaml.unsafe_load",
}
FORBIDDEN |= {"shutil.unpack_archive", "subprocess.getoutput", "os.execv", "os.spawnv"}
IMPORTERS = {"bench", "bench.config.build"}  # the first its own public names alone  # may import by name
EXTRACTORS = {"bench.report.side_by_side"}  # zipfile.extractall, which drops `..` and roots; a test below
# Arguments that make a call safe: (call, keyword) -> the values that it may have.
NEEDED = {
    ("np.load", "allow_pickle"): {"False"},
    ("np.savez_compressed", "allow_pickle"): {"False"},
    ("torch.load", "weights_only"): {"True"},
    ("trainer.fit", "weights_only"): {"True"},
    ("jinja2.Environment", "autoescape"): {"True", "is_html", "False"},  # False: Markdown, with its filter
    ("tarfile.open", "mode"): {"'r|'"},  # a stream, whose members are read; unpacking them is refused below
    ("yaml.load", "Loader"): {"yaml.BaseLoader", "yaml.SafeLoader"},
    ("*.from_pretrained", "trust_remote_code"): {"False"},
}
OURS = {"Embedding.from_pretrained"}  # torch's: it takes a tensor
MAPPED = {"np.load": "mmap_mode"}  # a mapped array holds no objects: numpy refuses them


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a module by the last two parts of its name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ".".join(ast.unparse(node.func).split(".")[-2:]), node


@pytest.mark.parametrize("module", FILES)
def test_no_module_runs_what_it_reads(module: str):
    for name, call in calls(FILES[module]):
        assert name not in FORBIDDEN, f"{module}:{call.lineno} calls {name}"
        if name.endswith("import_module"):
            assert module in IMPORTERS, f"{module}:{call.lineno} imports by name"
        if name.endswith(("extractall", "extract")):
            assert module in EXTRACTORS, f"{module}:{call.lineno} unpacks an archive"
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("shell", "False") == "False", f"{module}:{call.lineno} starts a shell"
        for (wanted, keyword), values in NEEDED.items():
            is_it = name == wanted or (wanted[0] == "*" and name.endswith(wanted[1:]))
            if is_it and name not in OURS and MAPPED.get(name) not in given:
                assert given.get(keyword) in values, f"{module}:{call.lineno}: {name} without {keyword}"


def test_the_finder_of_calls_sees_what_it_must(tmp_path: Path):
    path = tmp_path / "toy.py"
    path.write_text(
        "import os\nos.system('x')\nclass A:\n    def f(self):\n        return [eval(x) for x in y]\n"
    )
    assert [name for name, _ in calls(path)] == ["os.system", "eval"]


TARGETS = [
    "builtins.eval",
    "builtins.exec",
    "os.system",
    "subprocess.Popen",
    "pickle.loads",
    "bench.cli.main",
    "bench.data.corpora.base.Document",
    "bench.data.corpora.base.TextCorpus",  # abstract
    "bench.data.corpora.text_files.TextFilesOptions",
    "bench.no_such.Class",
    "bench.data.corpora.text_files.NoSuchClass",
    "bench..x",
    "bench",
    "",
    ".",
    "eval",
    "this.s",  # a module that prints when it is imported
    "antigravity.fly",
    "evil_module.Evil",
]


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_a_class_of_ours_or_nothing(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "evil_module.py").write_text("import os\nos.mkdir('touched')\nclass Evil: Options = None\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    for base in (TextCorpus, PairCorpus, Figure):
        with pytest.raises(ConfigError, match=r"x\._target_=") as caught:
            find_class({"_target_": target}, base, "x")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "touched").exists()
    assert not {name for name in set(sys.modules) - before if not name.startswith("bench")} & {
        "this",
        "evil_module",
    }
    assert capsys.readouterr().out == ""


def test_a_class_from_elsewhere_serves_only_if_its_package_is_a_plug_in(monkeypatch: pytest.MonkeyPatch):
    from bench.data.corpora.text_files import TextFiles

    mine = type("Mine", (TextFiles,), {})
    monkeypatch.setitem(sys.modules, "my_package", SimpleNamespace(Mine=mine))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="neither in bench nor in an installed plug-in"):
        find_class({"_target_": "my_package.Mine"}, TextCorpus, "corpus.text")
    monkeypatch.setattr(plugins, "plugins", lambda: {"my_package": Path("conf")})
    assert find_class({"_target_": "my_package.Mine"}, TextCorpus, "corpus.text") is mine


@pytest.mark.parametrize(
    "text", [r"\input{/etc/passwd}", r"\write18{rm x}", "$\\def\\x{}$", "%\n\\end{document}", "^^5cinput"]
)
def test_no_name_is_a_command_of_latex(text: str):
    found = latex_escape(text).replace(r"\textbackslash{}", "").replace(r"\textasciicircum{}", "")
    assert "\n" not in found
    bare = found
    for sign in "&%$#_{}":
        bare = bare.replace(f"\\{sign}", "")
    assert not set(bare) & set("\\^%${}#")


def test_the_audit_knows_licences_that_bind_and_those_that_are_not_told():
    path = Path(__file__).parents[1] / ".ci/audit.py"
    spec = importlib.util.spec_from_file_location("audit", path)
    assert spec is not None
    assert spec.loader is not None
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    assert [audit.licence_problem("x", text) for text in ("MIT", "BSD-3-Clause", "LGPL-2.1 or later")] == [
        None
    ] * 3
    for text, told in (
        ("", "no licence in its metadata"),
        ("GPL-3.0-only", "is incompatible with"),
        ("My own", "unknown licence"),
    ):
        assert told in audit.licence_problem("x", text)
    found = audit.closure(audit.PROJECT, ["dev"])
    assert {"torch", "numpy", "hydra-core", "omegaconf"} <= set(found)
