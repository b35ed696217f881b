"""One rank of a distributed run: `torchrun -m bench.worker RUN/config.json`."""

import json
import sys
from pathlib import Path

from bench.compose import RunSpec
from bench.train import execute


def main(path: str) -> int:
    """Do this rank's part; the exit code tells torchrun whether to stop the other ranks."""
    status = execute(RunSpec(**json.loads(Path(path).read_text(encoding="utf-8"))))
    return 1 if status == "failed" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
