"""What kind of answer does a question ask for? (Li & Roth 2002; `qc` of NLTK, also known as TREC-6.)"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from bench.data.corpora.base import Split
from bench.data.corpora.nltk import corpus_reader
from bench.errors import DataError
from bench.tasks.base import Setting
from bench.tasks.text_classification import ClassificationOptions, TextClassification


class QuestionClasses(TextClassification):
    """Question -> one of six coarse classes (abbreviation, entity, description, human, location, number).

    The official split, whose test questions are distributed as they come (9 of 500 ask for an abbreviation);
    there is no official validation split. Ten training questions are test questions too.
    """

    nltk_corpora = ("qc",)

    @dataclass(frozen=True)
    class Options(ClassificationOptions):
        """Nothing beyond what all text classifications declare."""

    def examples(self, split: Split, setting: Setting) -> Mapping[str, list[str]]:
        """Questions by coarse class; of validation none."""
        corpus = corpus_reader("qc", "task.qc_*")
        found: dict[str, list[str]] = defaultdict(list)
        for file in [file for file in corpus.fileids() if file == f"{split}.txt"]:
            for number, line in enumerate(corpus.raw(file).splitlines(), start=1):
                label, _, question = line.strip().partition(" ")
                coarse, colon, _ = label.partition(":")
                if not (coarse and colon and question):
                    raise DataError(
                        f"task.qc_*: qc/{file}, line {number} is not `CLASS:subclass question`; "
                        "run `python -m nltk.downloader --force qc`"
                    )
                found[coarse].append(question)
        return found
