"""An audit passes what is sound and names what is not, such as a task that lets the answer through."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_data import ToyPairs, prepare
from toy_models import OPTIM, SHAPES
from toy_runs import make_run, results_from, tables_of

from bench.data.corpora.base import Pair
from bench.data.pairs import prepare_pairs
from bench.errors import DataError
from bench.objectives.base import Objective, Shapes
from bench.records import AuditCheck, AuditRecord, Score, read_audit, write_audit
from bench.report.tables.provenance import auditing, failures
from bench.tasks.audit import Audit
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.probe import hits, probe, text_features

TOY = Shapes(model=SHAPES.model, vocab_size=300, sequence_length=12, caption_length=6, image_size=8)
N = 200


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("data")
    text, rng = prepare(folder), np.random.default_rng(0)
    pairs = [
        Pair(rng.integers(256, size=(8, 8, 3), dtype=np.uint8), f"no {i}", group=f"g{i}") for i in range(30)
    ]
    return Setting(
        tokenizer=text.tokenizer(),
        sequence_length=12,
        text=text,
        pairs=prepare_pairs(ToyPairs(pairs, 8), text.tokenizer_path, 6, folder),
        data_dir=folder,
        seed=0,
        keep_going=lambda: None,
    )


class FirstToken(Task):
    """Is a text's first token odd? By a frozen probe; `spoil` may look at what it should not."""

    def __init__(self, spoil: Callable[[Tensor, Tensor, Setting], Tensor] = lambda scores, labels, s: scores):
        super().__init__(None)
        self.spoil = spoil

    def evaluate(self, model: Objective, setting: Setting) -> Outcome:
        tokens = torch.randint(10, 298, (2 * N, 6), generator=torch.Generator().manual_seed(1))
        labels = torch.arange(2 * N) % 2  # balanced, so that a constant is right half of the time
        tokens[:, 0] += (tokens[:, 0] + labels) % 2
        features = text_features(model, tokens)
        scores = probe(features[:N], setting.labels(labels[:N]), features[N:])
        return self._outcome(self.spoil(scores, labels[N:], setting), labels[N:])

    def ceiling(self, setting: Setting) -> Outcome:
        labels = torch.arange(N) % 2
        return self._outcome(torch.eye(2)[labels], labels)

    def _outcome(self, scores: Tensor, labels: Tensor) -> Outcome:
        correct = hits(scores, labels)
        return Outcome([Measured("accuracy", float(correct.mean()), 0.5, len(labels))])


def verdicts(task: Task, setting: Setting) -> dict[str, str]:
    return {c.check: c.verdict for c in Audit(task, "toy", setting, TOY, OPTIM).checks()}


def test_a_sound_task_passes(setting: Setting):
    found = verdicts(FirstToken(), setting)
    assert set(found) == {"constant", "noise", "permuted labels", "ceiling", "batch size", "padding"}
    assert set(found.values()) == {"passed"}


def test_a_task_that_lets_the_answer_through_fails_for_all_that_know_nothing(setting: Setting):
    found = verdicts(FirstToken(lambda scores, labels, s: torch.eye(2)[labels]), setting)
    assert {found[check] for check in ("constant", "noise", "permuted labels")} == {"failed"}


def test_a_task_whose_ties_fall_to_the_answer_fails_for_a_constant_alone(setting: Setting):
    def answer_wins(scores: Tensor, labels: Tensor, s: Setting) -> Tensor:
        is_tied = (scores == scores[:, :1]).all(dim=1)
        return torch.where(is_tied[:, None], torch.eye(2)[labels].double(), scores)

    found = verdicts(FirstToken(answer_wins), setting)
    assert found["constant"] == "failed"
    assert found["noise"] == "passed"


def test_a_ceiling_that_nobody_knows_is_no_failure(setting: Setting):
    class Unknown(FirstToken):
        def ceiling(self, setting: Setting) -> None:  # type: ignore[override]
            return None

    assert verdicts(Unknown(), setting)["ceiling"] == "not applicable"


def record(verdict: str) -> AuditRecord:
    check = AuditCheck("toy", "constant", verdict, "accuracy 0.9, chance 0.5")  # type: ignore[arg-type]
    return AuditRecord("toy", (check,), {"toy": {"steps": 1}}, {}, "2026-01-02T03:04:05+00:00")


def test_an_audit_is_read_back_and_a_damaged_one_is_named(tmp_path: Path):
    assert read_audit(tmp_path) is None
    path = write_audit(record("passed"), tmp_path)
    assert read_audit(tmp_path) == record("passed")
    path.write_text("{")
    with pytest.raises(DataError, match=r"audit\.json"):
        read_audit(tmp_path)


def test_the_report_shows_the_checks_and_warns_of_what_failed():
    run = make_run("clm", 0, 0.5, results=results_from([Score("toy", "accuracy", 0.5, 0.5, 10)]))
    view = auditing(tables_of([run]), record("failed"))
    assert view is not None
    assert view.rows[0][0] == "toy"
    assert view.marks == ["failure"]
    assert failures(record("failed")) == [
        "The audit of task toy failed (constant): accuracy 0.9, chance 0.5."
    ]
    assert failures(record("passed")) == failures(None) == []
    assert auditing(tables_of([run]), None) is None
