"""Records, claims, audits and arrays of other people: what is not what it says is named and left out."""

import copy
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from bad_inputs import LEAST, MARK, Bench, assert_one_line, many, refusal, traps
from hypothesis import given
from hypothesis import strategies as st
from toy_runs import toy_runs, write_study

from bench.analysis.claims import read_claims
from bench.analysis.frames import load
from bench.config.run_spec import read_spec
from bench.errors import printable
from bench.records import (
    AuditCheck,
    AuditRecord,
    Score,
    as_json,
    read_audit,
    read_evaluation,
    read_items,
    read_json,
    read_record,
    write_audit,
)
from bench.report import side_by_side
from bench.report.csv_tables import csv_tables, csv_text
from bench.report.page import assemble


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of toy runs with an audit."""
    folder = tmp_path_factory.mktemp("good")
    write_study(folder, toy_runs())
    audit = AuditRecord("toy", (AuditCheck("probe", "noise", "passed", "x"),), {}, {}, "2026-01-02")
    write_audit(audit, folder / "experiments/toy")
    return folder / "experiments/toy"


READERS: dict[str, Callable[[Path], object]] = {
    "records/clm-1kb-0.json": read_record,
    "evaluations/clm-1kb-0.e0.json": read_evaluation,
    "audit.json": lambda path: read_audit(path.parent),
}
NO_JSON = [b"", b"{", b"null", b"[]", b"3", b'"x"', b"\x80\x04K\x01.", "{}".encode("utf-16"), b"[" * 100_000]
NO_JSON += [
    b'{"schema_version": ' + b"9" * 5000 + b"}",
    b'{"schema_version": 99}',
    b'{"schema_version": NaN}',
]
# Of no type that a field of a record has, or a number that no table holds.
NO_VALUE = [
    float("nan"),
    float("inf"),
    -float("inf"),
    10**400,
    -(2**63) - 1,
    "\ud800",
    "a\0b",
    [[]],
    {"a": {"b": float("nan")}},
]


def places(node: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a record."""
    found = [place] if place else []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return found + [way for key, value in items for way in places(value, (*place, key))]


def is_free(place: tuple[Any, ...]) -> bool:
    """Whether a value is a setting of a task, which may be of any type."""
    return place[0] == "results" and "config" in place[:-1]


def changed(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    made = copy.deepcopy(tree)
    node = made
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return made


def test_a_file_that_is_no_record_is_named(good: Path, tmp_path: Path):
    for name, read in READERS.items():
        path = tmp_path / Path(name).name
        whole = (good / name).read_bytes()
        cuts = [whole[:n] for n in range(1, len(whole) - 2, len(whole) // 9)]
        for content in [*NO_JSON, *cuts]:
            path.write_bytes(content)
            line = refusal(lambda path=path, read=read: read(path))  # type: ignore[misc]
            assert path.name in line
            assert_one_line(printable(line))


def test_a_value_that_is_not_of_its_fields_type_is_named_with_its_place(good: Path, tmp_path: Path):
    trees = {name: json.loads((good / name).read_text()) for name in READERS}
    distinct = set()

    @many(LEAST["records"] + 60)
    @given(st.sampled_from(sorted(READERS)), st.data())
    def law(name: str, data: st.DataObject) -> None:
        tree = trees[name]
        place = data.draw(st.sampled_from([way for way in places(tree) if not is_free(way)]))
        value = data.draw(st.sampled_from(NO_VALUE))
        distinct.add((name, place, repr(value)[:40]))
        path = tmp_path / Path(name).name
        path.write_text(json.dumps(changed(tree, place, value)))
        line = refusal(lambda: READERS[name](path))
        assert path.name in line
        assert_one_line(printable(line))

    law()
    assert len(distinct) >= LEAST["records"]


@pytest.mark.parametrize("name", READERS)
def test_a_field_that_there_is_not_and_one_that_is_missing_are_named(name: str, good: Path, tmp_path: Path):
    tree = json.loads((good / name).read_text())
    path = tmp_path / Path(name).name
    for change in (tree | {"zzz": 1}, {k: v for k, v in tree.items() if k != "study"}):
        path.write_text(json.dumps(change))
        assert "zzz" in (line := refusal(lambda: READERS[name](path))) or "study" in line


def test_a_whole_number_is_a_float_where_one_is_asked_for_and_nothing_else_is_converted():
    given = {"task": "probe", "metric": "accuracy", "value": 1, "chance": 0.25, "n_items": 4}
    made = read_json(Score, json.dumps(given))
    assert (type(made.value), made) == (float, Score("probe", "accuracy", 1.0, 0.25, 4))
    for wrong in ({"n_items": 4.0}, {"value": True}, {"value": "1"}, {"task": 1}, {"higher_is_better": 1}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: expected an? "):
            read_json(Score, json.dumps(given | wrong))


LIES = [
    ("records/clm-1kb-0.json", ("run_id",), "../../x", "holds run"),
    ("records/clm-1kb-0.json", ("study",), "../../x", "cannot name a folder"),
    (
        "records/clm-1kb-0.json",
        ("status",),
        "splendid",
        "expected 'finished', 'diverged' or 'failed'",
    ),
    ("records/clm-1kb-0.json", ("seed",), True, "seed: expected an int, got True"),
    ("records/clm-1kb-0.json", ("parameters",), "7", "parameters: expected an int, got '7'"),
    ("evaluations/clm-1kb-0.e0.json", ("run_id",), "../../x", "holds run"),
    ("evaluations/clm-1kb-0.e0.json", ("evaluation_id",), "e1", "holds run"),
    (
        "evaluations/clm-1kb-0.e0.json",
        ("results", 0, "scores", 0, "value"),
        "0.9",
        "expected a float, got '0.9'",
    ),
    (
        "evaluations/clm-1kb-0.e0.json",
        ("results", 0, "scores", 0, "value"),
        None,
        "a float, got None",
    ),
    ("evaluations/clm-1kb-0.e0.json", ("results", 0, "scores", 0, "task"), "other", "has a score of other"),
]


@pytest.mark.parametrize(("name", "place", "value", "told"), LIES)
def test_a_record_that_says_what_it_is_not_gives_no_number(
    name: str, place: tuple[Any, ...], value: Any, told: str, good: Path, tmp_path: Path
):
    study = shutil.copytree(good, tmp_path / "experiments/toy")
    tree = json.loads((study / name).read_text())
    (study / name).write_text(json.dumps(changed(tree, place, value)))
    tables, damaged = load("toy", tmp_path / "experiments")
    assert [told in str(error) for error in damaged] == [True]
    scored = set(csv_tables(tables, study)["scores"]["run_id"])
    assert "clm-1kb-0" not in scored
    assert "clm-1kb-1" in scored


# What a record says of settings and data is read far from its file, so its types are checked on reading.
SETTINGS = {
    "budget": {"unique_bytes": 1000, "tokens": 1000, "supervised_tokens": None, "flops": None},
    "model": {"name": None, "d_model": 64},
    "optim": {"lr_peak": 0.001},
    "strategy": {"_target_": "a.B", "order": ["a"]},
    "corpus": {"text": {"_target_": "a.B"}},
    "tokenizer": {"vocab_size": 512},
    "sequence_length": 32,
    "seed": 0,
}
DATA = {
    "text": {"content_sha256": "abc", "provenance": {"source": "x"}, "splits": {"train": {"bytes": 9}}},
    "trunk": {"run_id": "clm", "steps": 5},
    "vocab_size": 512,
}
DAMAGE = [
    (("data", "trunk"), None, "data.trunk: expected a mapping"),
    (("data", "trunk", "steps"), 0, "data.trunk.steps: expected 1 to spent.steps=10"),
    (("data", "trunk", "steps"), 11, "data.trunk.steps: expected 1 to spent.steps=10"),
    (("data", "text", "splits", "train", "bytes"), "9", "expected an int, got '9'"),
    (("data", "text", "provenance"), ["x"], "data.text.provenance: expected a mapping"),
    (("config", "budget"), [], "config.budget: expected a mapping"),
    (("config", "budget", "unique_bytes"), "lots", "expected an int, got 'lots'"),
    (("config", "model", "name"), 3, "config.model.name: expected a string, got 3"),
    (("config", "optim", "lr_peak"), "0.1", "config.optim.lr_peak: expected a float, got '0.1'"),
    (("config", "strategy"), "clm", "config.strategy: expected a mapping, got 'clm'"),
    (("config", "corpus", "text"), 7, "config.corpus.text: expected a mapping, got 7"),
    (("config", "sequence_length"), 32.5, "config.sequence_length: expected an int, got 32.5"),
    (("spent", "steps"), -1, "spent.steps: expected 0 or more, got -1"),
    (("started_at",), "yesterday", "started_at: Invalid isoformat string: 'yesterday'"),
]


def as_version_2(tree: dict[str, Any]) -> dict[str, Any]:
    """A run record as the version before wrote it, with settings and data."""
    spent = {key.replace("predicted", "supervised"): value for key, value in tree["spent"].items()}
    return tree | {"schema_version": 2, "spent": spent, "config": SETTINGS, "data": DATA}


@pytest.mark.parametrize(("place", "value", "told"), DAMAGE)
@pytest.mark.parametrize("version", [2, 3])
def test_damaged_settings_and_data_are_named_with_their_place(
    version: int, place: tuple[Any, ...], value: Any, told: str, good: Path, tmp_path: Path
):
    path = tmp_path / "clm-1kb-0.json"
    path.write_text(json.dumps(as_version_2(json.loads((good / "records" / path.name).read_text()))))
    record = read_record(path)
    tree = json.loads(path.read_text() if version == 2 else as_json(record))
    path.write_text(json.dumps(changed(tree, place, value)))
    line = refusal(lambda: read_record(path))
    assert path.name in line
    assert told in line


@pytest.mark.slow
def test_a_record_with_any_other_value_is_refused_or_reported(good: Path, tmp_path: Path):
    """Whatever one value is replaced by, no traceback follows."""
    study = shutil.copytree(good, tmp_path / "experiments/toy")
    path = study / "records/clm-1kb-0.json"
    wholes = {2: as_version_2(json.loads(path.read_text()))}
    path.write_text(json.dumps(wholes[2]))
    wholes[3] = json.loads(as_json(read_record(path)))
    found = set()

    @many(100)
    @given(st.sampled_from([2, 3]), st.data())
    def law(version: int, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(places(wholes[version])))
        value = data.draw(st.sampled_from([None, "lots", "", -1, 0, 0.5, True, [], {}, [None], {"a": None}]))
        path.write_text(json.dumps(changed(wholes[version], place, value)))
        tables, damaged = load("toy", tmp_path / "experiments")
        assert all(path.name in str(error) for error in damaged)
        csv_tables(tables, study)
        assemble(tables, [], [], records_href="", study=study)
        found.add(bool(damaged))

    law()
    assert found == {False, True}


def test_a_newer_record_may_say_more_of_settings_and_data(good: Path, tmp_path: Path):
    path = tmp_path / "clm-1kb-0.json"
    tree = json.loads((good / "records" / path.name).read_text())
    path.write_text(json.dumps(changed(tree, ("config",), {"new": {"a": [1, "x", None]}})))
    assert read_record(path).config == {"new": {"a": [1, "x", None]}}


ODD_FILES: dict[str, Callable[[Path], object]] = {
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "not a regular file": lambda path: path.mkdir(),
    "not a regular file ": os.mkfifo,
    "a broken link ": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_what_is_not_a_file_is_named_and_left_out(kind: str, good: Path, tmp_path: Path):
    study = shutil.copytree(good, tmp_path / "experiments/toy")
    names = ("records/odd.json", "evaluations/odd.e0.json")
    for name in names:
        ODD_FILES[kind](study / name)
    tables, damaged = load("toy", tmp_path / "experiments")
    assert len(tables.runs) == len(toy_runs())
    assert [kind.strip() in str(error) and "odd" in str(error) for error in damaged] == [True, True]
    (study / "audit.json").unlink()
    ODD_FILES[kind](study / "audit.json")
    assert "audit.json" in refusal(lambda: read_audit(study))
    ODD_FILES[kind](study / "odd.npz")
    assert "odd.npz" in refusal(lambda: read_items(study / "odd.npz", "probe"))


@pytest.fixture
def cli(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Bench:
    """The command line in a folder with the study."""

    shutil.copytree(good, tmp_path / "experiments/toy")
    monkeypatch.chdir(tmp_path)
    return Bench(monkeypatch, capsys)


def test_an_escape_sequence_in_a_record_reaches_no_terminal(cli: Bench):
    path = Path("experiments/toy/records/clm-1kb-0.json")
    evil = "\x1b]0;title\x07\x1b[2J\r\N{RIGHT-TO-LEFT OVERRIDE}"
    tree = json.loads(path.read_text()) | {"variant": evil, "status": "failed", "reason": evil}
    path.write_text(json.dumps(tree))
    for words in (["status", "study=toy"], ["compare", "toy", "toy"], ["advise", "task=probe"]):
        code, out, err = cli.run(*words)
        assert code == 0
        assert not {"\x1b", "\x07", "\r", "\N{RIGHT-TO-LEFT OVERRIDE}"} & set(out + err)
    assert "\\x1b" in cli.refused("export", "run=clm-1kb-0")


BAD_COMMANDS = {
    "advise task=": "task=",
    "advise task=probe data=-3MB": "data=-3MB",
    "advise task=probe flops=nan": "flops=nan",
    "advise task=probe study=../toy": "study",
    "compare toy": "compare takes two studies",
    "compare toy ../toy": "study",
    "compare toy toy@nowhere": "git cannot read it",
    "compare toy toy@-x": "git cannot read it",
    "compare toy toy to=x.exe": "to=x.exe",
    "compare toy toy to=no/folder/x.md": "to=no/folder/x.md",
    "export run=": "run=",
    "export run=nope": "run=nope",
    "export run=clm": "is ambiguous",
    "fill model=nowhere text=[MASK]": "model=nowhere",
    "fill model=. text=[MASK] k=0": "k=0",
    "fill model=. text=[MASK] k=x": "k=x",
    "evaluate study=toy": "task=",
    "evaluate study=toy task=[nope]": "task=nope",
    "evaluate study=nowhere task=[retrieval_fitted]": "study=nowhere",
    "evaluate study=toy task=[retrieval_fitted] seed=1": "seed is fixed",
    "verify study=toy": "no report",
    "verify study=../toy": "not a study's name",
}


@pytest.mark.parametrize("command", BAD_COMMANDS)
def test_a_command_that_cannot_be_done_says_why(command: str, cli: Bench):
    assert BAD_COMMANDS[command] in cli.refused(*command.split(" "))


def test_a_finished_run_whose_config_is_damaged_is_not_evaluated(cli: Bench):
    run = Path("experiments/toy/runs/clm-1kb-0")
    run.mkdir(parents=True)
    for content in ("", "{", "[]", "null", '{"config": {}}'):
        (run / "config.json").write_text(content)
        assert "config.json" in refusal(lambda: read_spec(run))
        assert "config.json" in cli.refused("evaluate", "study=toy", "task=[retrieval_fitted]")


# Arrays


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + b"\0" * 50, *traps().values()])
def test_arrays_that_are_none_are_named_and_nothing_in_them_runs(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "clm.e0.npz"
    for packed in (False, True):
        if packed:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("probe/x.npy", content)
        else:
            path.write_bytes(content)
        line = refusal(lambda: read_items(path, "probe"))
        assert path.name in line
        assert_one_line(printable(line))
        assert not (tmp_path / MARK).exists()


# Claims


CLAIM = {
    "statement": "a",
    "source": "b",
    "test": "superiority",
    "left": {"strategy": "clm"},
    "right": {"strategy": "mlm"},
    "task": "probe",
    "metric": "accuracy",
    "smallest_effect": 0.1,
}
NO_YAML = ["", "3", "[", "[]", "a: [", "\t", "claims: {}", "written: 2020-99-99\nclaims: {}", "{a: &a [*a]}"]
NO_YAML += [
    "!!python/object/apply:os.mkdir [touched]",
    "written: x\nclaims: [1]",
    "written: x\nclaims: {a: 3}",
    "\x00",
]
NO_YAML += ["written: x\nclaims: &a {a: *a}", "written: x\nclaims: {a: {left: {strategy: {}}}}", "- " * 5000]


@pytest.mark.parametrize("text", NO_YAML)
def test_claims_that_are_none_are_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "claims.yaml").write_text(text)
    line = refusal(lambda: read_claims(tmp_path))
    assert "claims.yaml" in line
    assert_one_line(printable(line))
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("key", sorted(CLAIM))
def test_a_claim_with_a_wrong_value_is_named_by_its_key(key: str, tmp_path: Path):
    for value in ([], {"zzz": 1}, float("nan") if key == "smallest_effect" else ["x"], {}):
        if key in ("left", "right") and value == {}:
            continue
        content = {"written": "2026-01-01", "claims": {"one": CLAIM | {key: value}}}
        (tmp_path / "claims.yaml").write_text(json.dumps(content))
        assert key in refusal(lambda: read_claims(tmp_path))


# What goes out


def test_a_spreadsheet_computes_nothing_of_a_record_and_numbers_stay_numbers():
    names = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\tx", "plain", "-1.5", "+2e-3", "−1"]
    lines = csv_text(pd.DataFrame({"name": names, "value": -1.5})).splitlines()[1:]
    firsts = [line.lstrip('"')[0] for line in lines]
    assert firsts[:5] == ["'"] * 5
    assert lines[5:] == ["plain,-1.5", "-1.5,-1.5", "+2e-3,-1.5", "−1,-1.5"]


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "a/../../escaped", "..\\escaped"])
def test_an_archive_of_a_revision_stays_in_its_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import io

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, "x")
    said = {"rev-parse": b"abc", "archive": packed.getvalue()}
    monkeypatch.setattr(side_by_side, "_git", lambda folder, *words: said[words[0]])
    (tmp_path / "inside").mkdir()
    side_by_side._unpack("toy@x", "x", tmp_path, tmp_path / "inside")
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert not Path("/escaped").exists()
