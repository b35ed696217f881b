"""Questions about the parameters of Python functions, answered by their docstrings. Embedded data.

Sections in numpydoc or Google style list each parameter with its type and meaning, so that the answer is a
span of the text. Neither the place of an answer nor its form may reveal it without the question:

- A context is an excerpt with a fixed number of words. The place of the parameter's entry in it is drawn
  uniformly, and only entries with enough text on both sides for every place are used. (Edges remain: an
  answer of n words covers the first words of a context less often than those in the middle.)
- Every excerpt has the name and type of at least one neighbouring parameter; if the question asks for a type,
  the neighbours have other types.
- An entry that many functions repeat is used once: no test question has its answer in the training split.
  Splits are by source file.
"""

import random
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from typing_extensions import override

from bench.data.corpora.base import Document, Split, split_of
from bench.data.corpora.docstrings import Docstrings
from bench.data.shards import SPLITS, load_documents
from bench.tasks.answers import Question, normalised
from bench.tasks.base import Setting
from bench.tasks.options import DocstringQuestionsOptions
from bench.tasks.question_answering import QuestionAnswering

NUMPYDOC = re.compile(r"^Parameters\n-{3,}[ ]*\n", re.MULTILINE)
NUMPYDOC_ENTRY = re.compile(r"^(?P<name>\w+) ?: (?P<type>\S.*)\n(?P<text>(?:[ \t]+\S.*\n?)*)", re.MULTILINE)
NUMPYDOC_END = re.compile(r"^.+\n-{3,}[ ]*$", re.MULTILINE)  # the heading of the next section
GOOGLE = re.compile(r"^(?:Args|Arguments|Parameters):[ ]*\n", re.MULTILINE)
GOOGLE_ENTRY = re.compile(
    r"^(?P<indent>[ ]+)(?P<name>\w+) \((?P<type>.+?)\): (?P<text>.*\n?(?:(?P=indent)[ ]+\S.*\n?)*)",
    re.MULTILINE,
)
GOOGLE_END = re.compile(r"^\S", re.MULTILINE)
STYLES = ((NUMPYDOC, NUMPYDOC_ENTRY, NUMPYDOC_END), (GOOGLE, GOOGLE_ENTRY, GOOGLE_END))
NO_TYPE = re.compile(r"[,;]?\s*\(?\b(?:optional|default)\b.*")  # "int, optional", "bool (default: True)"
SENTENCE = re.compile(r"\S.*?(?=[.:;](?:\s|$)|\s*\Z)", re.DOTALL)
WORD = re.compile(r"\S+")
Span = tuple[int, int]


@dataclass(frozen=True)
class Parameter:
    """A parameter's entry in a docstring; spans are in characters of the text."""

    name: str
    start: int
    type: Span
    meaning: Span


class DocstringQuestions(QuestionAnswering):
    """Parameter -> its type or its meaning."""

    Options = DocstringQuestionsOptions
    options: DocstringQuestionsOptions

    @override
    def questions(self, split: Split, setting: Setting) -> list[Question]:
        options = self.options
        packages = tuple(options.packages)
        return _read(
            packages, options.min_chars, options.context_words, options.max_answer_words, setting.data_dir
        )[split]


@lru_cache(maxsize=2)  # shared by the runs of one worker
def _read(
    packages: tuple[str, ...], min_chars: int, context_words: int, max_answer_words: int, data_dir: Path
) -> dict[Split, list[Question]]:
    corpus = Docstrings(Docstrings.Options(packages=list(packages), min_chars=min_chars))
    found: dict[Split, list[Question]] = {split: [] for split in SPLITS}
    seen: set[tuple[str, str]] = set()
    for document in load_documents(corpus, data_dir):
        for question in ask(document, context_words, max_answer_words):
            key = (question.question, normalised(question.answers[0]))
            if key not in seen:
                seen.add(key)
                found[split_of(document.group)].append(question)
    return found


def ask(document: Document, context_words: int, max_answer_words: int) -> Iterator[Question]:
    """Yield questions about types and meanings of parameters, which a docstring answers."""
    text = document.text
    words = [match.span() for match in WORD.finditer(text)]
    entries = parameters(text)
    names = Counter(entry.name for entry in entries)
    for before, asked, after in zip(entries, entries[1:], entries[2:], strict=False):
        types = [" ".join(text[slice(*entry.type)].split()) for entry in (before, asked, after)]
        kinds = {f"What does parameter {asked.name} mean?": asked.meaning}
        if types[1] not in (types[0], types[2]):
            kinds[f"What is the type of parameter {asked.name}?"] = asked.type
        reach = _words_of(words, before.start, after.type[1])
        if names[asked.name] > 1 or len(reach) > context_words:
            continue
        for question, (start, stop) in kinds.items():
            unit = _words_of(words, asked.start, stop)
            slack = context_words - len(unit)  # the largest number of words before the entry
            has_room = slack >= 0 and unit.start >= slack and unit.stop + slack <= len(words)
            if has_room and 1 <= len(text[start:stop].split()) <= max_answer_words:
                place = random.Random(f"{document.group} {document.labels['name']} {question}")  # noqa: S311
                first = unit.start - place.randint(0, slack)
                left, right = words[first][0], words[first + context_words - 1][1]
                answer, span = (text[start:stop],), (start - left, stop - left)
                yield Question(question, text[left:right], answer, span, document.group)


def parameters(text: str) -> list[Parameter]:
    """Return the parameters of a docstring that have a type, in order."""
    for heading, entry, end in STYLES:
        head = heading.search(text)
        if head:
            tail = end.search(text, head.end())
            stop = tail.start() if tail else len(text)
            return [_parameter(match) for match in entry.finditer(text, head.end(), stop)]
    return []


def _parameter(match: re.Match[str]) -> Parameter:
    start, stop = match.span("type")
    bare = NO_TYPE.sub("", match["type"]).rstrip(" ,;")
    sentence = SENTENCE.search(match["text"])
    first = match.start("text")
    meaning = (first + sentence.start(), first + sentence.end()) if sentence else (first, first)
    return Parameter(match["name"], match.start("name"), (start, min(stop, start + len(bare))), meaning)


def _words_of(words: list[Span], start: int, stop: int) -> range:
    """Return the indices of the words that overlap the characters start..stop."""
    first = bisect_right(words, start, key=lambda word: word[1])
    return range(first, bisect_left(words, stop, key=lambda word: word[0]))
