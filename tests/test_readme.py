"""The README says what the records say, names every module, and stays short."""

import re
from pathlib import Path

import pytest

from bench.report.write import cells_markdown, claims_markdown, headline_markdown

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- (headline|cells|claims): (.*?) -->\n(.*?)<!-- end -->", README, flags=re.DOTALL)
TABLES = {"headline": headline_markdown, "cells": cells_markdown, "claims": claims_markdown}


@pytest.mark.parametrize(("kind", "of", "shown"), BLOCKS, ids=[f"{kind} {of}" for kind, of, _ in BLOCKS])
def test_the_readme_shows_what_the_records_say(kind: str, of: str, shown: str):
    study, *task = of.split()
    assert shown == TABLES[kind](study, ROOT / "experiments", *task)


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 200
