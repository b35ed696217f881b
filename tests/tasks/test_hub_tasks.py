"""Benchmark data sets in the schema of the hub: real rows from BENCH_DATA, else rows made to that schema."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from toy_data import assert_one_line, prepare
from toy_models import CONF, SHAPES, make_strategy

from bench.config.build import build
from bench.data.tokenizer import EOS, PAD
from bench.errors import ConfigError, DataError
from bench.tasks.base import Setting, Task
from bench.tasks.class_scores import f1, matthews
from bench.tasks.hub_classification import HubClassification
from bench.tasks.hub_questions import HubQuestions
from bench.tasks.multiple_choice import MultipleChoice
from bench.tasks.probe import encode
from bench.tasks.text_retrieval import TextRetrieval
from bench.tasks.text_retrieval import outcome as outcome_of_retrieval

N = 60
FEW = {"label_budgets": [20], "max_labels": 20, "validation_items": 10, "test_items": 20}


def hub_stems() -> list[str]:
    texts = {path.stem: path.read_text() for path in (CONF / "task").glob("*.yaml")}
    return sorted(stem for stem, text in texts.items() if "$BENCH_DATA" in text)


def node_of(stem: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(CONF / "task" / f"{stem}.yaml"))[stem]  # type: ignore


def make(stem: str, folder: Path | None = None, **changes: Any) -> Task:
    node = node_of(stem)
    few = {key: value for key, value in FEW.items() if key in node}
    path = {} if folder is None else {"path": str(folder)}
    return build(node | few | path | changes, Task, f"task.{stem}")  # type: ignore[type-abstract]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    text = prepare(tmp_path_factory.mktemp("toy"))
    nothing: Any = None
    return Setting(text.tokenizer(), 64, nothing, nothing, Path(), 0, lambda: None)


def features_of(node: dict[str, Any]) -> tuple[datasets.Features, Iterator[dict[str, Any]]]:
    """The schema of a data set, and rows without end."""
    text, number = datasets.Value("string"), datasets.Value("int64")
    numbers = iter(range(10**6))
    if "text_columns" in node:
        names = node.get("label_names") or ["no", "yes"]
        label = datasets.ClassLabel(names=names) if "metrics" in node else datasets.Value("float32")
        schema: dict[str, Any] = dict.fromkeys(node["text_columns"], text) | {node["label_column"]: label}
        rows: Iterator[dict[str, Any]] = (
            {name: f"{name} {'ab'[i % 2]} {i}" for name in node["text_columns"]}
            | {node["label_column"]: i % 2}
            for i in numbers
        )
    elif "words_column" in node:
        names = node["tag_names"] or ["O", "B-PER", "I-PER"]
        tags = datasets.List(datasets.ClassLabel(names=names) if node["tag_names"] is None else number)
        schema = {node["words_column"]: datasets.List(text), node["tags_column"]: tags}
        rows = (
            {node["words_column"]: ["Ann", "Lee", f"{i}"], node["tags_column"]: [1, 2, 0]} for i in numbers
        )
    elif "max_question_tokens" in node:
        answers = {"text": datasets.List(text), "answer_start": datasets.List(number)}
        schema = {"question": text, "context": text, "answers": answers}
        rows = (
            {
                "question": f"q {i}?",
                "context": f"It is {i}.",
                "answers": {"text": [f"{i}"], "answer_start": [6]},
            }
            for i in numbers
        )
    else:
        schema, rows = choices_of(node, numbers)
    return datasets.Features(schema), rows


def choices_of(
    node: dict[str, Any], numbers: Iterator[int]
) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    text = datasets.Value("string")
    if node["names_column"]:  # ARC
        lists = {"text": datasets.List(text), "label": datasets.List(text)}
        return {"question": text, "choices": lists, "answerKey": text}, (
            {
                "question": "Which?",
                "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]},
                "answerKey": "B",
            }
            for _ in numbers
        )
    if node["choices_column"]:  # HellaSwag
        return {"ctx": text, "endings": datasets.List(text), "label": text}, (
            {"ctx": "He", "endings": ["ran.", "sat.", "ate.", "won."], "label": str(i % 4)} for i in numbers
        )
    templates = [node["context"], *node["choices"]]  # PIQA and WinoGrande
    names = [name for template in templates for _, name, _, _ in Formatter().parse(template) if name]
    return dict.fromkeys([*names, node["label_column"]], text), (
        {name: "The _ is red." if name == "sentence" else name for name in names}
        | {node["label_column"]: str(node["first_label"] + i % 2)}
        for i in numbers
    )


def write_splits(folder: Path, node: dict[str, Any]) -> Path:
    """A parquet file per split, as `datasets` writes it."""
    features, rows = features_of(node)
    for split in {node.get(key) for key in ("train_split", "validation_split", "test_split", "split")} - {
        None
    }:
        part = [next(rows) for _ in range(N)]
        datasets.Dataset.from_list(part, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def write_beir(folder: Path) -> Path:
    for name in ("corpus", "queries"):
        lines = [json.dumps({"_id": f"{name[0]}{i}", "title": "", "text": f"thing {i}"}) for i in range(30)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "qrels").mkdir()
    judged = "\n".join(f"q{i}\tc{i}\t{1 + i % 2}" for i in range(10))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}\n")
    return folder


def write_blimp(folder: Path) -> Path:
    names = {"UID": "agreement", "field": "syntax", "linguistics_term": "verbs"}
    rows = [{"sentence_good": f"It is {i}.", "sentence_bad": f"It are {i}."} | names for i in range(5)]
    (folder / "agreement.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def written(folder: Path, stem: str) -> Path:
    node = node_of(stem)
    if stem.startswith("beir_"):
        return write_beir(folder)
    return write_blimp(folder) if stem.startswith("blimp_") else write_splits(folder, node)


@pytest.mark.parametrize("stem", hub_stems())
def test_every_yaml_reads_rows_of_its_schema(stem: str, setting: Setting, tmp_path: Path) -> None:
    task = make(stem, written(tmp_path, stem))
    task.check(f"task.{stem}")
    ceiling = task.ceiling(setting)
    assert ceiling is not None
    best = ceiling.scores[0]
    assert best.value == pytest.approx(1.0)
    assert best.n_items > 0


GLUE = ["glue_cola_probe", "glue_mrpc_probe", "glue_rte_probe", "glue_sst2_probe"]
REAL = [*GLUE, "stsb_similarity", "wnut_17_probe", "xquad_en_probe", "blimp_exact"]


@pytest.mark.slow
@pytest.mark.skipif("BENCH_DATA" not in os.environ, reason="no data named by BENCH_DATA")
@pytest.mark.parametrize("stem", REAL)
def test_real_rows_are_evaluated(stem: str, setting: Setting) -> None:
    model = make_strategy("clm", shapes=replace(SHAPES, vocab_size=300, sequence_length=64))
    changes = {"pairs_per_uid": 2} if stem.startswith("blimp") else {}
    found = make(stem, **changes).evaluate(model, setting)
    assert all(np.isfinite(score.value) for score in found.scores)


def test_glues_metrics_are_scikit_learns_and_ties_are_shared() -> None:
    from sklearn.metrics import f1_score, matthews_corrcoef

    rng = np.random.default_rng(0)
    scores, labels = torch.from_numpy(rng.normal(size=(50, 2))), torch.from_numpy(rng.integers(2, size=50))
    predicted = scores.argmax(dim=1)
    assert matthews(scores, labels, 1) == pytest.approx(matthews_corrcoef(labels, predicted))
    for positive in (0, 1):
        expected = f1_score(labels, predicted, pos_label=positive)
        assert f1(scores, labels, positive) == pytest.approx(expected)
    tied = torch.zeros(50, 2)
    assert matthews(tied, labels, 1) == 0
    share = float((labels == 1).double().mean())
    assert f1(tied, labels, 1) == pytest.approx(2 * share * 0.5 / (share + 0.5))


def test_f1_is_that_of_the_last_class_as_the_data_set_orders_them(setting: Setting, tmp_path: Path) -> None:
    folder = write_splits(tmp_path, node_of("glue_mrpc_probe") | {"label_names": ["same", "other"]})
    task = make("glue_mrpc_probe", folder)
    assert isinstance(task, HubClassification)
    assert task.positive_class() == "other"  # and not `same`, which is the last by name
    ceiling = task.ceiling(setting)
    assert ceiling is not None
    assert {score.metric: score.value for score in ceiling.scores} == {"f1": 1.0, "accuracy": 1.0}


def test_a_pair_is_read_as_two_texts_and_the_longer_one_is_cut(setting: Setting) -> None:
    tokenizer = setting.tokenizer
    short, long = (tokenizer.encode(text).ids for text in ("a b", "c d " * 40))
    rows = encode([("a b", "c d " * 40), ("c d " * 40, "a b"), "a b"], tokenizer, 20)
    left, right, one = ([i for i in row if i != PAD] for row in rows.tolist())
    assert left == [*short, EOS, *long[: 18 - len(short)], EOS]
    assert right == [*long[: 18 - len(short)], EOS, *short, EOS]
    assert one == [*short, EOS]


def test_one_split_for_both_is_divided_by_paragraph(setting: Setting, tmp_path: Path) -> None:
    task = make("xquad_en_probe", write_splits(tmp_path, node_of("xquad_en_probe")))
    assert isinstance(task, HubQuestions)
    groups = {
        split: {q.group for q in task.questions(split, setting)} for split in ("train", "validation", "test")
    }  # type: ignore[arg-type]
    assert sum(map(len, groups.values())) == N
    assert len(set.union(*groups.values())) == N
    assert len(groups["test"]) > N / 4


def test_a_blank_is_filled_and_the_text_behind_it_is_scored(tmp_path: Path) -> None:
    task = make("winogrande_exact", write_splits(tmp_path, node_of("winogrande_exact")))
    assert isinstance(task, MultipleChoice)
    item = task.items()[1]
    assert item.given == ("The option1", "The option2")
    assert item.scored == (" is red.", " is red.")
    assert item.right == 1


def test_ndcg_is_that_of_trec_eval_by_hand(tmp_path: Path, setting: Setting) -> None:
    task = make("beir_nfcorpus", write_beir(tmp_path))
    assert isinstance(task, TextRetrieval)
    collection = task._collection()
    places = {
        query: i for i, query in enumerate(collection.queries)
    }  # query i has its document at rank 1 + i
    scores = {q: -np.roll(np.arange(30.0), int(q[1:]) - i) for q, i in places.items()}
    found = outcome_of_retrieval(collection, scores)
    ranks = np.arange(1, 11)
    assert found.items["ndcg_at_10"] == pytest.approx(1 / np.log2(1 + ranks))
    assert found.items["mrr"] == pytest.approx(1 / ranks)


@pytest.mark.parametrize(
    ("stem", "changes", "parts"),
    [
        ("glue_sst2_probe", {"test_split": "tset"}, ["test_split=tset", "it has train, validation"]),
        ("glue_sst2_probe", {"label_column": "labels"}, ["label_column", "'labels'", "sentence, label"]),
        ("glue_rte_probe", {"text_columns": ["sentence1", "b"]}, ["text_columns[1]", "sentence2"]),
        ("wnut_17_probe", {"words_column": "words"}, ["words_column", "tokens, ner_tags"]),
        ("piqa_exact", {"label_column": "gold"}, ["label_column", "'gold'"]),
        ("beir_scifact", {"split": "dev"}, ["split=dev", "dev.tsv"]),
    ],
)
def test_what_the_data_set_lacks_is_one_line(
    stem: str, changes: dict[str, Any], parts: Sequence[str], tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        make(stem, written(tmp_path, stem), **changes).check(f"task.{stem}")
    assert_one_line(caught.value, "task.*", *parts)


def test_rows_that_cannot_be_used_are_one_line(setting: Setting, tmp_path: Path) -> None:
    node = node_of("glue_sst2_probe")
    rows = [{"sentence": "a", "label": -1}, {"sentence": "b", "label": 7}]
    for split, part in (("train", rows[:1]), ("validation", rows)):
        datasets.Dataset.from_list(part).to_parquet(tmp_path / f"{split}.parquet")
    task = make("glue_sst2_probe", tmp_path, label_names=["bad", "good"])
    assert isinstance(task, HubClassification)
    with pytest.raises(DataError) as caught:
        task.examples("train", setting)
    assert_one_line(caught.value, f"train_split={node['train_split']}", "no row has a label", "'label'")
    with pytest.raises(DataError) as caught:
        task.examples("test", setting)
    assert_one_line(caught.value, "row 1", "label=7", "bad, good")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        make("ag_news_probe").check("task.ag_news_probe")
    assert_one_line(caught.value, "fancyzhx/ag_news", "does not load")
