"""The README says what the records say, names every module, and stays short."""

import re
from pathlib import Path

import pytest

from bench.report.write import cells_markdown, claims_markdown, headline_markdown

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- (headline|cells|claims): (.*?) -->\n(.*?)<!-- end -->", README, flags=re.DOTALL)
GROUPS = ("strategy", "task", "corpus/text", "launcher", "logger", "figure")
PLACEHOLDERS = {f"conf/{group}/x.yaml" for group in GROUPS}
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
TABLES = {"headline": headline_markdown, "cells": cells_markdown, "claims": claims_markdown}


@pytest.mark.parametrize(("kind", "of", "shown"), BLOCKS, ids=[f"{kind} {of}" for kind, of, _ in BLOCKS])
def test_the_readme_shows_what_the_records_say(kind: str, of: str, shown: str):
    study, *task = of.split()
    assert shown == TABLES[kind](study, ROOT / "experiments", *task)


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES)
def test_what_the_documentation_names_exists(page: str):
    """Paths of files, and definitions named behind one: `bench/x.py` (`name`, `other`)."""
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:bench|conf|tests|docs|experiments)/[\w/.-]+\.\w+)`", text)) - PLACEHOLDERS
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    for path, names in re.findall(r"`(bench/[\w/]+\.py)`,? ?\(((?:`\w+`(?:, )?)+)\)", text):
        source = (ROOT / path).read_text(encoding="utf-8")
        missing = [
            name for name in re.findall(r"\w+", names) if not re.search(rf"\b(def|class) {name}\b", source)
        ]
        assert missing == [], path
    links = re.findall(r"\]\(([\w./-]+?)(?:#[\w-]+)?\)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
