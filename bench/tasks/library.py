"""Which library does a docstring come from? Embedded data; split by source file, names masked."""

import re
from dataclasses import dataclass

from omegaconf import MISSING

from bench.corpora.base import Split
from bench.corpora.docstrings import Docstrings
from bench.tasks.base import Setting
from bench.tasks.text_classification import ClassificationOptions, TextClassification, by_label
from bench.tokens import load_documents

# A library's own names give the label away: its import names and usual aliases become one word.
ALIASES = "np|pd|nx|plt|mpl|sp|sns|scikit-learn|scikits|pyplot|torch"
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
        corpus = Docstrings(Docstrings.Options(packages=self.options.packages, min_chars=self.options.min_chars))
        names = re.compile(rf"\b({'|'.join(map(re.escape, self.options.packages))}|{ALIASES})\b", re.IGNORECASE)
        documents = load_documents(corpus, setting.data_dir, split)
        return by_label([(names.sub(MASKED, d.text), d.labels["library"]) for d in documents])
