"""The user's text files: a folder, a file or a glob. Lines and paragraphs are streamed."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import IncrementalNewlineDecoder
from pathlib import Path
from typing import Annotated, Any

from omegaconf import MISSING

from bench.config.bounds import Text, choice, must
from bench.data.corpora.base import CUT, MAX_TEXT_CHARS, Document, Skipped, TextCorpus, TextCorpusOptions
from bench.errors import ConfigError, DataError

MAGIC = "*?["
# UTF-32 first, since its mark begins with that of UTF-16.
ENCODINGS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"}
ENCODINGS |= {codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8-sig"}
COMPRESSED = {b"\x1f\x8b": "gzip", b"PK": "zip", b"BZh": "bzip2", b"\xfd7z": "xz", b"\x28\xb5": "zstd"}
BLOCK = 2**16  # bytes, read at a time


def _is_relative(pattern: str) -> bool:
    path = Path(pattern)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


@dataclass(frozen=True)
class TextFilesOptions(TextCorpusOptions):
    """Where the files are, what a document is, and what is kept within one split."""

    path: Text = MISSING
    pattern: Annotated[str, must(_is_relative, "match files of the folder, such as '**/*.txt'")] = MISSING
    document: Annotated[str, choice("file", "line", "paragraph")] = MISSING
    split_by: Annotated[str, choice("file", "document")] = MISSING


class TextFiles(TextCorpus):
    """One document per file, line or paragraph (a block between blank lines); empty ones are skipped."""

    Options = TextFilesOptions
    options: TextFilesOptions

    def fingerprint(self) -> dict[str, Any]:
        """Return relative path, size and modification time of each file, and options."""
        files = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in self._files()]
        digest = sha256(repr(files).encode()).hexdigest()
        return {"files": digest, "document": self.options.document, "split_by": self.options.split_by}

    def provenance(self) -> dict[str, str]:
        """Return the path as given; the licence is not known."""
        return {"source": f"{len(self._files())} text files: {self.options.path}", "licence": "not stated"}

    def how_to_add_groups(self, key: str) -> str:
        """Return the options that give more groups, if there are any."""
        more = [] if self.options.split_by == "document" else [f"set {key}.split_by=document"]
        more += [] if self.options.document == "line" else [f"set {key}.document=line"]
        return " or ".join(["add text", *more])

    def documents(self) -> Iterator[Document | Skipped]:
        """Yield all documents, file by file in the order of their names."""
        found, by_file = False, self.options.split_by == "file"
        files = self._files()
        for name, path in files:
            for text, is_cut in _texts(path, self.options.document):
                if is_cut:
                    yield Skipped(CUT, name)
                if text.strip():
                    found = True
                    group = name if by_file else sha256(text.strip().encode()).hexdigest()
                    yield Document(text=text.strip(), group=group)
        if not found:
            raise DataError(
                f"corpus.text.path={self.options.path}: no text in {len(files)} files, such as "
                f"{files[0][1]}; name files with content"
            )

    def _files(self) -> list[tuple[str, Path]]:
        """Return (name relative to the folder, path) of each file, sorted by name."""
        given = self.options.path
        path = Path(given).expanduser()
        if any(char in given for char in MAGIC) and not path.exists():
            root, pattern = _cut(path)
            found = _glob(root, pattern, "path")
        elif path.is_dir():
            root, found = path, _glob(path, self.options.pattern, "pattern")
        elif path.is_file():
            root, found = path.parent, [path]
        else:
            raise DataError(f"corpus.text.path={given}: no such file or folder; correct the path")
        files = sorted((file.relative_to(root).as_posix(), file) for file in found if file.is_file())
        if not files:
            raise DataError(
                f"corpus.text.path={given}: no file matches; correct the path or corpus.text.pattern "
                f"({self.options.pattern})"
            )
        return files


def _glob(root: Path, pattern: str, option: str) -> list[Path]:
    try:
        return list(root.glob(pattern))
    except ValueError as error:  # "a**b"
        raise ConfigError(
            f"corpus.text.{option}: {pattern!r} is an invalid glob ({error}); correct it"
        ) from error


def _cut(path: Path) -> tuple[Path, str]:
    """Split a glob into the folder before the first wildcard and the pattern after it."""
    wild = next(i for i, part in enumerate(path.parts) if any(char in part for char in MAGIC))
    return Path(*path.parts[:wild]), "/".join(path.parts[wild:])


def _texts(path: Path, unit: str) -> Iterator[tuple[str, bool]]:
    """Yield the texts of a file, and whether each is cut there because it is too long."""
    parts: list[str] = []
    size = 0
    for line, is_whole in _lines(path):
        parts.append(f"{line}\n" if is_whole else line)
        size += len(parts[-1])
        is_end = is_whole and (unit == "line" or (unit == "paragraph" and not line.strip()))
        if is_end or size >= MAX_TEXT_CHARS:
            yield "".join(parts), not is_end
            parts, size = [], 0
    yield "".join(parts), False


def _lines(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield lines without their ends, and whether each is whole; a very long line is yielded in parts."""
    rest = ""
    for block in _decoded(path):
        *lines, rest = (rest + block).split("\n")
        yield from ((line, True) for line in lines)
        if len(rest) >= MAX_TEXT_CHARS:
            yield rest, False
            rest = ""
    yield rest, True


def _decoded(path: Path) -> Iterator[str]:
    """Yield the text of a file block by block, with universal newlines; its byte order mark is followed.

    Raises:
        DataError: the file is unreadable or not text; names the file and the byte.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            encoding = next((name for mark, name in ENCODINGS.items() if start.startswith(mark)), "utf-8")
            bare = codecs.getincrementaldecoder(encoding)()
            decoder = IncrementalNewlineDecoder(bare, translate=True)
            while raw := file.read(BLOCK):
                if encoding.startswith("utf-8") and 0 in raw:
                    raise _not_text(path, f"has a NUL at byte {offset + raw.index(0)}", start)
                kept = len(bare.getstate()[0])  # bytes of a character that the last block began
                yield decoder.decode(raw)
                offset += len(raw)
            kept = len(bare.getstate()[0])
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        named = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        raise _not_text(path, f"is not {named} at byte {offset - kept + error.start}", start) from error
    except OSError as error:
        raise DataError(f"corpus.text.path: {path} cannot be read ({error.strerror}); correct it") from error


def _not_text(path: Path, problem: str, start: bytes) -> DataError:
    """Return the error of a file that is not text, with advice that fits how the file begins."""
    packed = next((name for mark, name in COMPRESSED.items() if start.startswith(mark)), None)
    advice = "remove it if it is not a text file, or convert it, for example with `iconv -f {} -t UTF-8`"
    advice = advice.format("UTF-16LE" if "NUL" in problem else "LATIN1")
    return DataError(
        f"corpus.text.path: {path} {problem}; {f'decompress it ({packed})' if packed else advice}"
    )
