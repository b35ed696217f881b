"""English prose from named Debian packages: manuals, dictionaries, essays. Nothing is shipped.

A package is read by the first kind of file in `READERS` that it has, so that pages with a plain-text source
beside them are read once. A paragraph is kept if it has `min_words` words of which at least
`min_function_share` are English function words (Biber et al. 1999 call them so: articles, pronouns,
prepositions, auxiliaries); this removes code, tables, lists of names and translations. Equal paragraphs are
kept once. A document is a run of kept paragraphs of one file, of about `max_chars` characters.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from omegaconf import MISSING

from bench.config.bounds import Count, Share, Text
from bench.data.corpora.base import Document, TextCorpus, TextCorpusOptions, universal_lines
from bench.data.debian import Package, PackageName, fetch, version_of
from bench.errors import DataError

KEY = "corpus.text.packages"
_FUNCTION_WORDS = """
a about after all also an and any are as at be because been before being between both but by can could did
do does each every for from had has have he her his how i if in into is it its may more most must my no not
of on one only or other our own same shall she should so some such than that the their them then there these
they this those through to under until up upon was we were what when where which while who whom whose will
with without would you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
EDGES = ".,;:!?\"'()[]{}<>*`\u201c\u201d\u2018\u2019"

# HTML
UNREAD = frozenset(("script", "style", "pre", "nav", "svg", "title", "textarea", "button", "select", "math"))
_INLINE = """
a abbr acronym b bdi big cite code dfn em font i kbd mark q s samp small span strong sub sup tt u var wbr
"""
INLINE = frozenset(_INLINE.split())

# Manual pages
ESCAPES = {r"\-": "-", r"\&": "", r"\e": "\\", r"\(aq": "'", r"\(em": "-", r"\(bu": "", r"\ ": " ", r"\|": ""}
QUOTES = re.compile(r"\\\*\((?:L\"|R\"|C`|C')")
FONTS = re.compile(r"\\f(?:\(..|\[[^]]*\]|.)|\\s[-+]?\d|\\\*\(..|\\\*.")
MACRO = re.compile(r"^['.]\s*(?:de|am|ig)\b.*?^['.]\.[ \t]*$", re.MULTILINE | re.DOTALL)
VERBATIM = re.compile(r"^\.(?:Vb|nf|EX)\b.*?^\.(?:Ve|fi|EE)\b.*?$", re.MULTILINE | re.DOTALL)
STYLED = re.compile(r"^\.(?:B|I|BR|RB|IR|RI|BI|IB|SM|SB) +")


@dataclass(frozen=True)
class DebianDocsOptions(TextCorpusOptions):
    """The packages, and what is kept of them."""

    packages: Annotated[list[PackageName], MinLen(1)] = field(default_factory=lambda: MISSING)
    exclude: list[Text] = field(default_factory=lambda: MISSING)  # globs of files that are not read
    min_words: Count = MISSING  # of a paragraph
    min_function_share: Share = MISSING  # of its words
    max_chars: Count = MISSING  # of a document; a longer paragraph is a document of its own
    documents_per_group: Count = MISSING  # consecutive documents of a file that share a split


class DebianDocs(TextCorpus):
    """Filtered paragraphs of documentation packages, downloaded by apt into the data folder."""

    Options = DebianDocsOptions
    options: DebianDocsOptions
    labelled = True  # so that the packages are parsed once

    def fingerprint(self) -> dict[str, Any]:
        """Return the packages' versions and the options."""
        return asdict(self.options) | {
            "versions": [version_of(name, self.data_dir, KEY) for name in self.options.packages]
        }

    def provenance(self) -> dict[str, str]:
        """Return the packages with their versions and licences."""
        packages = self._packages()
        return {
            "source": "Debian packages: " + ", ".join(f"{p.name} {p.version}" for p in packages),
            "licence": "; ".join(f"{p.name}: {p.licence}" for p in packages),
        }

    def documents(self) -> Iterator[Document]:
        """Yield the documents, package by package."""
        seen: set[bytes] = set()  # 10 bytes of a paragraph's hash
        for package in self._packages():
            for path, paragraphs in self._read(package):
                kept = [text for text in paragraphs if self._is_prose(text) and _is_new(text, seen)]
                for i, text in enumerate(joined(kept, self.options.max_chars)):
                    group = f"{package.name}/{path}#{i // self.options.documents_per_group}"
                    yield Document(text=text, group=group, labels={"package": package.name})

    def _packages(self) -> list[Package]:
        return [fetch(name, self.data_dir, KEY) for name in self.options.packages]

    def _read(self, package: Package) -> Iterator[tuple[str, Iterator[str]]]:
        """Yield (path, paragraphs) of each file that is read."""
        names = [name for name in package.names() if not self._is_excluded(name)]
        for pattern, paragraphs in READERS:
            wanted = {name for name in names if pattern.search(name)}
            if wanted:
                for name, data in package.files(wanted.__contains__):
                    yield name, paragraphs(data.decode("utf-8", "replace"))
                return
        kinds = Counter(Path(name).suffix for name in names)
        raise DataError(
            f"{KEY}: {package.name} has no HTML, manual pages, dictionary or plain text (its files end in "
            f"{', '.join(kind or 'nothing' for kind, _ in kinds.most_common(3))}); remove it"
        )

    def _is_excluded(self, name: str) -> bool:
        is_about_package = re.match(r"usr/share/doc/[^/]+/(?:changelog|copyright|NEWS|README\.Debian)", name)
        return bool(is_about_package) or any(fnmatchcase(name, glob) for glob in self.options.exclude)

    def _is_prose(self, text: str) -> bool:
        words = text.split()
        n_function = sum(word.strip(EDGES).lower() in FUNCTION_WORDS for word in words)
        return len(words) >= self.options.min_words and n_function >= self.options.min_function_share * len(
            words
        )


def _is_new(text: str, seen: set[bytes]) -> bool:
    digest = sha256(text.encode()).digest()[:10]
    if digest in seen:
        return False
    seen.add(digest)
    return True


def joined(paragraphs: list[str], max_chars: int) -> Iterator[str]:
    """Yield documents: consecutive paragraphs, as many as fit into `max_chars` but at least one.

    >>> list(joined(["ab", "cd", "efghij"], max_chars=6))
    ['ab\\n\\ncd', 'efghij']
    """
    document = ""
    for paragraph in paragraphs:
        if document and len(document) + 2 + len(paragraph) > max_chars:
            yield document
            document = ""
        document = f"{document}\n\n{paragraph}" if document else paragraph
    if document:
        yield document


class _Html(HTMLParser):
    """Collect the text of block elements; code blocks and what is not prose are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self.parts: list[str] = []
        self.unread = 0  # depth within elements that are not read

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in INLINE:
            self.close_paragraph()
        self.unread += tag in UNREAD

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in INLINE:
            self.close_paragraph()

    def handle_endtag(self, tag: str) -> None:
        if tag not in INLINE:
            self.close_paragraph()
        self.unread = max(0, self.unread - (tag in UNREAD))

    def handle_data(self, data: str) -> None:
        if not self.unread:
            self.parts.append(data)

    def close_paragraph(self) -> None:
        if self.parts:
            self.paragraphs.append("".join(self.parts).replace("¶", ""))
            self.parts = []


def html_paragraphs(text: str) -> Iterator[str]:
    """Yield the text of each block element.

    >>> list(html_paragraphs("<p>Read <code>this</code>.</p><pre>x = 1</pre><li>And that."))
    ['Read this.', 'And that.']
    """
    parser = _Html()
    parser.feed(text)
    parser.close()
    parser.close_paragraph()
    yield from _spaced(parser.paragraphs)


def dictionary_paragraphs(text: str) -> Iterator[str]:
    """Yield the blocks of a dictd dictionary without pronunciations, marks of links and notes of sources.

    >>> list(dictionary_paragraphs("Abjure \\\\Ab*jure\\"\\\\, v.\\n To {renounce}.\\n [1913 Webster]"))
    ['Abjure, v. To renounce.']
    """
    lines = [line for line in universal_lines(text) if not re.fullmatch(r"\s*(\[[^][]*\]|\([\d-]*\))", line)]
    whole = re.sub(r" ?\\[^\\\n]*\\|[{}]", "", "\n".join(lines))
    yield from plain_paragraphs(whole)


def gloss_paragraphs(text: str) -> Iterator[str]:
    """Yield words and gloss of each synset of a WordNet data file (wndb(5WN)).

    >>> list(gloss_paragraphs("00039211 04 n 01 interplay 0 001 @ 00039021 n 0000 | reciprocal action  "))
    ['interplay: reciprocal action']
    """
    for line in text.splitlines():
        fields, is_synset, gloss = line.partition(" | ")
        if is_synset and not line.startswith("  "):  # the licence is indented
            parts = fields.split()
            words = parts[4 : 4 + 2 * int(parts[3], 16) : 2]
            yield f"{', '.join(words).replace('_', ' ')}: {gloss.strip()}"


def manual_paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a manual page (man(7)) without code.

    >>> list(manual_paragraphs('.SH "NAME"\\nls \\\\- list\\n.PP\\nSee \\\\fBdir\\\\fR.\\n.Vb 1\\n x\\n.Ve'))
    ['ls - list', 'See dir.']
    """
    text = VERBATIM.sub(".PP", MACRO.sub("", text))
    text = FONTS.sub("", QUOTES.sub('"', text))
    for escape, plain in ESCAPES.items():
        text = text.replace(escape, plain)
    lines = (STYLED.sub("", line) for line in text.splitlines())
    yield from plain_paragraphs("\n".join("" if line.startswith((".", "'")) else line for line in lines))


def fortune_paragraphs(text: str) -> Iterator[str]:
    """Yield the texts of a fortune file, which are separated by lines with a percent sign.

    >>> list(fortune_paragraphs("To be\\nor not.\\n%\\nThat is\\nit.\\n"))
    ['To be or not.', 'That is it.']
    """
    yield from _spaced(re.split(r"^%.*$", text, flags=re.MULTILINE))


def plain_paragraphs(text: str) -> Iterator[str]:
    """Yield the blocks between blank lines."""
    yield from _spaced(re.split(r"\n\s*\n", text))


def _spaced(paragraphs: list[str]) -> Iterator[str]:
    return (text for paragraph in paragraphs if (text := " ".join(paragraph.split())))


READERS: tuple[tuple[re.Pattern[str], Callable[[str], Iterator[str]]], ...] = (
    (re.compile(r"\.x?html?$"), html_paragraphs),
    (re.compile(r"/dictd/[^/]+\.dict(?:\.dz)?$"), dictionary_paragraphs),
    (re.compile(r"/wordnet/data\.\w+$"), gloss_paragraphs),
    (re.compile(r"/man/man\d/[^/]+$"), manual_paragraphs),
    (re.compile(r"/games/fortunes/[^/.]+$"), fortune_paragraphs),
    (re.compile(r"/doc/.*\.(?:txt|md|rst)(?:\.gz)?$"), plain_paragraphs),
)
