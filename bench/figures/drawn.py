"""Figures of a study, drawn: name, title, caption and bytes of each, as the report shows them."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.analysis.table import Tables
from bench.build import build
from bench.errors import ConfigError, DataError, in_brief
from bench.figures.base import Figure, render


@dataclass(frozen=True)
class Drawn:
    """A figure as it goes into the page; `images` by suffix: svg, png, pdf."""

    name: str
    title: str
    caption: str
    images: Mapping[str, bytes]

    @property
    def data_uri(self) -> str:
        """The SVG, for an `img` that needs no file beside the page."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.images['svg']).decode()}"


def draw_all(nodes: Mapping[str, Any], tables: Tables) -> tuple[list[Drawn], list[str]]:
    """The figures that apply to the study, and a warning for each whose data is damaged.

    Args:
        nodes: a `_target_` node per figure, by name.
        tables: the study.

    Raises:
        ConfigError: a figure that cannot be built, or whose name is no file name.
    """
    drawn: list[Drawn] = []
    warnings: list[str] = []
    for name, node in nodes.items():
        if not name.isidentifier():
            raise ConfigError(f"figure.{name}: a figure's name is a file name; use letters, digits and '_'")
        figure = build(node, Figure, f"figure.{name}")  # type: ignore[type-abstract]
        try:
            if figure.applies(tables):
                images = render(figure, tables, name)
                drawn.append(Drawn(name, figure.title, figure.caption(tables), images))
        except DataError as error:
            warnings.append(f"Figure {name} left out: {in_brief(error)}")
    return drawn, warnings
