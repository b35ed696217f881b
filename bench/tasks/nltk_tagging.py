"""Taggings on corpora that NLTK carries: CoNLL-2000, CoNLL-2002, IE-ER and the Penn Treebank sample."""

import html
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from typing_extensions import override

from bench.data.corpora.base import Split, split_of, universal_lines
from bench.data.corpora.nltk import corpus_reader
from bench.errors import DataError
from bench.tasks.options import Conll2002Options
from bench.tasks.tag_scores import TagScore, WordAccuracy
from bench.tasks.tagging import Sentence, Tagging

# CoNLL: one word per line with its BIO tag in the last column, and an empty line after each sentence.

BIO = re.compile(r"O|[BI]-\S+")
DOCUMENT = "-DOCSTART-"  # a line of its own before each document of the Dutch files, not a word
FILES_2002 = {"es": "esp", "nl": "ned"}
TEST_SHARE = 0.4  # of a corpus without an official split, so that a thousand sentences are tested
VALIDATION_SHARE_2000 = 0.1  # the end of the training file, since there is no official validation split


class Conll2000(Tagging):
    """Chunks (noun phrases, verb phrases, ...) of English newspaper text, in the official split.

    Tjong Kim Sang & Buchholz 2000 (arXiv:cs/0009008). The last tenth of the training file is for validation.
    """

    nltk_corpora = ("conll2000",)

    @override
    def sentences(self, split: Split) -> list[Sentence]:
        reader = corpus_reader("conll2000", "task.chunking_*")
        if split == "test":
            return read_columns(reader, "conll2000", "test.txt")
        found = read_columns(reader, "conll2000", "train.txt")
        n = round(len(found) * (1 - VALIDATION_SHARE_2000))
        return found[:n] if split == "train" else found[n:]


class Conll2002(Tagging):
    """Names (persons, places, organisations, other) in Spanish or Dutch newspaper text, official split.

    Tjong Kim Sang 2002 (arXiv:cs/0209010). The file `testb` is the test split.
    """

    Options = Conll2002Options
    options: Conll2002Options
    nltk_corpora = ("conll2002",)

    @override
    def sentences(self, split: Split) -> list[Sentence]:
        part = {"train": "train", "validation": "testa", "test": "testb"}[split]
        reader = corpus_reader("conll2002", "task.ner_conll2002_*")
        return read_columns(reader, "conll2002", f"{FILES_2002[self.options.language]}.{part}")


def read_columns(reader: Any, corpus: str, file: str) -> list[Sentence]:
    """Return the first and last column of a file, by sentence; a DataError names file, line and fix."""
    again = f"run `python -m nltk.downloader --force {corpus}`"
    try:
        lines = universal_lines(reader.raw(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{corpus}/{file} cannot be read; {again}") from error
    found: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        columns = re.split(r"[ \t]+", line.strip(" \t"))
        if columns == [""]:
            if words:
                found.append(Sentence(words, tags))
            words, tags = [], []
        elif columns[0] != DOCUMENT:
            if len(columns) < 2 or not BIO.fullmatch(columns[-1]):
                seen = f"{corpus}/{file} line {number}: {line.strip()!r}"
                raise DataError(f"{seen} is not a word with a BIO tag; {again}")
            words.append(columns[0])
            tags.append(columns[-1])
    return found


# IE-ER: newswire documents with spans; neither sentences nor splits are given.

# A sentence ends in a stop after a lower-case word, a number or a span. This misses few ends, and is not
# misled by Mr., Corp. or initials. Closing quotes and brackets belong to the sentence.
SENTENCE_END = re.compile(r"(?:[a-z0-9][^.?!]*)?[.?!]['\")]*")
SHARED_WORDS = 8  # two documents that share a sentence of so many words are versions of one story


class Ieer(Tagging):
    """Names, times and numbers in English newswire of 1998: NIST's IE-ER 1999 evaluation, split by story.

    94 documents with spans of ten types: PERSON, ORGANIZATION, LOCATION, DATE, TIME, DURATION, CARDINAL,
    MEASURE, MONEY, PERCENT. Words are those of NLTK's reader. Some documents are later versions of others,
    hence the split by story. Headlines are left out, since their style and capitals differ.
    """

    nltk_corpora = ("ieer",)

    @override
    def sentences(self, split: Split) -> list[Sentence]:
        reader = corpus_reader("ieer", "task.ner_ieer*")
        found: list[Sentence] = []
        stories: dict[str, str] = {}  # sentence -> the first document that has it
        for file in reader.fileids():
            for document in _documents(reader, file):
                sentences = _split_sentences(list(_tagged(document.text)))
                long = [" ".join(s.words) for s in sentences if len(s.words) >= SHARED_WORDS]
                story = next((stories[text] for text in long if text in stories), document.docno)
                stories |= dict.fromkeys(long, story)
                if split_of(f"ieer/{story}", TEST_SHARE) == split:
                    found += sentences
        return found


def _documents(reader: Any, file: str) -> list[Any]:
    try:
        return list(reader.parsed_docs(file))
    except (ValueError, OSError) as error:
        raise DataError(
            f"ieer/{file} is damaged ({error}); run `python -m nltk.downloader --force ieer`"
        ) from error


def _tagged(text: Any) -> Iterator[tuple[str, str]]:
    """Yield words with BIO tags; of nested spans the outermost counts."""
    for node in text:
        if isinstance(node, str):
            yield html.unescape(node), "O"
        else:
            for i, word in enumerate(node.leaves()):
                yield html.unescape(word), f"{'I' if i else 'B'}-{node.label()}"


def _split_sentences(words: list[tuple[str, str]]) -> list[Sentence]:
    found: list[Sentence] = []
    begin = 0
    for i, (word, tag) in enumerate(words, start=1):
        is_last = i == len(words)
        if is_last or (tag == "O" and SENTENCE_END.fullmatch(word) and not words[i][0][0].islower()):
            part = words[begin:i]
            found.append(Sentence([w for w, _ in part], [t for _, t in part]))
            begin = i
    return found


# Penn Treebank: one tree per sentence, which starts a line; its parts are indented.

TREE = re.compile(r"^(?=\()", re.MULTILINE)
LEAF = re.compile(r"\(([^\s()]+) ([^\s()]+)\)")
TRACE = "-NONE-"
PRINTED = {"-LRB-": "(", "-RRB-": ")", "-LCB-": "{", "-RCB-": "}", "-LSB-": "[", "-RSB-": "]"}


class Treebank(Tagging):
    """Parts of speech, 45 of them, in the sample of the Penn Treebank (Marcus et al. 1993), split by file.

    199 files of the Wall Street Journal, for non-commercial use. Traces are left out, since they are not
    words; brackets and slashes are restored to their printed form.
    """

    packages = ()
    score: ClassVar[TagScore] = WordAccuracy()
    nltk_corpora = ("treebank",)

    @override
    def sentences(self, split: Split) -> list[Sentence]:
        reader = corpus_reader("treebank", "task.pos_treebank")
        found: list[Sentence] = []
        for file in reader.fileids():
            if split_of(f"treebank/{file}", TEST_SHARE) == split:
                found += _read_trees(reader.raw(file), file)
        return found


def _read_trees(text: str, file: str) -> list[Sentence]:
    """Return the sentences of a file; raise DataError for a tree without words."""
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
