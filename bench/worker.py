"""One rank of a distributed run: `torchrun -m bench.worker RUN/config.json PID...`."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.spec import RunSpec
from bench.train import execute


def main(path: str, supervisors: Sequence[str]) -> int:
    """Do this rank's part; the exit code tells torchrun whether to stop the other ranks."""
    spec = RunSpec(**json.loads(Path(path).read_text(encoding="utf-8")))
    watched = [os.getppid(), *map(int, supervisors)]
    return 1 if execute(spec, watched=watched) == "failed" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
