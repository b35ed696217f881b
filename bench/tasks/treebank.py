"""Parts of speech: the sample of the Penn Treebank (Marcus et al. 1993) that NLTK carries, split by file.

199 files of the Wall Street Journal, for non-commercial use. Traces are no words and are left out; brackets
and slashes are given back as they are printed.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from bench.data.corpora.base import Split, split_of
from bench.data.corpora.nltk import corpus_reader
from bench.errors import DataError
from bench.tasks.tag_scores import TagScore, WordAccuracy
from bench.tasks.tagged import Sentence
from bench.tasks.tagging import Tagging, TaggingOptions

TREE = re.compile(r"^(?=\()", re.MULTILINE)  # each starts a line of its own, its parts are indented
LEAF = re.compile(r"\(([^\s()]+) ([^\s()]+)\)")
TRACE = "-NONE-"
PRINTED = {"-LRB-": "(", "-RRB-": ")", "-LCB-": "{", "-RCB-": "}", "-LSB-": "[", "-RSB-": "]"}


class Treebank(Tagging):
    """Word -> part of speech, 45 of them."""

    score: ClassVar[TagScore] = WordAccuracy()

    nltk_corpora = ("treebank",)

    @dataclass(frozen=True)
    class Options(TaggingOptions):
        """Nothing beyond what all taggings declare."""

    def sentences(self, split: Split) -> list[Sentence]:
        """Sentences of all files of a split."""
        reader = corpus_reader("treebank", "task.pos_treebank")
        found: list[Sentence] = []
        for file in reader.fileids():
            if split_of(f"treebank/{file}") == split:
                found += _read(reader.raw(file), file)
        return found


def _read(text: str, file: str) -> list[Sentence]:
    """The sentences of a file, by its trees.

    Raises:
        DataError: a tree without words.
    """
    found: list[Sentence] = []
    line = 1
    for tree in TREE.split(text):
        leaves = [(tag, word) for tag, word in LEAF.findall(tree) if tag != TRACE]
        if leaves:
            words = [PRINTED.get(word, word.replace("\\", "")) for _, word in leaves]
            found.append(Sentence(words, [tag for tag, _ in leaves]))
        elif tree.strip():
            raise DataError(
                f"treebank/{file} line {line}: a tree without words; "
                "run `python -m nltk.downloader --force treebank`"
            )
        line += tree.count("\n")
    return found
