"""The page that lists all studies: reports/index.html, from the summary that each report contains."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bench.analysis.format import EMPTY, Entry, Link, View, plain
from bench.errors import DataError
from bench.records import as_json, checked, read_json
from bench.report.page import Page

SUMMARY = "summary.json"
_SIGNS = "✓✗=?– "  # before the words of a verdict


@checked
@dataclass(frozen=True)
class Summary:
    """A row of the list of studies."""

    study: str
    title: str
    question: str
    runs: str
    dates: str
    verdicts: dict[str, int]  # number of each: on its claims, or against scratch if it has none
    on_claims: bool


def summary(page: Page) -> str:
    """Return a report's summary, as the text of its file."""
    question, claims = page.section("question"), page.section("claims")
    texts = question.texts if question else []
    heads = [plain(text) for kind, text in texts if kind == "h"]
    prose = [plain(text) for kind, text in texts if kind == "p"]
    judged = [view for section in page.sections for view in section.tables if "verdict" in view.header]
    return as_json(
        Summary(
            study=page.study,
            title=heads[0] if heads else page.study,
            question=first_sentence(prose[0]) if prose else "",
            runs=page.status,
            dates=page.dates,
            verdicts=_count(judged[0]) if judged else {},
            on_claims=claims is not None,
        )
    )


def first_sentence(text: str) -> str:
    """Return the text up to its first full stop or question mark, without "Question:" before it."""
    text = text.removeprefix("Question:").strip()
    text = text[:1].upper() + text[1:]
    ends = [i for mark in (". ", "? ") if (i := text.find(mark)) >= 0]
    return text[: min(ends) + 1] if ends else text


def _count(view: View) -> dict[str, int]:
    """Count verdicts by their first words: "inconclusive (one seed)" counts as inconclusive."""
    column = view.header.index("verdict")
    texts = (plain(row[column]).lstrip(_SIGNS) for row in view.rows)
    words = [text.partition(" (")[0].partition(",")[0] for text in texts]
    return dict(sorted(Counter(words).items()))


def studies_view(experiments_dir: Path, reports_dir: Path) -> View:
    """Return a row per study that has a report or records, by name.

    Raises:
        DataError: a summary is damaged.
    """
    reported = {path.parent.name: _read(path) for path in sorted(reports_dir.glob(f"*/{SUMMARY}"))}
    recorded = {path.parent.name for path in experiments_dir.glob("*/records")}
    rows = [
        _row(reported[name]) if name in reported else _unreported(experiments_dir, name)
        for name in sorted(reported.keys() | recorded)
    ]
    note = (
        "Verdicts are on the claims of a study; if it has none, on every strategy and task against the "
        "baseline without pretraining."
    )
    header = ["study", "question", "verdicts", "runs", "started"]
    return View("studies", "Studies", note, header, "lllll", rows)


def _read(path: Path) -> Summary:
    try:
        return read_json(Summary, path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not a report's summary ({error}); run `bench report` again") from error


def _row(found: Summary) -> list[Entry]:
    verdicts = ", ".join(f"{n} {word}" for word, n in found.verdicts.items())
    kind = "claims: " if found.on_claims else ""
    link = Link(found.title, f"{quote(found.study)}/report.html", found.study)
    judged = f"{kind}{verdicts}" if verdicts else EMPTY
    return [[link], found.question or EMPTY, judged, found.runs, found.dates]


def _unreported(experiments_dir: Path, name: str) -> list[Entry]:
    n = len(list((experiments_dir / name / "records").glob("*.json")))
    return [name, f"no report yet: bench report study={name}", EMPTY, f"{n} recorded", EMPTY]
