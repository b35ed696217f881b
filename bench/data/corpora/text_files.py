"""The user's text files: a folder, a file or a glob. Lines and paragraphs are streamed."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from omegaconf import MISSING

from bench.config.bounds import Text, choice, must
from bench.data.corpora.base import Document, TextCorpus, TextCorpusOptions
from bench.errors import ConfigError, DataError

MAGIC = "*?["
BOM = "\ufeff"


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

    def documents(self) -> Iterator[Document]:
        """Yield all documents, file by file in the order of their names."""
        found, by_file = False, self.options.split_by == "file"
        files = self._files()
        for name, path in files:
            for text in self._read(path):
                found = True
                yield Document(text=text, group=name if by_file else sha256(text.encode()).hexdigest())
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

    def _read(self, path: Path) -> Iterator[str]:
        if self.options.document == "file":
            texts: Iterator[str] = iter(["".join(f"{line}\n" for line in _lines(path))])
        elif self.options.document == "line":
            texts = _lines(path)
        else:
            texts = _paragraphs(_lines(path))
        return (text.strip() for text in texts if text.strip())


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


def _lines(path: Path) -> Iterator[str]:
    """Yield lines without their line ends.

    Raises:
        DataError: the file is unreadable or not UTF-8 text; names the file and the byte.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            for raw in file:
                line = raw.decode("utf-8")
                if "\0" in line:
                    where = f"{path} has a NUL at byte {offset + raw.index(0)}"
                    raise DataError(f"corpus.text.path: {where}, so it is not a text file; remove it")
                yield (line.removeprefix(BOM) if offset == 0 else line).rstrip("\r\n")
                offset += len(raw)
    except UnicodeDecodeError as error:
        raise DataError(
            f"corpus.text.path: {path} is not UTF-8 at byte {offset + error.start}; convert it, for example "
            f"with `iconv -f LATIN1 -t UTF-8`"
        ) from error
    except OSError as error:
        raise DataError(f"corpus.text.path: {path} cannot be read ({error.strerror}); correct it") from error


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block = []
    yield "\n".join(block)
