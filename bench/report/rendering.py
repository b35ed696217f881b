"""Open the templates of `report/templates`, all in the same way."""

from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).resolve().parent / "templates"


def template(name: str, *, is_html: bool, **filters: Any) -> jinja2.Template:
    """A template in which a missing value is an error.

    Args:
        name: of its file.
        is_html: escape every text; Markdown has its own escapes, which are filters.
        filters: by name, beside jinja's own.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=is_html,  # noqa: S701 -- see above
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
