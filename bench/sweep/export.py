"""A finished run -> a folder that transformers loads: weights, tokenizer, model card.

The folder is written beside its place and renamed, so that it is there whole or not at all.
"""

import json
import os
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import OmegaConf

from bench.analysis.text import amount, markdown_escape
from bench.config import schema
from bench.config.build import build, find_class
from bench.config.compose import located_strategy, read_run
from bench.config.run_spec import read_results
from bench.data.corpora.base import PairCorpus, TextCorpus
from bench.data.tokens import prepare_text
from bench.errors import BenchError, ConfigError, DataError
from bench.models.from_huggingface import quiet_transformers
from bench.objectives.base import Objective, Shapes
from bench.objectives.to_huggingface import architecture, other_modules, stock_model, write_tokenizer
from bench.records import CHOICE, RunRecord, Score, read_record
from bench.report.rendering import template
from bench.training import checkpoint
from bench.training.objective import build_objective

REST_WEIGHTS, REST_CONFIG = "bench.safetensors", "bench.json"  # of what no stock class holds
CARD = "model_card.md.j2"


@dataclass(frozen=True)
class Run:
    """A finished run and the folder that its weights lie in."""

    record: RunRecord
    record_path: Path

    @property
    def folder(self) -> Path:
        """Where the run worked."""
        return self.record_path.parents[1] / "runs" / self.record.run_id

    @property
    def weights(self) -> Path:
        """Its last weights, there or not."""
        return self.folder / "weights.safetensors"

    def scores(self) -> list[Score]:
        """What tasks have measured of it."""
        results = read_results(self.record_path.parents[1] / "evaluations", self.record.run_id)
        return [score for result in results.values() for score in result.scores]

    @property
    def how_to_redo(self) -> str:
        """What brings the weights back."""
        return f"delete {self.record_path} and run it again with `{self.record.command}`"


def export_run(run: str, *, to: Path | None, experiments: Path) -> tuple[Path, str]:
    """Write the folder of a run.

    Args:
        run: its id, or the beginning of it.
        to: the folder to make; None: exports/<run id>.
        experiments: where the studies lie.

    Returns:
        The folder and the Auto class that loads it.

    Raises:
        ConfigError: no such run, several, or none that can be exported; a folder that holds something.
        DataError: weights or corpus are not those of the run.
    """
    found = find_run(run, experiments)
    target = (to or Path("exports") / found.record.run_id).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"to={target} already holds something; delete it or choose another folder by to=")
    quiet_transformers()
    objective, tokenizer = restore(found)
    with _in_one_step(target) as folder:
        write(objective, tokenizer, found.record, folder, found.scores())
    return target, architecture(objective).auto


def find_run(run: str, experiments: Path) -> Run:
    """The one finished run whose id begins with `run`, with its weights."""
    paths = [path for path in sorted(experiments.glob("*/records/*.json")) if path.stem.startswith(run)]
    ids = sorted({path.stem for path in paths})
    if not ids:
        started = sorted({path.name for path in experiments.glob("*/runs/*") if path.name.startswith(run)})
        if started:
            raise ConfigError(f"run={run} has not finished ({', '.join(started)}); see `bench status`")
        raise ConfigError(f"run={run} is no run with a record in {experiments}/*/records; give its id")
    if len(ids) > 1 and run not in ids:
        raise ConfigError(f"run={run} may be any of {', '.join(ids)}; give more of the id")
    same = [Run(read_record(path), path) for path in paths if path.stem == (run if run in ids else ids[0])]
    # One run may belong to several studies, and have failed in one of them.
    found = max(same, key=lambda one: (one.record.status == "finished", one.weights.exists()))
    if found.record.status != "finished":
        raise ConfigError(f"run={run} {found.record.status}: {found.record.reason}; export a finished run")
    if checkpoint_name := (found.record.config.get("model") or {}).get("name"):
        raise ConfigError(
            f"run={run} has the backbone of {checkpoint_name}; export a run of a preset (model=)"
        )
    if not (found.weights.exists() and (found.folder / "config.json").exists()):
        raise ConfigError(f"run={run}: its weights are gone ({found.weights}); {found.how_to_redo}")
    return found


def restore(run: Run) -> tuple[Objective, Path]:
    """The trained objective, on CPU, and its tokenizer's file; the corpus is prepared again if need be."""
    try:
        spec = read_run(run.folder)
        config = spec.typed()
    except BenchError as error:
        reason = textwrap.shorten(str(error), 200)
        raise DataError(
            f"{run.folder / 'config.json'}: damaged or outdated ({reason}); {run.how_to_redo}"
        ) from error
    if not find_class(config.strategy, Objective, "strategy").has_weights:  # type: ignore[type-abstract]
        raise ConfigError(f"strategy={spec.strategy} has no weights here; export a run of another strategy")
    corpus = build(config.corpus.text, TextCorpus, "corpus.text")
    text = prepare_text(corpus, config.tokenizer, Path(config.paths.data))
    if text.manifest["tokenizer_sha256"] != run.record.data["tokenizer_sha256"]:
        raise DataError(
            "corpus.text has changed since the run and gives another tokenizer; bring back "
            f"{run.record.data['text']['provenance']['source']}, or {run.how_to_redo}"
        )
    images = build(config.corpus.pairs, PairCorpus, "corpus.pairs")
    objective = build_objective(spec, vocab_size=text.vocab_size, image_size=images.image_size)
    _load_weights(objective, run.weights, run.how_to_redo)
    return objective.eval(), text.tokenizer_path


def write(
    objective: Objective, tokenizer: Path, record: RunRecord, folder: Path, scores: Sequence[Score] = ()
) -> None:
    """Fill an empty folder: model, tokenizer, card, and all weights where a stock class holds only some."""
    model = stock_model(objective)
    model.save_pretrained(folder)
    write_tokenizer(objective, tokenizer, folder)
    if other_modules(objective):
        checkpoint.write_weights(objective, folder / REST_WEIGHTS)
        described = {
            "strategy": record.config["strategy"],
            "shapes": asdict(objective.shapes),
            "optim": asdict(objective.optimizer),
        }
        (folder / REST_CONFIG).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(objective, record, scores), encoding="utf-8")


def load(folder: str | Path) -> Objective:
    """The whole objective of an export with `bench.safetensors`: towers, projections, decoder, generator.

    Raises:
        DataError: no such export, or damaged weights.
    """
    folder = Path(folder)
    if not (folder / REST_CONFIG).exists():
        raise DataError(f"{folder} holds no {REST_CONFIG}; load it with transformers, as its README.md shows")
    try:
        described = json.loads((folder / REST_CONFIG).read_text(encoding="utf-8"))
        shapes, optim = described["shapes"], schema.Optim(**described["optim"])
        shapes = Shapes(**shapes | {"model": schema.Model(**shapes["model"])})
        own = described["strategy"]
        node = OmegaConf.create(located_strategy(own) if CHOICE in own else own)  # older exports hold classes
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder / REST_CONFIG}: damaged ({error}); export the run again") from error
    objective = build(node, Objective, "strategy", shapes=shapes, optimizer=optim)  # type: ignore[type-abstract]
    _load_weights(objective, folder / REST_WEIGHTS, "export the run again")
    return objective.eval()


def card(objective: Objective, record: RunRecord, scores: Sequence[Score]) -> str:
    """The model card, as Markdown with front matter."""
    stock = architecture(objective)
    return template(CARD, is_html=False, plain=markdown_escape, amount=amount).render(
        record=record,
        scores=scores,
        stock=stock,
        stock_class=objective.stock_class,
        reads_prefix=stock.decoder and objective.options.attention == "bidirectional",
        options=objective.options,
        shapes=objective.shapes,
        mask_shift=objective.mask_shift,
        n_extra=objective.backbone.embedding.num_embeddings - objective.shapes.vocab_size,
        others=other_modules(objective),
        corpora=["text", "pairs"] if objective.modality == "pairs" else ["text"],
    )


def _load_weights(objective: Objective, path: Path, fix: str) -> None:
    try:
        checkpoint.read_weights(objective, path)
    except DataError as error:
        raise DataError(f"{error}; {fix}") from error


@contextmanager
def _in_one_step(target: Path) -> Iterator[Path]:
    """A folder that becomes `target` once it is full; nothing is left behind otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
