"""Export a finished run to a folder that transformers loads: weights, tokenizer and model card.

The folder is written under a temporary name and then renamed, so an incomplete export never appears.
"""

import glob
import json
import os
import platform
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from omegaconf import OmegaConf

from bench.analysis.format import amount, markdown_escape
from bench.config import schema
from bench.config.build import build, find_class
from bench.config.compose import located_strategy, read_run
from bench.config.run_spec import read_results
from bench.data.corpora.base import PairCorpus, TextCorpus
from bench.data.shards import prepare_text
from bench.errors import BenchError, ConfigError, DataError
from bench.models.from_huggingface import quiet_transformers
from bench.objectives.base import Objective, Shapes
from bench.objectives.to_huggingface import architecture, other_modules, stock_model, write_tokenizer
from bench.records import CHOICE, RunRecord, Score, read_record
from bench.report.rendering import template
from bench.training import checkpoint
from bench.training.pretrain import build_objective

REST_WEIGHTS, REST_CONFIG = "bench.safetensors", "bench.json"  # for modules that no stock class holds
CARD = "model_card.md.j2"


@dataclass(frozen=True)
class Run:
    """A finished run and the path of its record, from which its other files are found."""

    record: RunRecord
    record_path: Path

    @property
    def folder(self) -> Path:
        """The run's working folder."""
        return self.record_path.parents[1] / "runs" / self.record.run_id

    @property
    def weights(self) -> Path:
        """The path of its final weights, which may be missing."""
        return self.folder / "weights.safetensors"

    def scores(self) -> list[Score]:
        """Return the scores of all its tasks."""
        results = read_results(self.record_path.parents[1] / "evaluations", self.record.run_id)
        return [score for result in results.values() for score in result.scores]

    @property
    def fix(self) -> str:
        """Advice to the user on how to restore the weights."""
        return f"delete {self.record_path} and run it again with `{self.record.command}`"


def export_run(run: str, *, to: Path | None, experiments: Path) -> tuple[Path, str]:
    """Export a run and return the new folder and the Auto class that loads it.

    Args:
        run: the run's id or a unique prefix of it.
        to: the folder to create; None means exports/<run id>.
        experiments: the folder of all studies.

    Raises:
        ConfigError: no run or several match, the run cannot be exported, or the folder is not empty.
        DataError: weights or corpus are not those of the run.
    """
    found = find_run(run, experiments)
    target = (to or Path("exports") / found.record.run_id).absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"to={target} already holds files; delete it or set to= to another folder")
    quiet_transformers()
    objective, tokenizer = restore(found)
    with _in_one_step(target) as folder:
        write(objective, tokenizer, found.record, folder, found.scores())
    return target, architecture(objective).auto


def find_run(run: str, experiments: Path) -> Run:
    """Return the finished run whose id begins with `run`; raise ConfigError unless it can be exported."""
    paths = [path for path in sorted(experiments.glob("*/records/*.json")) if path.stem.startswith(run)]
    ids = sorted({path.stem for path in paths})
    if not ids:
        started = sorted({path.name for path in experiments.glob("*/runs/*") if path.name.startswith(run)})
        if started:
            raise ConfigError(f"run={run} has not finished ({', '.join(started)}); see `bench status`")
        raise ConfigError(f"run={run}: no record in {experiments}/*/records has this id; set run= to another")
    if len(ids) > 1 and run not in ids:
        raise ConfigError(f"run={run} is ambiguous ({', '.join(ids)}); use a longer prefix")
    same = [Run(read_record(path), path) for path in paths if path.stem == (run if run in ids else ids[0])]
    # A run may belong to several studies and may have failed in one of them.
    found = max(same, key=lambda one: (one.record.status == "finished", one.weights.exists()))
    if found.record.status != "finished":
        raise ConfigError(f"run={run} {found.record.status}: {found.record.reason}; export a finished run")
    if checkpoint_name := (found.record.config.get("model") or {}).get("name"):
        raise ConfigError(
            f"run={run} has the backbone of {checkpoint_name}; export a run of a size preset (model=)"
        )
    if not (found.weights.exists() and (found.folder / "config.json").exists()):
        raise ConfigError(f"run={run}: the weights are gone ({found.weights}); {found.fix}")
    return found


def restore(run: Run) -> tuple[Objective, Path]:
    """Load the trained objective on CPU and its tokenizer file; prepare the corpus if needed."""
    try:
        spec = read_run(run.folder)
        config = spec.typed()
    except BenchError as error:
        reason = textwrap.shorten(str(error), 200)
        raise DataError(f"{run.folder / 'config.json'}: damaged or outdated ({reason}); {run.fix}") from error
    if not find_class(config.strategy, Objective, "strategy").has_weights:  # type: ignore[type-abstract]
        raise ConfigError(f"strategy={spec.strategy} has no local weights; export a run of another strategy")
    corpus = build(config.corpus.text, TextCorpus, "corpus.text")
    text = prepare_text(corpus, config.tokenizer, Path(config.paths.data))
    if text.manifest["tokenizer_sha256"] != run.record.data["tokenizer_sha256"]:
        raise DataError(
            "corpus.text has changed since the run, so its tokenizer differs; restore "
            f"{run.record.data['text']['provenance']['source']}, or {run.fix}"
        )
    images = build(config.corpus.pairs, PairCorpus, "corpus.pairs")
    objective = build_objective(spec, vocab_size=text.vocab_size, image_size=images.image_size)
    _load_weights(objective, run.weights, run.fix)
    return objective.eval(), text.tokenizer_path


def write(
    objective: Objective, tokenizer: Path, record: RunRecord, folder: Path, scores: Sequence[Score] = ()
) -> None:
    """Write model, tokenizer and card, and all weights where a stock class holds only some of them."""
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
    """Load the whole objective of an export that contains `bench.safetensors`.

    Raises:
        DataError: the folder holds no such export, or its files are damaged.
    """
    folder = Path(folder)
    if not (folder / REST_CONFIG).exists():
        raise DataError(f"{folder} has no {REST_CONFIG}; load it with transformers, as its README.md shows")
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
    """Return the model card as Markdown with front matter."""
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
    """Yield a temporary folder that is renamed to `target` on success and removed on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    here = f".{target.name}.{platform.node()}"
    for left in target.parent.glob(f"{glob.escape(here)}.*.partial"):  # of exports that were killed
        pid = left.suffixes[-2].removeprefix(".")
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    partial = target.with_name(f"{here}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
