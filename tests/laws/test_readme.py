"""The README says what the records say, names every module, and stays short."""

import re
from pathlib import Path

import pytest

from bench.report import headline_markdown

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- headline: (\w+) -->\n(.*?)<!-- end -->", README, flags=re.DOTALL))


@pytest.mark.parametrize("study", BLOCKS)
def test_the_readme_shows_the_headline_of_the_records(study: str):
    assert BLOCKS[study] == headline_markdown(study, ROOT / "experiments")


def test_the_readme_names_every_module():
    modules = {path.name for path in (ROOT / "bench").glob("*.py")} - {"__init__.py"}
    assert sorted(name for name in modules if f"bench/{name}" not in README) == []


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 200
