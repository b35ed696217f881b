"""Every setting with every kind of wrong value: refused by its key in one line, and nothing runs."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import LEAST, Bench, assert_one_line, many
from hypothesis import given
from hypothesis import strategies as st

import bench.sweep.sweep
from bench.config.compose import compose_runs
from bench.errors import ConfigError, printable
from bench.records import STUDY_NAME

SECRET = "sk-0123456789abcdef"  # noqa: S105 - made up
HUGE = str(10**30)

# Wrong for any setting.
POISONS = [
    "${nowhere}",
    "${oc.env:HOME}",
    "${oc.env:NOT_SET}",
    "${oc.decode:${oc.env:HOME}}",
    "${",
    "[",
    "{a: 1}",
    "{}",
]
POISONS += ["{a: {b: [1, ${c}]}}", "'a\0b'", "a,b", "choice(a,b)", "range(3)", "glob(*)"]
NUMBER = ["nan", "inf", "-inf", "1e999", "word", "''", "[]", "[1]", "'1 2'", "0x"]
COUNT = ["-1", "1.5", "true", "[[a]]"]
FLAG = ["word", "''", "2.5", "[]", "7", "-1"]
LIST = ["word", "3", "''", "true", "[[a]]"]
TEXT = ["[]", "[x]", "''", "${hydra:runtime.cwd}/x"]
NEGATIVE_OR_HUGE = ["-1.0", "1e30"]
UNBOUNDED = ("strategy.initial_bias",)

# Together they have every kind of option.
CHOICES = (
    ("strategy=mlm",),
    ("strategy=rtd", "corpus/text=docstrings_canaries", "task=[canaries_exact]"),
    ("strategy=clip", "corpus/text=nltk", "task=[image_captioning_fitted,dialogue_fitted,generation_greedy]"),
    ("strategy=ul2", "sequence_length=128", "task=[ner_conll2002_es,docstring_qa_probe,image_probe]"),
    ("strategy=clm_then_mlm", "optim=wsd_trunk", "task=[minimal_pairs_exact,bits_per_byte_exact]"),
)


@pytest.fixture(scope="module")
def leaves() -> dict[tuple[str, ...], dict[str, Any]]:
    """Every setting of some choices, with its usual value; each stands with the first that have it."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    seen: set[str] = set()

    def walk(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            elif key != "_target_":
                yield f"{prefix}{key}", value

    for words in CHOICES:
        (spec,) = compose_runs(words, multirun=False)
        found[words] = {key: value for key, value in walk(spec.config, "") if key not in seen}
        seen |= found[words].keys()
    assert len(seen) > 150
    return found


def poisons(key: str, usual: Any) -> list[str]:
    """What is wrong for a setting with this usual value; options of parts are checked by their class."""
    if isinstance(usual, bool):
        return [*POISONS, *FLAG]
    if isinstance(usual, float):
        return [*POISONS, *NUMBER, *([] if key in UNBOUNDED else NEGATIVE_OR_HUGE)]
    if isinstance(usual, int):
        return [*POISONS, *NUMBER, HUGE, f"-{HUGE}", *COUNT]
    return [*POISONS, *(LIST if isinstance(usual, list) else TEXT if isinstance(usual, str) else [])]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Bench:
    monkeypatch.chdir(tmp_path)
    found = Bench(monkeypatch, capsys)
    monkeypatch.setattr(bench.sweep.sweep, "prepare", lambda spec: found.started.append("data"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, pytest.param(LEAST["settings"], marks=pytest.mark.product)])
def test_every_kind_of_wrong_value_is_refused_by_its_key(
    n: int, cli: Bench, leaves: dict[tuple[str, ...], dict[str, Any]]
):
    """Exit code 2 and one line with the key, within five seconds; no record, and no data are prepared."""
    distinct = set()

    @many(n + 10)
    @given(st.sampled_from([(words, key) for words in CHOICES for key in leaves[words]]), st.data())
    def law(place: tuple[tuple[str, ...], str], data: st.DataObject) -> None:
        words, key = place
        value = data.draw(st.sampled_from(poisons(key, leaves[words][key])))
        distinct.add((key, value))
        line = cli.refused("train", *words, f"{key}={value}")
        assert key.split(".")[-1] in line
        assert os.environ["HOME"] not in line

    law()
    assert len(distinct) >= n
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_a_key_that_there_is_not_is_refused_wherever_it_stands(
    cli: Bench, leaves: dict[tuple[str, ...], dict[str, Any]]
):
    words = CHOICES[0]

    @many(15)
    @given(st.sampled_from(sorted(leaves[words])), st.sampled_from("abcxyz_"))
    def law(key: str, letter: str) -> None:
        line = cli.refused("train", *words, f"{key}{letter}=1")
        assert f"{key}{letter}".rpartition(".")[2] in line

    law()


@pytest.mark.parametrize(
    "group", ["strategy", "model", "budget", "optim", "trainer", "logger", "launcher", "corpus/text"]
)
@pytest.mark.parametrize("choice", ["no_such", "../model/0.2m", "/etc/passwd", "null", "[clm, mlm]"])
def test_a_choice_that_there_is_not_is_refused_with_those_that_there_are(group: str, choice: str, cli: Bench):
    assert group.split("/")[0] in cli.refused("train", f"{group}={choice}")


CONTRADICTIONS = {
    "caption_length=100000": "caption_length=100000: use 4096 or less",
    "trainer.devices=100000": "trainer.devices=100000",
    "trainer.devices=200": "this machine has",
    "trainer.validation_batches=1000000000": "trainer.validation_batches",
    "trainer.n_validations=1000000000": "trainer.n_validations",
    "trainer.loader_workers=-1": "trainer.loader_workers=-1: use 0 or more",
    "launcher.threads_per_worker=1000000": "launcher.threads_per_worker",
    "optim.weight_decay=-0.1": "optim.weight_decay=-0.1: use 0 or more",
    "optim.beta2=1.0": "optim.beta2=1.0: use a number below 1",
    "model.n_layers=1000000": "lower them",
    "model.d_ff=1000000000": "use 1048576 or less",
    "paths.data=''": "paths.data='': give a text",
    "paths.experiments='  '": "paths.experiments='  ': give a text",
    "seed=${oc.env:HOME}": "seed",
}


@pytest.mark.parametrize("word", CONTRADICTIONS)
def test_what_no_machine_or_run_could_do_is_refused_before_it_tries(word: str, cli: Bench):
    words = [word] if word != "trainer.devices=200" else [word, "trainer.accelerator=cpu"]
    assert CONTRADICTIONS[word] in cli.refused("train", *words)


@pytest.mark.parametrize("word", ["project='a/b'", "project=''", "mode='loud'"])
def test_a_loggers_options_are_checked_before_anything_starts(word: str, cli: Bench):
    assert f"logger.wandb.{word}" in cli.refused("train", "logger=wandb", f"logger.wandb.{word}")


def test_more_gpus_than_there_are_are_refused_before_anything_is_trained(cli: Bench):
    assert "GPUs here; lower trainer.devices" in cli.refused("train", "trainer=gpu", "trainer.devices=200")


SWEEPS = {
    "seed=range(0,1000000000)": "seed: a sweep of more than 10000 runs",
    "seed=range(0,10,0)": "seed",
    "seed=interval(0,1)": "seed",
    "seed=glob(*)": "list the values",
    "seed=choice()": "seed",
    "seed=1,,2": "cannot read",
    "seed=,1": "cannot read",
    "seed=range(nan)": "seed",
    "seed=range(0,inf)": "seed",
    "seed=sort(1,a)": "seed",
    "=1": "cannot read",
    "seed": "cannot read",
    "": "cannot read",
    "a=b=c=${": "cannot read",
}


@pytest.mark.parametrize("word", SWEEPS)
def test_a_sweep_that_is_none_or_without_end_is_refused(word: str, cli: Bench):
    assert SWEEPS[word] in cli.refused("train", "-m", word)


# Names

NAMES = ["..", "../x", "/etc/x", "a/b", "a\\\\b", ".hidden", "a b", "ü", "x" * 101, "'a\nb'", "'a\x1b[31m'"]


@pytest.mark.slow
@many(200)
@given(st.text(max_size=120))
def test_a_studys_name_never_leaves_its_folder(name: str):
    if STUDY_NAME.fullmatch(name):
        assert (Path("experiments") / name).resolve().parent == Path("experiments").resolve()
        assert name.isascii()
        assert len(name) <= 100


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "status", "report", "verify"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_names_no_folder_is_refused_by_every_command(command: str, name: str, cli: Bench):
    assert "study" in cli.refused(command, f"study={name}")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ["../x", "a.b", "a b", "1x", "'a\x1b[0m'"])
def test_a_tasks_name_is_an_identifier(name: str, cli: Bench):
    node = "{_target_: bench.tasks.retrieval.Retrieval}"
    assert "task" in cli.refused("train", f"task={{{name}: {node}}}")


@many(300)
@given(st.text())
def test_what_is_printed_is_one_line_that_no_terminal_obeys(text: str):
    assert_one_line(f"x{printable(text)}")
    assert printable("näher 漢字 −1.5 ▲") == "näher 漢字 −1.5 ▲"


# Secrets


@pytest.mark.parametrize(
    "words",
    [
        [f"+strategy.api_key={SECRET}"],
        [f"+task.library_probe.hf_token={SECRET}"],
        [f"+corpus.text.password={SECRET}"],
        ["strategy=endpoint", f"strategy.base_url=https://me:{SECRET}@host/v1"],
        ["strategy=endpoint", f"strategy.base_url='https://host/v1?key={SECRET}'"],
        ["strategy=endpoint", f"strategy.access.key_variable={SECRET}"],
        [
            "corpus/text=hf_text",
            "corpus.text.name=json",
            f"corpus.text.data_files=['https://me:{SECRET}@host/x.json']",
        ],
        [
            "corpus/pairs=hf_image_text",
            "corpus.pairs.name=json",
            f"corpus.pairs.data_files=['https://h/x?t={SECRET}']",
        ],
        ["model=hf", f"model.name=https://me:{SECRET}@hub/x"],
    ],
)
def test_a_secret_among_settings_is_refused_and_not_repeated(words: list[str], cli: Bench):
    line = cli.refused("train", *words)
    assert SECRET not in line


def test_no_interpolation_reads_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    for word in ("+strategy.note=${oc.env:SOME_TOKEN}", "study=${oc.env:SOME_TOKEN,x}"):
        with pytest.raises(ConfigError, match="settings are recorded") as caught:
            compose_runs([word], multirun=False)
        assert SECRET not in str(caught.value)
