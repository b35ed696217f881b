"""Names, times and numbers in English newswire: NIST's IE-ER 1999 evaluation, through NLTK.

94 documents of 1998 with spans of ten types: PERSON, ORGANIZATION, LOCATION, DATE, TIME, DURATION, CARDINAL,
MEASURE, MONEY, PERCENT. Words are those of NLTK's reader: what stands between spaces and spans. Split by
story, since some documents are later versions of others.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.data.corpora.base import Split, split_of
from bench.data.corpora.nltk import corpus_reader
from bench.errors import DataError
from bench.tasks.tagged import Sentence
from bench.tasks.tagging import Tagging, TaggingOptions

# The corpus does not mark sentences. One ends in a stop after a word in lower case, a number or a span; that
# misses few ends, and is not misled by Mr., Corp. or initials. Closing quotes and brackets stay with it.
END = re.compile(r"(?:[a-z0-9][^.?!]*)?[.?!]['\")]*")
TELLING = 8  # words; two documents that share so long a sentence tell one story


class Ieer(Tagging):
    """Entities of the text; headlines are left out, for they have a style and capitals of their own."""

    nltk_corpora = ("ieer",)

    @dataclass(frozen=True)
    class Options(TaggingOptions):
        """Nothing beyond what all taggings declare."""

    def sentences(self, split: Split) -> list[Sentence]:
        """Sentences of all stories of a split."""
        reader = corpus_reader("ieer", "task.ner_ieer*")
        found: list[Sentence] = []
        stories: dict[str, str] = {}  # sentence -> the first document that has it
        for file in reader.fileids():
            for document in _documents(reader, file):
                sentences = _cut(list(_tagged(document.text)))
                long = [" ".join(s.words) for s in sentences if len(s.words) >= TELLING]
                story = next((stories[text] for text in long if text in stories), document.docno)
                stories |= dict.fromkeys(long, story)
                if split_of(f"ieer/{story}") == split:
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
    """Words with BIO tags; of nested spans the outermost counts."""
    for node in text:
        if isinstance(node, str):
            yield html.unescape(node), "O"
        else:
            for i, word in enumerate(node.leaves()):
                yield html.unescape(word), f"{'I' if i else 'B'}-{node.label()}"


def _cut(words: list[tuple[str, str]]) -> list[Sentence]:
    """A document's sentences."""
    found: list[Sentence] = []
    begin = 0
    for i, (word, tag) in enumerate(words, start=1):
        is_last = i == len(words)
        if is_last or (tag == "O" and END.fullmatch(word) and not words[i][0][0].islower()):
            part = words[begin:i]
            found.append(Sentence([w for w, _ in part], [t for _, t in part]))
            begin = i
    return found
