"""Pages and tables -> HTML and Markdown, by the templates of `report/templates`."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bench.analysis.format import Entry, View, html_entry, html_table, markdown_escape, markdown_table

# Controls except tab and line feed, marks of direction (Unicode TR36, sec. 2.11), surrogates.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
TEMPLATES = Path(__file__).resolve().parent / "templates"


def template(name: str, *, is_html: bool, **filters: Any) -> jinja2.Template:
    """Return a template in which a missing value is an error.

    Args:
        name: the template's file name.
        is_html: escape every text; Markdown has its own escapes, which are filters.
        filters: further filters by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=is_html,  # noqa: S701 -- see above
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": markdown_escape, "table": table_and_note, "html": html_table}
    environment.filters |= {"html_entry": _html_entry, "entry": markdown_entry, "code": markdown_code}
    environment.filters |= filters
    return environment.get_template(name)


def html(name: str, **shown: Any) -> str:
    """Return a page that contains its style and script; its security policy allows only these two."""
    inline = {kind: (TEMPLATES / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")}
    hashes = {f"{kind}_hash": _sha256(text) for kind, text in inline.items()}
    return visible(template(name, is_html=True).render(**shown, **inline, **hashes))


def markdown(name: str, **shown: Any) -> str:
    """Return a page as Markdown."""
    return visible(template(name, is_html=False).render(**shown))


def visible(page: str) -> str:
    """Return a page in which controls and signs that turn the direction of text are written as escapes."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), page)


def table_and_note(view: View) -> str:
    """Return a table with its note, as Markdown."""
    note = f"\n{markdown_escape(view.note)}\n" if view.note else ""
    return markdown_table(view) + note


def markdown_entry(entry: Entry) -> str:
    """Return a text with its links, as Markdown."""
    if isinstance(entry, str):
        return markdown_escape(entry)
    texts = [(markdown_escape(link.text), link.href) for link in entry]
    return " ".join(f"[{text}]({href})" if href else text for text, href in texts)


def markdown_code(text: str) -> str:
    """Return a code block whose fence is longer than every run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _html_entry(entry: Entry) -> Markup:
    return Markup(html_entry(entry))  # noqa: S704 -- every text is escaped


def _sha256(text: str) -> str:
    """Return a hash as a content security policy writes it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
