"""`bench audit`: check that the tasks of a study measure something.

Uninformed models must score chance, a model that knows every answer must reach the ceiling, and the batch
size and padding must not change a score. The report of a study shows the results.
Shapes: B items in a batch, N items, T tokens, D width, L layers, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from bench.config.build import build
from bench.config.run_spec import RunSpec, now
from bench.config.schema import Optim
from bench.data.prepare import prepare
from bench.data.tokenizer import EOS, PAD
from bench.errors import InapplicableError
from bench.objectives.base import Attention, Likelihood, Objective, Shapes
from bench.objectives.likelihood import scored_tokens
from bench.objectives.sampling import Sampling, unigram_texts
from bench.objectives.scratch import Scratch
from bench.records import AuditCheck, AuditRecord, without_targets, write_audit
from bench.tasks import probe
from bench.tasks.base import Measured, Outcome, Setting, Task
from bench.tasks.evaluate import setting_of
from bench.tasks.generation import token_shares
from bench.tasks.probe import FeatureCache
from bench.training import process

FALSE_ALARM = 1e-4  # probability that a valid task fails a check by chance
RELATIVE = 1e-5  # tolerance for rounding
ODD_BATCH = 7  # items, instead of `probe.EVALUATION_BATCH`
MORE_PADDING = 5  # tokens
OPTIONS = Scratch.Options(modality="none", attention="bidirectional", pooling="mean")


class MorePadding(Scratch):
    """As scratch, with unnecessary padding."""

    @override
    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        padded = F.pad(tokens, (0, MORE_PADDING), value=PAD)
        return super().states(padded, attention)[:, : tokens.shape[1]]


class Uninformed(Scratch):
    """Base of uninformed models, which support every input and output."""

    likelihoods = frozenset[Likelihood]({"exact", "bound", "pseudo"})
    writes = "as often as each token occurs"
    token_shares: Tensor  # (V,) in the training text

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) -> unit rows (B, D)."""
        return F.normalize(self.rows(len(images)), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """(B, L) -> unit rows (B, D)."""
        return F.normalize(self.rows(len(tokens)), dim=-1)

    def generate(self, prompts: Tensor, n_new: int, sampling: Sampling, generator: torch.Generator) -> Tensor:
        """Draw tokens by their frequency, whatever the prompt."""
        return unigram_texts(self.token_shares, len(prompts), n_new, generator)

    def caption_images(self, images: Tensor, n_new: int) -> Tensor:
        """Return empty captions."""
        return F.pad(torch.full((len(images), 1), EOS), (0, n_new - 1), value=PAD)

    def rows(self, n: int) -> Tensor:
        """Return features (N, D) of any inputs."""
        raise NotImplementedError


class Constant(Uninformed):
    """A model with equal features for all texts and images, and equally likely tokens."""

    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        """(B, T) -> ones (B, T, D), after a forward pass, so that its cost is counted."""
        return torch.ones_like(super().states(tokens, attention))

    def layer_states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        """(B, T) -> ones (L + 1, B, T, D)."""
        return torch.ones_like(super().layer_states(tokens, attention))

    def token_nll(self, tokens: Tensor, kind: Likelihood, **how: Any) -> Tensor:
        """(B, T) -> (B, T - 1), a uniform guess of each token."""
        return scored_tokens(tokens, how.get("scored")).double() * math.log(self.shapes.vocab_size)

    @override
    def rows(self, n: int) -> Tensor:
        return torch.ones(n, self.shapes.model.d_model)


class Noise(Uninformed):
    """A model whose outputs are independent of its inputs."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.generator = torch.Generator().manual_seed(0)

    def states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        """(B, T) -> normal deviates (B, T, D)."""
        return torch.randn(*tokens.shape, self.shapes.model.d_model, generator=self.generator)

    def layer_states(self, tokens: Tensor, attention: Attention = "own") -> Tensor:
        """(B, T) -> normal deviates (L + 1, B, T, D)."""
        return torch.randn(super().layer_states(tokens, attention).shape, generator=self.generator)

    def token_nll(self, tokens: Tensor, kind: Likelihood, **how: Any) -> Tensor:
        """(B, T) -> (B, T - 1), worse than a uniform guess, as random predictions are on average."""
        noise = torch.rand(len(tokens), tokens.shape[1] - 1, generator=self.generator, dtype=torch.float64)
        return scored_tokens(tokens, how.get("scored")) * (math.log(self.shapes.vocab_size) + noise)

    @override
    def rows(self, n: int) -> Tensor:
        return torch.randn(n, self.shapes.model.d_model, generator=self.generator)


@dataclass(frozen=True)
class Audit:
    """The audit of one task."""

    task: Task
    name: str
    setting: Setting
    shapes: Shapes
    optimizer: Optim

    def checks(self) -> Iterator[AuditCheck]:
        """Yield all checks; one that does not apply says why."""
        yield self._against_chance("constant", Constant, self.setting, exact=True)
        yield self._against_chance("noise", Noise, self.setting, exact=False)
        permuted = replace(self.setting, permutes_labels=True)
        yield self._against_chance("permuted labels", Scratch, permuted, exact=False)
        yield self._ceiling()
        plain = self._tried(Scratch)
        with _batches_of(ODD_BATCH):
            small = self._tried(Scratch)
        yield self._same("batch size", plain, small)
        yield self._same("padding", plain, self._tried(MorePadding))

    def _against_chance(
        self, check: str, model: type[Objective], setting: Setting, *, exact: bool
    ) -> AuditCheck:
        return self._checked(check, lambda: _misses_of_chance(self._evaluate(model, setting), exact=exact))

    def _ceiling(self) -> AuditCheck:
        def check() -> tuple[list[str], str]:
            outcome = self.task.ceiling(self.setting)
            if outcome is None:
                raise InapplicableError("no model can know every answer")
            head = outcome.scores[0]
            return [], f"{head.metric} {head.value:.4g}"

        return self._checked("ceiling", check)

    def _same(self, name: str, plain: Outcome | None, other: Outcome | None) -> AuditCheck:
        def check() -> tuple[list[str], str]:
            if plain is None or other is None:
                raise InapplicableError("the task does not apply to scratch")
            return _differences(plain, other), f"{len(plain.scores)} scores"

        return self._checked(name, check)

    def _tried(self, cls: type[Objective]) -> Outcome | None:
        """Evaluate a model; return None if the task does not apply to it."""
        try:
            return self._evaluate(cls, self.setting)
        except InapplicableError:
            return None

    def _checked(self, check: str, find: Callable[[], tuple[list[str], str]]) -> AuditCheck:
        try:
            misses, what = find()
        except InapplicableError as reason:
            return AuditCheck(self.name, check, "not applicable", str(reason))
        return AuditCheck(self.name, check, "failed" if misses else "passed", "; ".join(misses) or what)

    def _evaluate(self, cls: type[Objective], setting: Setting) -> Outcome:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.setting.seed)
            model = cls(OPTIONS, shapes=self.shapes, optimizer=self.optimizer)
        if isinstance(model, Uninformed):
            model.token_shares = token_shares(self.setting)
        return self.task.evaluate(model.eval(), setting)


def _misses_of_chance(outcome: Outcome, *, exact: bool) -> tuple[list[str], str]:
    """Return the scores that differ from chance, and a summary of the headline.

    A constant model must score exactly chance. Noise may be worse than the best uninformed guess, but never
    significantly better.
    """
    known = [score for score in outcome.scores if score.chance is not None]
    if not known:
        raise InapplicableError("no score has a chance level")
    misses = []
    for score in known:
        assert score.chance is not None
        gap = score.value - score.chance
        better = gap if score.higher_is_better else -gap
        rounding = RELATIVE * max(1.0, abs(score.chance))
        if (abs(gap) if exact else better - _tolerance(score, outcome)) > rounding:
            misses.append(f"{_named(score)} {score.value:.4g}, chance {score.chance:.4g}")
    return misses, f"{_named(known[0])} {known[0].value:.4g}, chance {known[0].chance:.4g}"


def _tolerance(score: Measured, outcome: Outcome) -> float:
    """Return how far a score may exceed chance by luck, from the spread of items or a binomial."""
    assert score.chance is not None
    key = score.metric if score.n_labels is None else f"{score.metric}@{score.n_labels}"
    items = np.asarray(outcome.items.get(key, []), dtype=np.float64)
    n = items.shape[-1] if items.size else score.n_items
    wide = float(scipy.stats.t.ppf(1 - FALSE_ALARM, max(n - 1, 1))) / math.sqrt(n)
    share = min(max(score.chance, 0.5 / n), 1.0)
    binomial = math.sqrt(share * (1 - share))
    by_item = items.mean(axis=0) if items.ndim == 2 else items
    return wide * max(binomial, float(by_item.std()) if items.size else 0.0)


def _differences(before: Outcome, after: Outcome) -> list[str]:
    """Return the scores that changed by more than one item, which rounding may change if answers tie."""
    pairs: Sequence[tuple[Measured, Measured]] = list(zip(before.scores, after.scores, strict=True))
    return [
        f"{_named(a)} {a.value:.6g} became {b.value:.6g}"
        for a, b in pairs
        if not math.isclose(a.value, b.value, rel_tol=1e-3, abs_tol=1 / a.n_items)
    ]


def _named(score: Measured) -> str:
    return score.metric if score.n_labels is None else f"{score.metric} ({score.n_labels} labels)"


@contextmanager
def _batches_of(n: int) -> Iterator[None]:
    before = probe.EVALUATION_BATCH
    probe.EVALUATION_BATCH = n
    try:
        yield
    finally:
        probe.EVALUATION_BATCH = before


def audit(specs: Sequence[RunSpec], say: Callable[[AuditCheck], None]) -> AuditRecord:
    """Audit the tasks of a study on its first run's data and write a record; call `say` after each check."""
    process.limit_blas()
    spec = specs[0]
    config = spec.typed()
    tasks = {name: build(node, Task, f"task.{name}") for name, node in config.task.items()}  # type: ignore[type-abstract]
    for name, task in tasks.items():
        task.check(f"task.{name}")
    data = prepare(spec)
    shapes = Shapes.of(config, vocab_size=data.text.vocab_size, image_size=data.pairs.image_size)
    setting = setting_of(spec, data, lambda: None, FeatureCache())
    found: list[AuditCheck] = []
    for name, task in tasks.items():
        for check in Audit(task, name, setting, shapes, config.optim).checks():
            say(check)
            found.append(check)
    record = AuditRecord(
        spec.study,
        tuple(found),
        without_targets(dict(config.task)),
        process.environment(config.trainer),
        now(),
    )
    write_audit(record, spec.evaluations.parent)
    return record
