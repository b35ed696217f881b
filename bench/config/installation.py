"""How this package is installed: its config files, version and commit, and its optional packages. No torch.

In a checkout, which an editable install uses as well, `conf/` lies beside `bench/`; a wheel installs it as
`bench/conf`.
"""

import importlib.util
import subprocess
from importlib import metadata
from pathlib import Path

from bench.errors import ConfigError

PROJECT = "pretraining-bench"
_PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = None if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent  # None: installed from a wheel
CONF = (CHECKOUT or _PACKAGE) / "conf"

EXTRAS = {  # import name of each optional package -> the extra of pyproject.toml that installs it
    "wandb": "wandb",
    "datasets": "hf",
    "nltk": "nlp",
    "sacrebleu": "nlp",
    "seqeval": "nlp",
    "chatterbot_corpus": "nlp",
    "pytrec_eval": "nlp",
    "codecarbon": "energy",
    "openai": "endpoint",
    "submitit": "slurm",
    "ray": "ray",
    "optuna": "optuna",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
}


def is_installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it.

    A folder of that name in the current folder, such as the `wandb/` that W&B writes, is not the package.
    """
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def check_installed(package: str, needed_by: str) -> None:
    """Check that an optional package is installed.

    Args:
        package: its import name, a key of `EXTRAS`.
        needed_by: the setting that needs it, for the message.

    Raises:
        ConfigError: it is missing; names the setting and the command that installs it.
    """
    if not is_installed(package):
        raise ConfigError(f"{needed_by} needs the package {package}: {_command(EXTRAS[package])}")


def _command(extra: str) -> str:
    """Return the command that adds an extra to this installation."""
    if CHECKOUT is None:
        return f"pip install '{PROJECT}[{extra}]'"
    place = "." if Path.cwd() == CHECKOUT else CHECKOUT
    return f"pip install --editable '{place}[{extra}]'"


def commit() -> str:
    """Return the checkout's git commit, with `-dirty` if tracked files differ from it, or "unknown"."""
    if CHECKOUT is None:  # git would describe a repository that the environment happens to lie in
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def version() -> str:
    """Return the package's version, and its commit in a checkout."""
    number = metadata.version(PROJECT)
    return number if CHECKOUT is None else f"{number} (commit {commit()})"
