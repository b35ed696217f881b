"""Execute one rank of a distributed run: `torchrun -m bench.sweep.torchrun_worker RUN/config.json PID...`.

The launcher starts torchrun for runs on one node. For runs on several nodes, start torchrun on each node, by
hand or by a scheduler, with the config file that `bench train` writes; see conf/trainer/ddp.yaml.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from bench.config.run_spec import RunSpec
from bench.config.supervision import SAVING_S, end_with
from bench.errors import ConfigError


def main(path: str, supervisors: Sequence[str]) -> int:
    """Execute this rank and return its exit code, from which torchrun decides whether to stop the others.

    Raises:
        ConfigError: the number of ranks that torchrun started differs from the config.
    """
    spec = RunSpec(**json.loads(Path(path).read_text(encoding="utf-8")))
    settings, world = spec.typed().trainer, int(os.environ.get("WORLD_SIZE", 1))
    if settings.n_ranks != world:
        raise ConfigError(
            f"trainer.nodes={settings.nodes} times trainer.devices={settings.devices} must equal the {world} "
            "ranks that torchrun started; change --nnodes, --nproc-per-node or these keys"
        )
    if os.environ.get("RANK", "0") != "0" and _is_trained(spec):
        return 0  # only rank 0 evaluates
    watched = _watched(supervisors)
    end_with(watched, grace_s=SAVING_S)
    from bench.sweep.execute import execute  # imports torch, which takes seconds

    return 1 if execute(spec, watched=watched) == "failed" else 0


def _watched(supervisors: Sequence[str]) -> list[int]:
    """Return the ids of torchrun and of the processes above it; end this rank if torchrun is already gone."""
    torchrun, above = os.getppid(), list(map(int, supervisors))
    if above and psutil.Process(torchrun).ppid() != above[0]:
        sys.exit("bench: torchrun has ended")
    return [torchrun, *above]


def _is_trained(spec: RunSpec) -> bool:
    record = spec.recorded()
    is_recorded = record is not None and record.status == "finished"
    return spec.can_be_evaluated() and (is_recorded or spec.config["strategy"]["modality"] == "none")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1], sys.argv[2:]))
    except ConfigError as error:
        sys.exit(f"bench: {error}")
