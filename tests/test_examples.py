"""The examples in the docstrings of base classes run as they are printed."""

import hashlib
import inspect
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_lines import one
from omegaconf import MISSING
from toy_runs import toy_tables

from bench.config.build import find_options
from bench.data.corpora import base as corpora
from bench.data.corpora.base import Document, Pair, PairCorpus, TextCorpus
from bench.report.figures.base import Figure
from bench.report.figures.style import wrapped
from bench.sweep.launchers.base import Launcher


def example(base: type, **names: Any) -> type:
    """The class that is printed after "::" in a docstring."""
    code = textwrap.dedent((inspect.getdoc(base) or "").split("::\n", 1)[1])
    space: dict[str, Any] = vars(corpora) | {base.__name__: base, "dataclass": dataclass, "MISSING": MISSING}
    exec(code, space | names, found := dict(space | names))  # noqa: S102 - our own docstring
    return found[re.findall(r"^class (\w+)", code, re.M)[0]]


def made(cls: Any, **options: Any) -> Any:
    return cls(find_options(cls.Options, options, "x"))


def test_a_corpus_of_lines(tmp_path: Path):
    path = tmp_path / "lines.txt"
    path.write_text("one\ntwo\n")
    corpus = made(example(TextCorpus), path=str(path))
    assert list(corpus.documents()) == [Document("one", "line 0"), Document("two", "line 1")]
    assert corpus.fingerprint() == {"sha256": hashlib.sha256(b"one\ntwo\n").hexdigest()}
    assert set(corpus.provenance()) == {"source", "licence"}


def test_a_corpus_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cls = example(PairCorpus)
    monkeypatch.setattr(cls, "__abstractmethods__", frozenset())  # the two methods that it leaves to `Lines`
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 8, 8, 3), np.uint8), captions=["black"])
    [pair] = made(cls, path=str(tmp_path / "a.npz"), image_size=8).pairs()
    assert isinstance(pair, Pair)
    assert (pair.caption, pair.image.shape) == ("black", (8, 8, 3))


def test_a_figure():
    figure = made(example(Figure, wrapped=wrapped), log=True)
    assert figure.draw(toy_tables()).axes[0].get_yscale() == "log"
    assert "runs" in figure.caption(toy_tables())


def test_a_launcher():
    spec, told = one("strategy=clm"), []
    launcher = made(example(Launcher, run_one=lambda text, threads: "finished"))
    display = SimpleNamespace(finish=lambda spec, status: told.append(status))
    assert launcher.launch([spec], [spec], display) == {spec.run_id: "finished"}
    assert told == ["finished"]
