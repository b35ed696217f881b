"""A study's README -> what it says of itself, and blocks of text for the report.

The file may begin with front matter, YAML between two lines of `---`. Its one key is `advises`: a study whose
outcome says nothing about strategies (A/A, a sweep of learning rates) has `advises: false`.
"""

import re
from pathlib import Path

import yaml

from bench.errors import ConfigError

_FRONT_MATTER = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)

Block = tuple[str, str]  # h, p, li or pre; its text


def advises(study: Path) -> bool:
    """Return whether the results of the study in this folder may advise; true for a README that is silent.

    Raises:
        ConfigError: the front matter of the README is not the key `advises` with true or false.
    """
    path = study / "README.md"
    found = _FRONT_MATTER.match(path.read_text(encoding="utf-8")) if path.is_file() else None
    if found is None:
        return True
    try:
        node = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: front matter is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, dict) or set(node) != {"advises"} or not isinstance(node["advises"], bool):
        raise ConfigError(f"{path}: front matter: write `advises: false` (or true), and no other key")
    return node["advises"]


def blocks(text: str) -> list[Block]:
    """Parse the Markdown that a study's README needs: headings, items, paragraphs and fenced code."""
    text = _FRONT_MATTER.sub("", text, count=1) if text.startswith("---\n") else text
    found: list[Block] = []
    for i, part in enumerate(re.split(r"^```.*$\n?", text, flags=re.MULTILINE)):
        found += [("pre", part.rstrip())] if i % 2 else _prose(part)
    return found


def _prose(text: str) -> list[Block]:
    found: list[Block] = []
    paragraph: list[str] = []
    kind = "p"
    for line in [*text.splitlines(), ""]:
        stripped = line.strip().replace("`", "")
        is_heading, is_item = stripped.startswith("#"), stripped[:2] in ("- ", "* ")
        if paragraph and (not stripped or is_heading or is_item):
            found.append((kind, " ".join(paragraph)))
            paragraph = []
        if is_heading:
            found.append(("h", stripped.lstrip("# ")))
        elif stripped:
            kind = "li" if is_item else kind if paragraph else "p"
            paragraph.append(stripped[2:] if is_item else stripped)
    return found
