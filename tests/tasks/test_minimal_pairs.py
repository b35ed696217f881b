"""Minimal pairs: what is read, what is spoilt and how, and who wins."""

import inspect
import json
import math
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from toy_data import ToyPairs, assert_one_line, prepare, toy_pairs
from toy_models import CONF, OPTIM, SHAPES, make_strategy

from bench.data.corpora.base import Document, split_of
from bench.data.pairs import prepare_pairs
from bench.data.tokenizer import EOS
from bench.errors import ConfigError, DataError, InapplicableError
from bench.objectives.base import Objective
from bench.objectives.likelihood import scored_tokens
from bench.objectives.scratch import Scratch
from bench.tasks import base, likelihood, probe
from bench.tasks.base import Outcome, Setting, Task
from bench.tasks.likelihood import LikelihoodOptions
from bench.tasks.minimal_pairs import (
    RULES,
    MinimalPairs,
    Pair,
    corrupted,
    held_out_sentences,
    read_blimp,
    sentences,
)

VOCABULARY, LENGTH = 300, 96
# A line as BLiMP has it (adjunct_island.jsonl), with all of its fields.
BLIMP = {
    "sentence_good": "Who should Derek hug after shocking Richard?",
    "sentence_bad": "Who should Derek hug Richard after shocking?",
    "field": "syntax",
    "linguistics_term": "island_effects",
    "UID": "adjunct_island",
    "simple_LM_method": True,
    "one_prefix_method": False,
    "two_prefix_method": False,
    "lexically_identical": True,
    "pairID": "0",
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("data")
    text = prepare(folder)
    return Setting(
        tokenizer=text.tokenizer(),
        sequence_length=LENGTH,
        text=text,
        pairs=prepare_pairs(ToyPairs(toy_pairs()), text.tokenizer_path, SHAPES.caption_length, folder),
        data_dir=folder,
        seed=0,
        keep_going=lambda: None,
    )


def task(path: Path | None, **changes: Any) -> MinimalPairs:
    options = {
        **{"kind": "exact", "length_normalisation": "none", "batch_size": 4},
        **{"path": None if path is None else str(path), "pairs_per_uid": 100},
    }
    draws = {"samples": 2} if changes.get("kind") == "bound" else {}
    return MinimalPairs(MinimalPairs.Options(**(options | draws | changes)))


def written(folder: Path, rows: list[Any], name: str = "pairs.jsonl") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder / name


def pair(good: str, bad: str, **more: str) -> dict[str, str]:
    return {"sentence_good": good, "sentence_bad": bad} | more


class ByToken(Scratch):
    """Each token's nats by its id alone, whatever the kind; exact ids are known from the tokenizer."""

    def __init__(self, nats: torch.Tensor) -> None:
        options = Scratch.Options(modality="none", attention="causal", pooling="mean")
        super().__init__(options, shapes=replace(SHAPES, vocab_size=VOCABULARY), optimizer=OPTIM)
        self.nats = nats
        self.likelihoods = frozenset({"exact", "bound", "pseudo"})

    def token_nll(self, tokens, kind, *, samples, generator, scored=None):  # type: ignore[no-untyped-def]
        return self.nats[tokens[:, 1:]] * scored_tokens(tokens, scored)


def even() -> ByToken:
    return ByToken(torch.ones(VOCABULARY))


def noise(seed: int) -> ByToken:
    return ByToken(torch.rand(VOCABULARY, generator=torch.Generator().manual_seed(seed)))


def by_metric(outcome: Outcome) -> dict[str, float]:
    return {m.metric: m.value for m in outcome.scores}


# Who wins


def test_the_sentence_of_fewer_nats_wins_and_a_tie_is_a_half(tmp_path: Path, setting: Setting):
    path = written(tmp_path, [pair("ab", "abc"), pair("xyz", "x"), pair("abc", "cba")])
    assert len(setting.tokenizer.encode("abc").ids) == 3
    outcome = task(path).evaluate(even(), setting)
    assert outcome.items["accuracy_exact"].tolist() == [1.0, 0.0, 0.5]
    assert by_metric(outcome) == {"accuracy_exact": 0.5}


@pytest.mark.parametrize(("how", "right"), [("none", 1.0), ("tokens", 0.5), ("bytes", 0.0)])
def test_the_length_that_nats_are_divided_by_is_declared(
    how: str, right: float, tmp_path: Path, setting: Setting
):
    good, bad = "ñ", "documentdocumentdocument"  # two tokens of two bytes, fewer tokens than bytes
    n_tokens = [len(setting.tokenizer.encode(text).ids) for text in (good, bad)]
    assert n_tokens[0] == 2 < n_tokens[1] < len(bad)
    outcome = task(written(tmp_path, [pair(good, bad)]), length_normalisation=how).evaluate(even(), setting)
    assert outcome.scores[0].value == right


@torch.no_grad()
def test_a_real_strategy_gives_each_sentence_the_sum_of_its_surprises(tmp_path: Path, setting: Setting):
    model = make_strategy("clm", shapes=replace(SHAPES, vocab_size=VOCABULARY))
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    rows = [pair(f"no. {i} document", f"no. {(7 * i + 1) % 12} documents"[: 14 + i % 3]) for i in range(12)]
    found = task(written(tmp_path, rows)).evaluate(model, setting).items["accuracy_exact"]

    def nats(text: str) -> float:
        ids = [EOS, *setting.tokenizer.encode(text).ids]
        total = 0.0
        for t in range(1, len(ids)):
            logits = model.head(model.backbone(torch.tensor([ids[:t]]), causal=True))[0, -1]
            total -= float(logits.log_softmax(dim=0)[ids[t]])
        return total

    expected = [float(nats(row["sentence_good"]) < nats(row["sentence_bad"])) for row in rows]
    assert found.tolist() == expected
    assert 0 < sum(expected) < 12


def test_phenomena_are_scores_of_their_own_and_the_kind_is_in_every_name(tmp_path: Path, setting: Setting):
    rows = [pair("ab", "abc", UID="one"), pair("abc", "ab", UID="two"), pair("a", "abc", field="one")]
    for kind in ("exact", "pseudo", "bound"):
        outcome = task(written(tmp_path, rows), kind=kind).evaluate(even(), setting)
        assert by_metric(outcome) == {
            f"accuracy_{kind}": pytest.approx(2 / 3),
            f"accuracy_{kind}_one": 1.0,
            f"accuracy_{kind}_two": 0.0,
        }
        assert [m.n_items for m in outcome.scores] == [3, 2, 1]


def test_an_oracle_scores_one_and_a_constant_a_half(tmp_path: Path, setting: Setting):
    path = written(tmp_path, [pair("ab", "abc", UID="u"), pair("abc", "a", UID="v")])
    assert set(by_metric(task(path).ceiling(setting)).values()) == {1.0}
    constant = task(path, length_normalisation="tokens").evaluate(even(), setting)
    assert {(m.value, m.chance) for m in constant.scores} == {(0.5, 0.5)}


def test_noise_scores_chance(tmp_path: Path, setting: Setting):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(800)]
    rows = [pair(a, b) for a, b in zip(texts[::2], texts[1::2], strict=True)]
    measured = task(written(tmp_path, rows), pairs_per_uid=400).evaluate(noise(0), setting).scores[0]
    low, high = binom.interval(0.999, 400, 0.5)
    assert low <= measured.value * 400 <= high


@pytest.mark.parametrize("stem", ["mlm", "masked_diffusion", "clm", "scratch"])
def test_a_strategy_without_the_kind_is_told(stem: str, tmp_path: Path, setting: Setting):
    path = written(tmp_path, [pair("ab", "abc")])
    model: Objective = make_strategy(stem, shapes=replace(SHAPES, vocab_size=VOCABULARY))
    for kind in {"exact", "pseudo", "bound"} - model.likelihoods:
        with pytest.raises(InapplicableError):
            task(path, kind=kind).evaluate(model, setting)


def test_a_model_elsewhere_scores_whole_texts_only(tmp_path: Path, setting: Setting):
    with pytest.raises(InapplicableError, match="whole texts only"):
        task(written(tmp_path, [pair("ab", "abc")])).evaluate(make_strategy("endpoint"), setting)


def test_the_meter_counts_the_head_too(tmp_path: Path, setting: Setting):
    path = written(tmp_path, [pair("ab", "abc")])
    model = make_strategy("clm", shapes=replace(SHAPES, vocab_size=VOCABULARY))
    task(path).evaluate(model, setting)
    before = setting.meter.flops
    task(path).evaluate(model, setting)
    width = SHAPES.model.d_model
    assert setting.meter.flops - before == 2 * 5 * (width**2 + width * VOCABULARY)  # no hook: the head alone


def test_a_likelihood_that_is_not_finite_is_no_score(tmp_path: Path, setting: Setting):
    with pytest.raises(FloatingPointError, match="diverged"):
        task(written(tmp_path, [pair("a", "b")])).evaluate(
            ByToken(torch.full((VOCABULARY,), math.nan)), setting
        )


# What is read


def test_a_line_of_blimp_is_read_by_its_field_names(tmp_path: Path):
    path = written(tmp_path, [BLIMP])
    assert read_blimp(path) == [
        Pair(BLIMP["sentence_good"], BLIMP["sentence_bad"], "adjunct_island", ("syntax", "island_effects"))  # type: ignore[arg-type]
    ]


def test_a_folder_is_all_its_files_by_name(tmp_path: Path):
    written(tmp_path, [pair("b", "c"), "", pair("d", "e")], "b.jsonl")
    written(tmp_path, [pair("a", "b")], "a.jsonl")
    written(tmp_path, ["no pair"], "readme.txt")
    assert [p.good for p in read_blimp(tmp_path)] == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"sentence_good": "a"', "not JSON"),
        ('["a", "b"]', "Input should be an object"),
        (json.dumps({"sentence_good": "a"}), "'sentence_bad'"),
        (json.dumps(pair("", "b")), "'sentence_good'"),
        (json.dumps({"sentence_good": 1, "sentence_bad": "b"}), "'sentence_good'"),
        (json.dumps(pair("a", "b") | {"UID": 3}), "'UID'"),
    ],
)
def test_a_malformed_line_is_named(line: str, says: str, tmp_path: Path):
    path = written(tmp_path, [BLIMP, line])
    with pytest.raises(DataError) as raised:
        read_blimp(path)
    assert_one_line(raised.value, f"{path}, line 2", says)


def test_a_file_that_is_not_there_is_empty_or_no_text_is_named(tmp_path: Path):
    with pytest.raises(ConfigError) as raised:
        read_blimp(tmp_path / "none.jsonl")
    assert_one_line(raised.value, "task.*.path", "none.jsonl")
    with pytest.raises(DataError, match="no pairs"):
        read_blimp(written(tmp_path, [""]))
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read_blimp(tmp_path / "bytes.jsonl")


def test_pairs_of_two_equal_sentences_are_counted_and_left_out(tmp_path: Path, setting: Setting):
    outcome = task(written(tmp_path, [pair("a", "a"), pair("ab", "abc")])).evaluate(even(), setting)
    assert len(outcome.items["accuracy_exact"]) == 1
    assert outcome.counts == {"pair of two equal sentences": 1}


def test_long_sentences_are_counted_and_never_cut(tmp_path: Path, setting: Setting):
    rows = [pair("ab", "abc"), pair("x", "y" * LENGTH)]
    outcome = task(written(tmp_path, rows)).evaluate(even(), setting)
    assert len(outcome.items["accuracy_exact"]) == 1
    assert outcome.counts == {"sentence longer than sequence_length": 1}
    with pytest.raises(DataError) as raised:
        task(written(tmp_path, rows[1:])).evaluate(even(), setting)
    assert_one_line(raised.value, "sequence_length")


def test_pairs_are_capped_by_phenomenon_and_spread(tmp_path: Path, setting: Setting):
    rows = [pair(f"{i}", f"{i}{i}", UID="many") for i in range(10)] + [pair("a", "b", UID="few")]
    outcome = task(written(tmp_path, rows), pairs_per_uid=5).evaluate(even(), setting)
    assert {m.metric: m.n_items for m in outcome.scores} == {
        "accuracy_exact": 6,
        "accuracy_exact_many": 5,
        "accuracy_exact_few": 1,
    }
    shown = {row["good"] for row in outcome.samples}
    assert shown == {"1", "3", "5", "7", "9", "a"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", "sure"),
        ("length_normalisation", "words"),
        ("samples", 0),
        ("batch_size", 0),
        ("pairs_per_uid", 0),
    ],
)
def test_an_option_that_cannot_work_is_named(key: str, value: object):
    with pytest.raises(ConfigError) as raised:
        task(None, **{key: value})
    assert_one_line(raised.value, f"{key}={value!r}")


def test_the_three_tasks_differ_in_kind_and_numbers_alone():
    from omegaconf import OmegaConf

    nodes = []
    for kind in ("exact", "pseudo", "bound"):
        name = f"minimal_pairs_{kind}"
        node = OmegaConf.to_container(OmegaConf.load(CONF / "task" / f"{name}.yaml"))[name]  # type: ignore[index]
        assert node["kind"] == kind
        nodes.append({key: node[key] for key in node if key not in ("kind", "samples", "pairs_per_uid")})
    assert nodes[0] == nodes[1] == nodes[2]


# What is spoilt

SPOILT = {
    "The array is read here.": {"subject_verb_agreement_auxiliary": "The array are read here."},
    "These arrays are read here.": {
        "subject_verb_agreement_auxiliary": "These arrays is read here.",
        "determiner_noun_agreement": "This arrays are read here.",
    },
    "It has no name here.": {"subject_verb_agreement_auxiliary": "It have no name here."},
    "Here they were read twice.": {"subject_verb_agreement_auxiliary": "Here they was read twice."},
    "This function returns all rows.": {"subject_verb_agreement_verb": "This function return all rows."},
    "This option may be left out.": {"determiner_noun_agreement": "These option may be left out."},
    "We read an array here.": {"article_a_an": "We read a array here."},
    "A matrix holds all rows.": {"article_a_an": "An matrix holds all rows."},
    "Reads rows of the table.": {"word_order_determiner_noun": "Reads rows of table the."},
    # An error that could be none is not made.
    "If the array were empty.": {},
    "If it was left empty.": {},
    "The data are read here.": {},
    "See whether the row was read.": {},
    "The row and the columns are read.": {},
    "Use an LSTM or an hour here.": {},
    "Make use of an SVD or a unit.": {},
    "The following are read here.": {},
    "Use this function arguments here.": {},  # "these function arguments" are several
}


@pytest.mark.parametrize("good", SPOILT)
def test_a_rule_makes_its_error_and_no_other(good: str):
    assert {p.uid: p.bad for p in corrupted([good])} == SPOILT[good]


def test_a_pair_differs_and_a_sentence_has_one_of_each_phenomenon():
    found = list(corrupted([*SPOILT, "The array is here and an end is there in the end."]))
    assert all(p.good != p.bad for p in found)
    assert max(Counter((p.good, p.uid) for p in found).values()) == 1
    assert {p.uid for p in found} == {rule.uid for rule in RULES}


def test_sentences_are_whole_and_plain():
    code = "Get x[0] from it now.\nThe array is\nread here. Too short."
    text = "\n\n".join([code, "no capital in this one.", "A title", "It was not so, they said."])
    assert list(sentences(text)) == ["The array is read here.", "It was not so, they said."]


def test_without_a_path_pairs_are_of_the_test_split_alone(tmp_path: Path, setting: Setting):
    names = [f"x{a}{b}" for a in "abcdefgh" for b in "lmnopqrt"]
    text = prepare(tmp_path, [Document(f"The {name} is read here.", group=name) for name in names])
    test = [f"The {name} is read here." for name in names if split_of(name) == "test"]
    assert 0 < len(test) < len(names)
    assert sorted(held_out_sentences(text)) == test
    here = replace(setting, text=text, tokenizer=text.tokenizer())
    outcome = task(None).evaluate(noise(0), here)
    assert outcome.scores[1].metric == "accuracy_exact_subject_verb_agreement_auxiliary"
    assert outcome.scores[1].n_items == len(test)


def test_a_corpus_without_sentences_is_named(setting: Setting):
    with pytest.raises(DataError) as raised:
        task(None).evaluate(even(), setting)
    assert_one_line(raised.value, "task.*.path", "test split")


# The example in the documentation of a task


def test_the_example_of_a_task_runs_and_a_tie_is_a_half(setting: Setting):
    _, _, example = inspect.getdoc(Task).partition("::\n\n")  # type: ignore[union-attr]
    names = vars(base) | vars(likelihood) | vars(probe) | {"PAIRS": [("a", "b"), ("ab", "bc"), ("x", "yy")]}
    exec(textwrap.dedent(example), names)  # noqa: S102 - our own documentation
    options = LikelihoodOptions("exact", None, "tokens", 2)
    outcome = names["Capitals"](options).evaluate(even(), setting)
    assert by_metric(outcome) == {"accuracy_exact": 0.5}
    assert outcome.items["accuracy_exact"].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"sentence_good": "A \\ud800.", "sentence_bad": "B."}', r"a text with \\ud800, half"),
        (b'{"sentence_good": ' + b"[" * 20_000, "nested too deeply"),
        (b'{"sentence_good": ' + b"7" * 5000 + b"}", "not usable JSON"),
        (b'{"sentence_good": "\xff"}', "not UTF-8 text, at byte 19"),
    ],
)
def test_json_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, line: bytes, problem: str):
    good = b'\xef\xbb\xbf{"sentence_good": "They are.", "sentence_bad": "They is."}\n'
    (tmp_path / "pairs.jsonl").write_bytes(good)
    assert [pair.good for pair in read_blimp(tmp_path)] == ["They are."]
    (tmp_path / "pairs.jsonl").write_bytes(good + line)
    with pytest.raises(DataError, match=rf"pairs.jsonl, line 2: .*{problem}.*; give an object with"):
        read_blimp(tmp_path)
