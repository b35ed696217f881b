"""Imports point one way: analysis and the command line know no torch, objectives do not know each other."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
HEAVY = {"torch", "lightning", "pytorch_lightning", "safetensors"}


def name_of(path: Path) -> str:
    parts = path.relative_to(BENCH.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(BENCH.rglob("*.py"))}


def nodes(body: list[ast.stmt], *, deep: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements; `deep`: those inside functions as well."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from nodes([n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)], deep=deep)


def imports(module: str, *, deep: bool) -> set[str]:
    """Modules that a module of the package imports, by full name."""
    found = set()
    for node in nodes(ast.parse(FILES[module].read_text()).body, deep=deep):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{module} has a relative import"
            base = str(node.module)
            children = {f"{base}.{alias.name}" for alias in node.names}
            found |= (children & FILES.keys()) | {base}
    return found


def reached(module: str, *, deep: bool = False) -> set[str]:
    """What importing a module imports, through the whole package."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo += imports(current, deep=deep) if current in FILES else []
    return seen


def members(*names: str) -> list[str]:
    """Modules of these names, and of packages of these names."""
    found = [m for m in FILES if any(m == f"bench.{n}" or m.startswith(f"bench.{n}.") for n in names)]
    assert {m.split(".")[1] for m in found} == set(names)
    return found


def tops(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


LIGHT = members(
    *("analysis", "figures", "report", "side_by_side", "records", "evaluations"),
    *("compose", "launch", "launchers", "cli"),
    *("status", "display"),
    *("prepare", "tokens", "pairs", "shards", "corpora", "build", "schema", "budget", "errors"),
    *("endpoint", "echo"),
)
TRAINING = set(
    members(
        "train",
        "pretrain",
        "evaluate",
        "energy",
        "callbacks",
        "checkpoint",
        "data",
        "optim",
        "protocols",
        "contrastive",
        "tracking",
    )
    + members(
        "tuning",
        "descent",
        "feature_cache",
        "audit",
        "backbones",
        "objectives",
        "tasks",
        "worker",
        "nats",
        "scoring",
    )
)


@pytest.mark.parametrize("module", LIGHT)
def test_what_answers_at_once_never_imports_torch(module: str):
    assert not tops(reached(module)) & HEAVY


@pytest.mark.parametrize(
    "module", members("analysis", "figures", "report", "side_by_side", "records", "evaluations", "status")
)
def test_analysis_never_imports_training_not_even_late(module: str):
    found = reached(module, deep=True)
    assert not found & TRAINING
    assert not tops(found) & HEAVY


def test_the_command_line_answers_without_torch():
    code = "import sys, bench.cli; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(ast.literal_eval(done.stdout)) & (HEAVY | {"pandas", "matplotlib"})


@pytest.mark.parametrize("module", members("backbones", "budget", "optim", "contrastive", "descent"))
def test_what_objectives_are_made_of_knows_no_objective(module: str):
    assert not {name for name in reached(module, deep=True) if name.startswith("bench.objectives")}


@pytest.mark.parametrize("module", members("objectives"))
def test_objectives_know_neither_each_other_nor_what_uses_them(module: str):
    known = {name for name in imports(module, deep=True) if name.startswith("bench.objectives")}
    assert known <= {"bench.objectives", "bench.objectives.base", "bench.objectives.two_towers"}
    users = set(members("tasks", "protocols", "tuning", "train", "data", "callbacks", "corpora"))
    assert not reached(module, deep=True) & users


@pytest.mark.parametrize("module", members("tasks", "protocols", "tuning"))
def test_tasks_and_protocols_know_no_single_objective(module: str):
    known = {name for name in reached(module, deep=True) if name.startswith("bench.objectives.")}
    assert known <= {"bench.objectives.base"}


def test_only_the_builder_reads_a_target():
    readers = {name for name, path in FILES.items() if '"_target_"' in path.read_text()}
    assert readers == {"bench.build"}


def test_the_wall_clock_is_shown_and_decides_nothing():
    clock = re.compile(r"time\.time\(|datetime\.now\(|st_[amc]time\b")
    readers = {name for name, path in FILES.items() if clock.search(path.read_text())}
    assert readers == {"bench.tracking", "bench.status", "bench.spec"}  # ages and dates


def test_imports_have_no_cycle():
    for module in FILES:
        for imported in imports(module, deep=False) & FILES.keys():
            assert module not in reached(imported) or FILES[module].name == "__init__.py", imported


def test_no_module_is_a_drawer_for_anything():
    assert not {name.split(".")[-1] for name in FILES} & {"utils", "util", "helpers", "misc", "common"}


def test_the_finder_of_imports_sees_late_and_guarded_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "toy.py"
    path.write_text(
        "import a.b\nif x:\n    from c import d\ndef f():\n    import e\nclass G:\n    import h\n"
    )
    monkeypatch.setitem(FILES, "toy", path)
    assert imports("toy", deep=False) == {"a.b", "c", "h"}
    assert imports("toy", deep=True) == {"a.b", "c", "h", "e"}
