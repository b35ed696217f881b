"""What every task in conf/task keeps; a new YAML is tested without an edit here.

What takes long is tested on one task and one strategy per capability; all others are of the tier `product`.
"""

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from capabilities import of_strategy, of_task, product, representatives
from omegaconf import OmegaConf
from torch import Tensor
from torch.testing import assert_close
from toy_data import ToyPairs, prepare
from toy_models import SHAPES, make_strategy, paths_of, stems
from toy_runs import make_run, tables_of

from bench.analysis.gate import RISK, gates
from bench.config.build import build, find_class, listed_options
from bench.config.plugins import plugins
from bench.data.corpora.base import Pair, split_of
from bench.data.pairs import prepare_pairs
from bench.data.shards import SPLITS
from bench.data.tokenizer import PAD
from bench.errors import ConfigError, InterruptedRunError
from bench.objectives.base import Attention, Objective, Shapes, TextNLL
from bench.objectives.endpoint import EndpointReference
from bench.objectives.scratch import Scratch
from bench.records import Score
from bench.tasks import probe
from bench.tasks.audit import Constant
from bench.tasks.base import InapplicableError, Measured, Outcome, Setting, Task
from bench.tasks.generation import token_shares
from bench.tasks.library import MASKED, Library
from bench.tasks.nltk_classification import SentencePolarity
from bench.tasks.probe import FeatureCache

TOY_TASKS = Path(__file__).parents[1] / "helpers" / "toy_tasks"
NODES: dict[str, dict[str, Any]] = {}
for _path in paths_of("task"):
    NODES |= OmegaConf.to_container(OmegaConf.load(_path))  # type: ignore[operator]
# A file per family of tasks: toy data to put in the place of real ones, and options that make it quick
# (a task without such an option ignores it).
TOYS = [import_module(f"toy_tasks.{path.stem}") for path in sorted(TOY_TASKS.glob("*.py"))]
# A plug-in may bring its own in a module `toys`.
TOYS += [import_module(f"{name}.toys") for name in plugins() if find_spec(f"{name}.toys")]
QUICK = {key: value for toy in TOYS for key, value in toy.QUICK.items()}
TOY_SHAPES = Shapes(model=SHAPES.model, vocab_size=300, sequence_length=12, caption_length=6, image_size=8)
every_task = pytest.mark.parametrize("name", NODES)
every_kind_of_task = pytest.mark.parametrize(
    "name", product(list(NODES), representatives(list(NODES), lambda name: of_task(name, NODES[name])))
)
every_kind_of_strategy = pytest.mark.parametrize(
    "stem", product(stems("strategy"), representatives(stems("strategy"), of_strategy))
)


@pytest.fixture
def setting(whole_setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Setting:
    classes = [find_class(node, Task, name) for name, node in NODES.items()]  # type: ignore[type-abstract]
    for toy in TOYS:
        toy.install(classes, monkeypatch, tmp_path)
    monkeypatch.setattr(EndpointReference, "text_nll", lambda self, texts, folder: TextNLL(30.0, 40))
    return whole_setting


@pytest.fixture(scope="module")
def whole_setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("data")
    text = prepare(folder)
    rng = np.random.default_rng(0)
    pairs = [
        Pair(rng.integers(256, size=(8, 8, 3), dtype=np.uint8), f"no {i}", group=f"g{i}") for i in range(100)
    ]
    return Setting(
        tokenizer=text.tokenizer(),
        sequence_length=TOY_SHAPES.sequence_length,
        text=text,
        pairs=prepare_pairs(ToyPairs(pairs, 8), text.tokenizer_path, TOY_SHAPES.caption_length, folder),
        data_dir=folder,
        seed=0,
        keep_going=lambda: None,
    )


def afresh(setting: Setting) -> Setting:
    """With nothing computed before."""
    return replace(setting, cache=FeatureCache())


def make_task(name: str, **changes: Any) -> Task:
    quick = {key: value for key, value in QUICK.items() if key in NODES[name]}
    return build(NODES[name] | quick | changes, Task, f"task.{name}")  # type: ignore[type-abstract]


def able(task: Task, setting: Setting, stem: str = "scratch") -> Objective:
    """The asked strategy, or else the first that can do the task."""
    for candidate in (stem, *stems("strategy")):
        model = make_strategy(candidate, shapes=TOY_SHAPES)
        try:
            task.evaluate(model, setting)
        except InapplicableError:
            continue
        return model
    raise AssertionError("no strategy can do this task")


@every_task
def test_the_yaml_names_the_task_and_sets_exactly_the_options_that_it_uses(name: str):
    node = NODES[name]
    assert name in stems("task")
    options = find_class(node, Task, name).Options  # type: ignore[type-abstract]
    is_ours = node["_target_"].startswith("bench.")
    assert listed_options(node, "bench.tasks") is (options if is_ours else None)  # checked without torch
    built = vars(
        make_task(name).options
    )  # refuses an option that is not used, and a used one that is missing
    listed = {
        field.name for field in fields(options) if field.default is not None or built[field.name] is not None
    }
    assert set(node) - {"_target_"} == listed
    with pytest.raises(ConfigError, match="nonsense"):
        make_task(name, nonsense=1)


def constant_model(setting: Setting) -> Objective:
    constant = Constant(
        Scratch.Options(modality="none", attention="bidirectional", pooling="mean"),
        shapes=TOY_SHAPES,
        optimizer=make_strategy("scratch").optimizer,
    )
    constant.token_shares = token_shares(setting)
    return constant


@every_task
def test_a_constant_model_scores_chance_exactly(name: str, setting: Setting):
    measured = make_task(name).evaluate(constant_model(setting), setting).scores
    assert measured
    for m in measured:
        assert m.chance is None or m.value == pytest.approx(m.chance, abs=1e-12), m.metric


@pytest.mark.slow
@every_task
def test_the_trivial_baseline_answers_the_same_items_under_the_same_metrics(name: str, setting: Setting):
    task = make_task(name)
    found = task.baseline(setting)
    if found is None:
        return
    ceiling = task.ceiling(setting)
    usual = task.evaluate(able(task, setting), afresh(setting)).scores
    of = {(m.metric, m.n_labels): m for m in usual}
    assert found.scores
    for score in found.scores:
        known = of[score.metric, score.n_labels]
        assert math.isfinite(score.value)
        assert (score.n_items, score.chance) == (known.n_items, known.chance)
        assert score.higher_is_better == known.higher_is_better
    best = {(m.metric, m.n_labels): m.value for m in ceiling.scores} if ceiling else {}
    head = found.scores[0]
    if head.higher_is_better and (head.metric, head.n_labels) in best:
        assert head.value <= best[head.metric, head.n_labels] + 1e-9


@pytest.mark.slow
@every_kind_of_task
@every_kind_of_strategy
def test_a_strategy_gets_shares_or_is_told_inapplicable_and_stays_as_it_was(
    name: str, stem: str, setting: Setting
):
    model = make_strategy(stem, shapes=TOY_SHAPES)
    before = {key: values.clone() for key, values in model.state_dict().items()}
    try:
        measured = make_task(name).evaluate(model, setting).scores
    except InapplicableError:
        return
    assert len({(m.metric, m.n_labels) for m in measured}) == len(measured)
    for m in measured:
        assert 0 <= m.value < math.inf
        assert m.chance is None or 0 <= m.chance < math.inf
        assert m.n_items > 0
    assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.slow
@every_kind_of_task
def test_the_same_seed_gives_the_same_scores(name: str, setting: Setting):
    task = make_task(name)
    model = able(task, setting)
    first = task.evaluate(model, setting)
    torch.manual_seed(99)  # the global state has no say
    again = task.evaluate(model, afresh(setting))
    assert (again.scores, again.counts, again.samples) == (first.scores, first.counts, first.samples)
    np.testing.assert_equal(dict(again.items), dict(first.items))


def assert_same_scores(a: Outcome, b: Outcome) -> None:
    assert [(m.metric, m.n_labels, m.n_items) for m in a.scores] == [
        (m.metric, m.n_labels, m.n_items) for m in b.scores
    ]
    assert [m.value for m in a.scores] == pytest.approx([m.value for m in b.scores], rel=1e-6, abs=1e-12)


@pytest.mark.slow
@every_kind_of_task
def test_scores_do_not_depend_on_the_batch_size_of_the_evaluation(
    name: str, setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    task = make_task(name)
    model = able(task, setting)
    at_once = task.evaluate(model, setting)
    monkeypatch.setattr(probe, "EVALUATION_BATCH", 3)
    assert_same_scores(task.evaluate(model, afresh(setting)), at_once)


@pytest.mark.slow
@every_kind_of_task
def test_scores_do_not_depend_on_padding(name: str, setting: Setting, monkeypatch: pytest.MonkeyPatch):
    task = make_task(name)
    model = able(task, setting)
    narrow = task.evaluate(model, setting)

    def padded(plain: Any) -> Any:
        def with_more_padding(self: Objective, tokens: Tensor, attention: Attention = "own") -> Tensor:
            return plain(self, F.pad(tokens, (0, 4), value=PAD), attention)[..., : tokens.shape[1], :]

        return with_more_padding

    for method in ("states", "layer_states"):
        monkeypatch.setattr(Objective, method, padded(getattr(Objective, method)))
    assert_same_scores(task.evaluate(model, afresh(setting)), narrow)


@pytest.mark.gpu
@every_task
def test_a_gpu_scores_as_a_cpu(name: str, setting: Setting):
    task = make_task(name)
    model = able(task, setting)
    found = [
        [m.value for m in task.evaluate(model.to(device), afresh(setting)).scores]
        for device in ("cpu", "cuda")
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=0.02)  # rounding may turn a guess


@every_task
def test_a_fit_stops_when_the_run_is_told_to(name: str, setting: Setting):
    def stop() -> None:
        raise InterruptedRunError

    task = make_task(name)
    if NODES[name].get("protocol") in ("finetune", "fitted"):
        stopped = replace(setting, keep_going=stop)
        with pytest.raises(InterruptedRunError):
            task.evaluate(make_strategy("scratch", shapes=TOY_SHAPES), stopped)


def test_a_strategy_without_an_image_tower_has_no_zero_shot_retrieval(setting: Setting):
    with pytest.raises(InapplicableError, match="image tower"):
        make_task("retrieval_zero_shot").evaluate(make_strategy("mlm", shapes=TOY_SHAPES), setting)


# The texts of the tasks that ship


def test_a_docstring_never_names_its_library(
    whole_setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for package in ("toy_red", "toy_blue"):
        (tmp_path / package).mkdir()
        for i in range(60):
            text = f"Use {package.upper()}.f{i} as np.array of `{package}`, or torch."
            (tmp_path / package / f"m{i}.py").write_text(f'"""{text}"""\n')
        (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    task = make_task("library_probe", packages=["toy_red", "toy_blue"], min_chars=10)
    assert isinstance(task, Library)
    found = {split: task.examples(split, whole_setting) for split in SPLITS}
    assert all(set(classes) == {"toy_red", "toy_blue"} for classes in found.values())
    texts = [text for classes in found.values() for items in classes.values() for text in items]
    expected = {f"Use {MASKED}.f{i} as {MASKED}.array of `{MASKED}`, or {MASKED}." for i in range(60)}
    assert set(texts) == expected
    assert len(texts) == 120


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A toy copy of NLTK's sentence_polarity: 40 sentences a class."""
    import nltk.corpus
    import nltk.data

    sentences = [f"sentence {i} is fine ." for i in range(40)]
    folder = tmp_path / "nltk_data" / "corpora" / "sentence_polarity"
    folder.mkdir(parents=True)
    for name in ("neg", "pos"):
        (folder / f"rt-polarity.{name}").write_text("".join(f"{s} {name}\n" for s in sentences))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])
    nltk.corpus.sentence_polarity._unload()
    yield sentences
    nltk.corpus.sentence_polarity._unload()


def test_every_review_sentence_is_in_one_split_with_its_polarity(reviews: list[str], whole_setting: Setting):
    task = make_task("polarity_probe")
    assert isinstance(task, SentencePolarity)
    for split in SPLITS:
        found = task.examples(split, whole_setting)
        for name in ("neg", "pos"):
            assert found[name] == [f"{s} {name}" for s in reviews if split_of(f"{s} {name}") == split]


@pytest.mark.slow
@every_kind_of_task
def test_a_perfect_model_opens_the_gate_and_a_constant_one_does_not(name: str, setting: Setting):
    task = make_task(name)
    perfect, trivial = task.ceiling(setting), task.baseline(setting)
    constant = task.evaluate(constant_model(setting), setting)
    head = constant.scores[0]
    if perfect is None or head.higher_is_better is None or head.metric.startswith(RISK):
        return
    best = same_measure(perfect, head)
    rows: dict[str, Any] = {"clm": replace(best, chance=head.chance), "mlm": head}
    if trivial is not None:
        rows["trivial"] = same_measure(trivial, head)
    bars = [rows["trivial"].value] if trivial is not None else []
    bars += [head.chance] if head.chance is not None else []
    assert is_open(name, rows, "clm") == (best.value not in bars)  # toy data may be solved by counting words
    assert not bars or not is_open(name, rows, "mlm")


def same_measure(outcome: Outcome, head: Measured) -> Measured:
    of_all = (head.n_labels, None)  # a ceiling may be the same for all label counts
    return next(m for m in outcome.scores if m.metric == head.metric and m.n_labels in of_all)


def is_open(name: str, rows: dict[str, Any], strategy: str) -> bool:
    """Whether the gate opens for six seeds of one strategy beside the trivial baseline."""
    runs = [
        make_run(one, seed, 0.5, scores=(Score(task=name, **vars(rows[one])),), budget=budget)
        for one, budget in ((strategy, "1kb"), ("trivial", None))
        if one in rows
        for seed in range(6)
    ]
    return gates(tables_of(runs))[name].is_open
