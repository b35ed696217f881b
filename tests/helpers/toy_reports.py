"""Reports of toy studies, and a parser of their pages."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bench.report import write

CONF = Path(__file__).resolve().parents[2] / "conf"
FIGURES: dict[str, Any] = {}
for path in sorted((CONF / "figure").glob("*.yaml")):
    FIGURES |= OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[operator]
HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style></script><b>x</b>",
    "a|b $\\frac{1}{ & <b>",
    "_x%#~^{}\\",
    "[x](javascript:alert) ![y](http://z) `<b>`",
    "\" onmouseover='alert(1)' x=\"",
    "\N{RIGHT-TO-LEFT OVERRIDE}txt.exe",
    "w" * 400,
]


def write_report(folder: Path) -> Path:
    return write.write("toy", folder / "experiments", folder / "reports", FIGURES)


class Page(HTMLParser):
    """Ids, internal links, other links, images without alt text, tags and scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.n_scripts = 0
        self.silent_images = 0
        self.text = ""
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.n_scripts += tag == "script"
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if "href" in found else []
        self.silent_images += tag == "img" and not found.get("alt")
