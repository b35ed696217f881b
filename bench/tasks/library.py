"""Which library does a docstring come from? Embedded data; split by source file, names masked."""

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from omegaconf import MISSING

from bench.data.corpora.base import Split, split_of
from bench.data.corpora.docstrings import Docstrings
from bench.data.shards import SPLITS, load_documents
from bench.tasks.base import Setting
from bench.tasks.text_classification import ClassificationOptions, TextClassification

# A library's own names give the label away: its import names and usual aliases become one word.
ALIASES = ("np", "pd", "nx", "plt", "mpl", "sp", "sns", "scikit-learn", "scikits", "pyplot", "torch")
MASKED = "library"


class Library(TextClassification):
    """Docstring -> library."""

    @dataclass(frozen=True)
    class Options(ClassificationOptions):
        """Which libraries are the classes, and from which length on a docstring counts."""

        packages: list[str] = MISSING
        min_chars: int = MISSING

    options: Options

    def examples(self, split: Split, setting: Setting) -> dict[str, list[str]]:
        """Docstrings by library, with all libraries' names masked."""
        return _read(tuple(self.options.packages), self.options.min_chars, setting.data_dir)[split]


@lru_cache(maxsize=2)  # the runs of one worker share it
def _read(packages: tuple[str, ...], min_chars: int, data_dir: Path) -> dict[Split, dict[str, list[str]]]:
    """Masked docstrings by split and library."""
    corpus = Docstrings(Docstrings.Options(packages=list(packages), min_chars=min_chars))
    names = _any_of([*packages, *ALIASES])
    found: dict[Split, dict[str, list[str]]] = {split: defaultdict(list) for split in SPLITS}
    for document in load_documents(corpus, data_dir):
        text = names.sub(MASKED, document.text)
        found[split_of(document.group)][document.labels["library"]].append(text)
    return found


def _any_of(names: list[str]) -> re.Pattern[str]:
    """Each as a whole word, in any case. Initials are looked for first: a quarter of the time."""
    initials = "".join(re.escape(name[:1]) for name in names)
    whole = "|".join(map(re.escape, names))
    return re.compile(rf"(?=[{initials}])\b(?:{whole})\b", re.IGNORECASE)
