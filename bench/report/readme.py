"""A study's README -> blocks of text for the report, with its question and prediction."""

import re

Block = tuple[str, str]  # h, p, li or pre; its text


def blocks(text: str) -> list[Block]:
    """Parse the Markdown that a study's README needs: headings, items, paragraphs and fenced code."""
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
