"""Errors that a user sees as one line: what is wrong, which key, what to change."""

import errno
import re
import unicodedata
from pathlib import PurePath

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY = re.compile(
    r"out of memory|(can't|cannot|unable to) allocate", re.IGNORECASE
)  # torch's, CUDA's
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode: controls, direction marks, surrogates, separators


def printable(text: str) -> str:
    """Return text with everything escaped that a terminal would act on rather than show.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in UNSEEN else char
        for char in text
    )


def in_one_line(error: Exception) -> str:
    """Return an error as one line for a record, with its type and a known fix unless it is a `BenchError`."""
    text = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}{_fix(error)}"
    return " ".join(text.split())


def _fix(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in FULL:
        return "; free space in the folders of paths.*, then run the same command to continue"
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
        return "; memory ran out: lower optim.tokens_per_step, model or launcher.workers"
    return ""


def in_brief(error: Exception) -> str:
    """Return the message about a damaged file for a report, without the file's folder."""
    where, _, what = str(error).partition(": ")
    return f"{PurePath(where).name}: {what}"


class BenchError(Exception):
    """An error that the user can fix; the command line prints it without a traceback."""


class ConfigError(BenchError):
    """A setting that cannot work; the message names the config key and the fix."""


class DataError(BenchError):
    """A corpus, shard or record that is missing, empty or damaged."""


class DivergedError(BenchError):
    """The loss is no longer finite; the run ends with status `diverged`.

    Args:
        step: The last optimizer step with a finite loss.
        loss_nats: The loss at that step.
    """

    def __init__(self, step: int, loss_nats: float | None) -> None:
        self.step, self.loss_nats = step, loss_nats
        seen = (
            "never finite" if loss_nats is None else f"last finite loss {loss_nats:.4f} nats at step {step}"
        )
        super().__init__(f"loss is not finite ({seen}); lower optim.lr_peak or raise optim.warmup_share")


class LostRankError(BenchError):
    """A rank of a distributed run died or stopped answering; the others end with it.

    Args:
        timeout_s: Time without an answer after which a rank counts as lost.
    """

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"another rank has died, or was silent for trainer.timeout_s={timeout_s:g} s; torchrun.log says "
            "which and why, and the same command resumes the run"
        )


class InapplicableError(Exception):
    """A strategy cannot do a task, such as a text model given an image; this is not a failure."""


class InterruptedRunError(BenchError):
    """The run received SIGINT or SIGTERM; its checkpoint is saved and the same command resumes it."""

    def __init__(self) -> None:
        super().__init__("stopped; the same command resumes it")
