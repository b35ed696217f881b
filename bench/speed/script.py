"""Train and evaluate one cell as a user without this harness would: a script with Hugging Face's Trainer.

`python -m bench.speed.script SPEC FOLDER CLASS`. All that is not Trainer's own favours the script: data and
batches are made beforehand, energy is not metered, and the tasks evaluate our backbone of the same size,
which is at least as fast as the stock class.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from bench.config.run_spec import RunSpec
from bench.config.schema import EnergySettings
from bench.data.prepare import Prepared, prepare
from bench.models import flops
from bench.models.from_huggingface import quiet_transformers
from bench.objectives.base import Objective
from bench.speed.ours import Setup
from bench.speed.peers import STOCK, stock_trainer
from bench.tasks.evaluate import Evaluation
from bench.training.energy import EnergyMeter
from bench.training.metric_file import StatusFile
from bench.training.pretrain import build_objective
from bench.training.process import set_up_process
from bench.training.stopping import Stop


def main(path: Path, folder: Path, peer: str | None) -> int:
    """Train and evaluate a cell from a fresh process.

    Args:
        path: the run, as written by `RunSpec.to_json`.
        folder: where the script writes.
        peer: a key of `STOCK`; None means no pretraining.

    Returns:
        0, or 1 if a task failed.
    """
    set_up_process(None)  # as our runs do
    spec = RunSpec(**json.loads(path.read_text(encoding="utf-8")))
    paths = spec.config["paths"] | {"experiments": str(folder)}
    spec = replace(spec, config=spec.config | {"paths": paths})
    data = prepare(spec)
    sizes = {"vocab_size": data.text.vocab_size, "image_size": data.pairs.image_size}
    objective = build_objective(spec, **sizes)
    if peer is not None:
        _train(spec, objective, data, folder, peer)
    spec.folder.mkdir(parents=True)
    status = StatusFile(spec.folder, spec.label)
    evaluation = Evaluation(spec, status, Stop([]), EnergyMeter(EnergySettings(metered=False)))
    failed = [result.reason for result in evaluation.do(objective, data) if result.status == "failed"]
    print("\n".join(map(str, failed)), file=sys.stderr)
    return min(1, len(failed))


def _train(spec: RunSpec, objective: Objective, data: Prepared, folder: Path, peer: str) -> None:
    """Do the steps and validations of the run with the stock class, and save its weights."""
    quiet_transformers()
    config = spec.typed()
    cost = objective.step_cost(config.optim.tokens_per_step)
    ready = Setup(spec, config, objective, cost, data, flops.n_steps(config.budget, cost))
    trainer = stock_trainer(STOCK[peer], ready, folder / "trainer", held_out=ready.held_out())
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), next(iter(sys.argv[3:]), None)))
