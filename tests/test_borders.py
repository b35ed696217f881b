"""Imports point one way: analysis and the command line know no torch, objectives do not know each other."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from bench.config.installation import EXTRAS

BENCH = Path(__file__).parents[1] / "bench"
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


@cache
@cache
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


@cache
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


# The order in which data flow. A module imports from its own room and from those before it, never after it.
ROOMS = [
    *("errors", "records"),
    *("config", "data", "models", "objectives", "training", "tasks"),
    *("analysis", "report", "speed", "sweep", "cli"),
]
LIGHT = [
    module
    for module in members(
        *("config", "analysis", "report", "records", "errors", "cli", "sweep"),
    )
    if module not in ("bench.sweep.execute", "bench.sweep.export", "bench.sweep.torchrun_worker")
] + [
    f"bench.{name}"
    for name in (
        *("objectives.options", "tasks.options", "data.prepare", "data.pairs", "data.shards", "models.flops"),
        *(
            "models.api_client",
            "training.trunk",
            "training.stopping",
            "training.memory",
            "training.loggers",
            "speed.estimates",
        ),
    )
]
HEAVY_ROOMS = set(members("data", "models", "objectives", "training", "tasks", "speed", "sweep"))


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", [module for module in FILES if module != "bench"])
def test_imports_point_one_way(module: str):
    """Late imports inside functions count as well."""
    own = ROOMS.index(room(module))
    imported = {name for name in imports(module, deep=True) & FILES.keys() if name != "bench"}
    assert [name for name in sorted(imported) if ROOMS.index(room(name)) > own] == []


@pytest.mark.parametrize("module", LIGHT)
def test_what_answers_at_once_never_imports_torch(module: str):
    assert not tops(reached(module)) & HEAVY


@pytest.mark.parametrize("module", members("analysis", "report", "records"))
def test_analysis_never_imports_training_not_even_late(module: str):
    found = reached(module, deep=True)
    assert not found & HEAVY_ROOMS
    assert not tops(found) & HEAVY


def test_the_command_line_answers_without_torch():
    code = "import sys, bench.cli; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(ast.literal_eval(done.stdout)) & (HEAVY | {"pandas", "matplotlib"})


def test_optional_packages_are_imported_only_where_they_are_used():
    """Everything else works without them; imports for type checkers alone do not count."""
    for module, path in FILES.items():
        body = ast.parse(path.read_text()).body
        real = [n for n in body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
        for node in nodes(real, deep=False):
            names = {str(node.module)} if isinstance(node, ast.ImportFrom) else {a.name for a in node.names}
            assert not tops(names) & EXTRAS.keys(), module


@pytest.mark.parametrize("module", members("objectives"))
def test_objectives_do_not_know_each_other(module: str):
    shared = ("base", "corruption", "contrastive", "likelihood", "sampling", "optim", "options")
    known = {name for name in imports(module, deep=True) if name.startswith("bench.objectives.")}
    assert {name.removeprefix("bench.objectives.") for name in known} <= set(shared)


@pytest.mark.parametrize("module", members("tasks", "training"))
def test_tasks_and_training_know_no_single_objective(module: str):
    if module == "bench.tasks.audit":  # builds random features
        return
    strategies = {path.stem for path in (BENCH / "objectives").glob("*.py")} & {
        path.stem for path in (BENCH.parent / "conf" / "strategy").glob("*.yaml")
    }
    known = {name for name in imports(module, deep=True) if name.startswith("bench.objectives.")}
    assert not {name.removeprefix("bench.objectives.") for name in known} & strategies


def test_every_room_says_what_it_is_for():
    rooms = [path for path in BENCH.rglob("__init__.py") if path.parent != BENCH]
    assert [
        path for path in rooms if not (ast.get_docstring(ast.parse(path.read_text())) or "").endswith(".")
    ] == []


def test_only_the_builder_reads_a_target_and_only_identities_leave_it_out():
    readers = {name for name, path in FILES.items() if '"_target_"' in path.read_text()}
    assert readers == {"bench.config.build", "bench.config.identity", "bench.records"}


def test_the_root_has_four_modules():
    modules = {path.name for path in BENCH.glob("*.py")}
    assert modules == {"__init__.py", "cli.py", "errors.py", "records.py"}


def test_the_wall_clock_is_shown_and_decides_nothing():
    clock = re.compile(r"time\.time\(|datetime\.now\(|st_[amc]time\b")
    readers = {name for name, path in FILES.items() if clock.search(path.read_text())}
    assert readers == {
        "bench.training.metric_file",
        "bench.sweep.status",
        "bench.config.run_spec",
    }  # ages and dates


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
