"""Numbers and tables -> text. Only this module decides how a value, an interval or a cost is written.

A view is a table of texts and links, which is made once and written as HTML, Markdown and LaTeX.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from bench.analysis.error_model import Difference
from bench.analysis.frames import Cell, Measure, Tables
from bench.analysis.stats import LEVEL, MIN_SEEDS, Interval

EMPTY = "–"  # no value; never 0
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LATEX = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "≤": r"$\le$",
    "→": r"$\rightarrow$",
    "⏎": r"$\hookleftarrow$",
    "✓": r"$\checkmark$",
    "✗": r"$\times$",
    "▲": r"$\blacktriangle$",
    "▼": r"$\blacktriangledown$",
    "△": r"$\triangle$",
    "▽": r"$\triangledown$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "\N{NO-BREAK SPACE}": "~",
    "\n": " ",
}
_LATEX |= {sup: f"$^{{{sign}}}$" for sign, sup in zip("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)}
_LATEX_SIGNS = str.maketrans(_LATEX)
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|#~$"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class Link(NamedTuple):
    """A piece of text that may lead somewhere; `title` is shown on hover."""

    text: str
    href: str = ""
    title: str = ""


Entry = str | list[Link]


@dataclass(frozen=True)
class View:
    """A table for readers. `align` has one of l, r, c per column."""

    name: str
    title: str
    note: str
    header: list[str]
    align: str
    rows: list[list[Entry]]
    anchors: list[str] = field(default_factory=list)  # one id per row, or none
    marks: list[str] = field(default_factory=list)  # a CSS class per row, or none
    best: frozenset[tuple[int, int]] = (
        frozenset()
    )  # (row, column) of the means that are clearly the best of their peers


def number(value: float, *, signed: bool = False) -> str:
    """Format a number: three decimals below 100, four digits from there on."""
    digits = "+" if signed else ""
    text = f"{value:{digits}.3f}" if abs(value) < 100 else f"{value:{digits}.4g}"
    return text.replace("-", "−")


def with_interval(interval: Interval | None, *, signed: bool = False) -> str:
    """Format `mean [low, high]`, or `mean [2 seeds]` where there are too few for an interval."""
    if interval is None:
        return EMPTY
    mean = number(interval.mean, signed=signed)
    if interval.low is None or interval.high is None:
        return f"{mean} [{n_seeds(interval.n)}]"
    return f"{mean} [{number(interval.low, signed=signed)}, {number(interval.high, signed=signed)}]"


def with_seeds(interval: Interval | None) -> str:
    """Format `mean [low, high], n = 5 seeds`, for prose."""
    if interval is None:
        return "no result"
    if interval.low is None:
        return f"{number(interval.mean)} ({n_seeds(interval.n)}, no interval)"
    return f"{with_interval(interval)}, n = {interval.n} seeds"


def n_seeds(n: int) -> str:
    """Format a number of seeds: `one seed`, `5 seeds`."""
    return "one seed" if n == 1 else f"{n} seeds"


def with_p(difference: Difference | None) -> str:
    """Format `+0.050 [+0.030, +0.070], 5 seeds each, p = 0.062`; paired seeds are called so."""
    if difference is None:
        return EMPTY
    effect = with_interval(difference.interval, signed=True)
    if not difference.is_tested:
        return effect
    kind = "paired seeds" if difference.is_paired else "seeds each"
    return f"{effect}, {difference.interval.n} {kind}, p {p_value(difference.p, equals='= ')}"


def p_value(p: float, equals: str = "") -> str:
    """Format a p value: `0.062`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{equals}{p:.3f}"


def power(value: float) -> str:
    """Format a number as a power of ten: 1234567 -> 1.2×10⁶."""
    if not value:
        return "0"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def amount(value: object) -> str:
    """Format a count or cost for a table; absent is empty, and a large one is a power of ten."""
    if value is None or value != value:
        return EMPTY
    if isinstance(value, (int, float)):
        is_whole = abs(value) >= 1000 or float(value).is_integer()
        exact = f"{value:,.0f}" if is_whole else f"{value:.3g}"
        return exact if abs(value) < 1e6 else power(float(value))
    return str(value)


def n_bytes(value: float) -> str:
    """Format bytes by powers of 1000: 4000000 -> 4 MB."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def plain(entry: Entry) -> str:
    """Return the text of an entry without its links."""
    return entry if isinstance(entry, str) else " ".join(link.text for link in entry)


def html_table(view: View) -> Markup:
    """Return a table as HTML, in a box that scrolls, with its note below."""
    name = escape(view.title)
    head = "".join(
        f'<th scope="col" class="{side}">{escape(text)}</th>'
        for text, side in zip(view.header, view.align, strict=True)
    )
    rows = "\n".join(_html_row(view, i) for i in range(len(view.rows)))
    note = f'<p class="note">{escape(view.note)}</p>\n' if view.note else ""
    return Markup(  # noqa: S704 -- every text is escaped
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n{note}"
    )


def _html_row(view: View, i: int) -> str:
    anchor = f' id="{escape(view.anchors[i])}"' if view.anchors else ""
    mark = f' class="{escape(view.marks[i])}"' if view.marks and view.marks[i] else ""
    texts = [html_entry(entry) for entry in view.rows[i]]
    texts = [f"<strong>{text}</strong>" if (i, j) in view.best else text for j, text in enumerate(texts)]
    cells = [f'<td class="{side}">{x}</td>' for x, side in zip(texts[1:], view.align[1:], strict=True)]
    return f'<tr{anchor}{mark}><th scope="row">{texts[0]}</th>{"".join(cells)}</tr>'


def html_entry(entry: Entry) -> str:
    """Return an entry as HTML: a link with a target as `a`, one with only a title as `abbr`."""
    return escape(entry) if isinstance(entry, str) else " ".join(map(_html_link, entry))


def _html_link(link: Link) -> str:
    title = f' title="{escape(link.title)}"' if link.title else ""
    if link.href:
        return f'<a href="{escape(link.href)}"{title}>{escape(link.text)}</a>'
    return f"<abbr{title}>{escape(link.text)}</abbr>" if title else escape(link.text)


def markdown_escape(text: str) -> str:
    """Return a text on one line that no Markdown renderer interprets as markup."""
    return " ".join(text.split()).translate(_MARKDOWN)


def markdown_table(view: View) -> str:
    """Return a table in Markdown's pipe syntax."""
    rule = {"l": ":--", "r": "--:", "c": ":-:"}
    lines = [view.header, *([plain(entry) for entry in row] for row in view.rows)]
    body = ["| " + " | ".join(markdown_escape(text) for text in line) + " |" for line in lines]
    body.insert(1, "| " + " | ".join(rule[side] for side in view.align) + " |")
    return "\n".join(body) + "\n"


def latex_escape(text: str) -> str:
    """Return a text that LaTeX prints as it is; each character that cannot be printed becomes `?`."""
    if not text.replace("\N{NO-BREAK SPACE}", " ").isprintable():
        text = re.sub(r"[^\S\N{NO-BREAK SPACE}]", " ", text)  # line breaks and separators of every kind
        text = "".join(c if c.isprintable() or c.isspace() else "?" for c in text)
    return text.translate(_LATEX_SIGNS)


def latex_table(view: View) -> str:
    """Return a tabular for \\input; the document has to load booktabs and amssymb."""

    def line(entries: Sequence[Entry], i: int = -1) -> str:
        texts = [latex_escape(plain(entry)) for entry in entries]
        bold = [rf"\textbf{{{text}}}" if (i, j) in view.best else text for j, text in enumerate(texts)]
        return " & ".join(bold) + r" \\"

    head = [f"% {' '.join(view.title.split())} (needs the packages booktabs and amssymb)"]
    head += ["% bold: better than each other strategy, p <= 0.05"] if view.best else []
    head += [rf"\begin{{tabular}}{{{view.align}}}", r"\toprule"]
    body = [line(view.header), r"\midrule", *(line(row, i) for i, row in enumerate(view.rows))]
    return "\n".join([*head, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten a nested mapping: {"a": {"b": 1}} -> {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = "null" if value is None else str(value)
    return flat


_ARROWS = {1: "\N{NO-BREAK SPACE}↑", -1: "\N{NO-BREAK SPACE}↓", 0: ""}


def measure_label(tables: Tables, measure: Measure) -> str:
    """Return `task: metric (labels) ↑`; the arrow points to better values.

    A task and metric of the same name are written once, and a metric that only describes has no arrow.
    """
    labels = "" if measure.n_labels is None else f" ({measure.n_labels:,} labels)"
    return f"{_names(measure)}{labels}{_ARROWS[tables.measures[measure].sign]}"


def series_label(tables: Tables, measure: Measure, name: str) -> str:
    """Return `measure_label` for several measures of a task that are drawn together under `name`."""
    return f"{_names(measure._replace(metric=name))}{_ARROWS[tables.measures[measure].sign]}"


def _names(measure: Measure) -> str:
    return ": ".join(dict.fromkeys((measure.task, measure.metric)))


def cells_anchor(tables: Tables, measure: Measure) -> str:
    """Return the HTML id of a measure's table of cells."""
    return f"cells-{list(tables.measures).index(measure)}"


def measure_link(tables: Tables, measure: Measure) -> Link:
    """Return a measure's label as a link to its table of cells."""
    return Link(measure_label(tables, measure), f"#{cells_anchor(tables, measure)}")


def cell_label(cell: Cell, between: str = ", ") -> str:
    """Format a cell: `clm, 0.2m, 4mb`."""
    return between.join(part for part in (cell.condition.label, cell.model, cell.budget) if part)


def short_label(tables: Tables, cell: Cell) -> str:
    """Return `cell_label` without the model or budget if the study has only one."""
    model = cell.model if len(tables.models) > 1 else ""
    budget = cell.budget if len(tables.budgets) > 1 else None
    return cell_label(Cell(cell.condition, model, budget))


@lru_cache(maxsize=2**16)  # cached, since every score of every run needs it
def run_anchor(run_id: str) -> str:
    """Return the HTML id of a run's row."""
    return f"run-{quote(run_id, safe='')}"


def seeds_note(seeds: Iterable[int]) -> str:
    """Return a note on the intervals of tables, for these numbers of seeds."""
    base = (
        f"Brackets: {100 * LEVEL:.0f} % t interval over new seeds, and over new items where outcomes by item "
        "are recorded (seeds and items crossed, Satterthwaite's degrees of freedom). Seeds pair only where "
        "runs share a trunk or a checkpoint; other differences are Welch's. Shares end at 0 and 1."
    )
    few = any(n < MIN_SEEDS for n in seeds)
    return base + (f" Fewer than {MIN_SEEDS} seeds have no interval and no test." if few else "")
