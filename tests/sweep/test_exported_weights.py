"""An export is the run: transformers computes the same, from the same ids, by the code on its card."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.testing import assert_close
from toy_models import SHAPES, make_strategy, stems, strategy_node

from bench.config.build import find_class
from bench.data.tokenizer import EOS, MASK, PAD, load_tokenizer, train_tokenizer
from bench.errors import ConfigError, DataError
from bench.models.fill import fill
from bench.objectives.base import Objective
from bench.objectives.to_huggingface import ARCHITECTURES, architecture, other_modules
from bench.records import RunRecord, Score
from bench.sweep.export import card, load, write
from bench.tasks.probe import encode

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")


def has_our_weights(stem: str) -> bool:
    node = strategy_node(stem)
    cls = find_class(node, Objective, stem)  # type: ignore[type-abstract]
    return cls.has_weights and node["attention"] != "own"  # own: a checkpoint's, which nothing here built


STRATEGIES = [stem for stem in stems("strategy") if has_our_weights(stem)]
HEADED = [stem for stem in STRATEGIES if architecture(make_strategy(stem)).head]
DOCSTRINGS = [
    inspect.getdoc(getattr(np, name)) or "" for name in ("sum", "dot", "sort", "mean", "clip", "pad")
]
CODE = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)


@dataclass(frozen=True)
class Export:
    stem: str
    ours: Objective
    tokenizer: Path
    folder: Path

    @property
    def tokens(self) -> Tensor:
        """Real text, cut and padded as the tasks do."""
        texts = [DOCSTRINGS[0][:20], *DOCSTRINGS]
        return encode(texts, load_tokenizer(self.tokenizer), self.ours.shapes.sequence_length)

    def theirs(self, auto: str = "") -> Any:
        cls = getattr(transformers, auto or architecture(self.ours).auto)
        return cls.from_pretrained(self.folder).eval()


SCORES = [
    Score("library_probe", "accuracy", 0.75, 0.125, 800, n_labels=32),
    Score("generation", "repetition", 0.5, None, 64),
]


def record(stem: str) -> RunRecord:
    source = {"source": "docs | of\nnumpy", "licence": "BSD"}
    return RunRecord(
        run_id="0123456789ab",
        study="toy",
        status="finished",
        strategy=stem,
        model="0.2m",
        budget="1mb",
        variant="",
        seed=3,
        corpus={"text": "docstrings", "pairs": "openmoji"},
        config={"strategy": strategy_node(stem)},
        data={kind: {"provenance": source, "content_sha256": "c0ffee"} for kind in ("text", "pairs")},
        command="bench train strategy=x",
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(DOCSTRINGS, 300).save(str(path))
    return path


@torch.no_grad()
def make_export(stem: str, tokenizer: Path, folder: Path) -> Export:
    shapes = replace(SHAPES, vocab_size=300, sequence_length=32)
    ours = make_strategy(stem, shapes=shapes)
    for parameter in ours.parameters():  # far from the start, so that a difference shows
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    write(ours, tokenizer, record(stem), folder, SCORES)
    return Export(stem, ours, tokenizer, folder)


@pytest.fixture(scope="module")
def exports(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Export]:
    return {stem: make_export(stem, tokenizer, tmp_path_factory.mktemp(stem)) for stem in STRATEGIES}


@pytest.fixture
def export(request: pytest.FixtureRequest, exports: dict[str, Export]) -> Export:
    return exports[request.param]


every_export = pytest.mark.parametrize("export", STRATEGIES, indirect=True)


def run_card(export: Export, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the variables are after each piece of the card's code."""
    monkeypatch.chdir(export.folder)
    for code in CODE.findall((export.folder / "README.md").read_text()):
        variables: dict[str, Any] = {}
        exec(code, variables)  # noqa: S102 - our own card
        yield variables


# The same numbers


@pytest.mark.parametrize("export", HEADED, indirect=True)
@torch.no_grad()
def test_transformers_gives_the_same_logits_on_real_text(export: Export):
    tokens = export.tokens
    attended = tokens != PAD
    assert not attended.all()
    is_causal = architecture(export.ours).decoder
    ours = export.ours.head(export.ours.backbone(tokens, attended, causal=is_causal))
    theirs = export.theirs()(input_ids=tokens, attention_mask=attended.long()).logits.view_as(ours)
    assert ours[attended].std() > 0.1
    assert_close(theirs[attended], ours[attended], rtol=0, atol=1e-4)


@every_export
@torch.no_grad()
def test_the_code_on_the_card_runs_and_gives_the_features_of_the_tasks(
    export: Export, monkeypatch: pytest.MonkeyPatch
):
    shown = list(run_card(export, monkeypatch))
    assert type(shown[0]["model"]).__name__ == export.ours.stock_class
    (found,) = [variables for variables in shown if "features" in variables]
    tokens = encode(found["texts"], load_tokenizer(export.tokenizer), 32)
    assert_close(found["features"], export.ours.features(tokens), rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_decoder_reads_a_prefix_by_the_masks_on_the_card(
    exports: dict[str, Export], monkeypatch: pytest.MonkeyPatch
):
    export = exports["prefix_lm"]
    (found,) = [shown for shown in run_card(export, monkeypatch) if "logits" in shown]
    tokens, prefix = found["tokens"], torch.tensor([found["prefix"]])
    ours, causal = (
        export.ours.head(export.ours.backbone(tokens, **how))
        for how in ({"causal": False, "prefix": prefix}, {"causal": True})
    )
    assert_close(found["logits"], ours, rtol=0, atol=1e-4)
    assert (causal - ours).abs().max() > 1e-2  # the prefix makes the difference
    assert_close(export.theirs()(input_ids=tokens).logits, causal, rtol=0, atol=1e-4)


@every_export
@torch.no_grad()
def test_what_no_stock_class_holds_comes_back_by_the_loader(export: Export):
    if other_modules(export.ours):
        again = load(export.folder)
        assert type(again) is type(export.ours)
        assert_close(again.state_dict(), export.ours.state_dict(), rtol=0, atol=0)
        assert_close(again.features(export.tokens), export.ours.features(export.tokens), rtol=0, atol=0)
    else:
        held = {id(weight) for weight in export.ours.parameters()}
        parts = [export.ours.backbone, getattr(export.ours, "head", torch.nn.Module())]
        assert held == {id(p) for part in parts for p in part.parameters()}
        assert not list(export.folder.glob("bench.*"))
        with pytest.raises(DataError, match="transformers"):
            load(export.folder)


def test_strategies_with_more_than_text_have_weights_beyond_a_stock_class():
    assert other_modules(make_strategy("clip")) == ["log_scale", "project_image", "project_text", "vision"]
    assert "decoder" in other_modules(make_strategy("span_corruption"))
    assert other_modules(make_strategy("mixture")) == []


# The same ids


@every_export
def test_the_tokenizer_gives_the_ids_of_the_tasks(export: Export):
    theirs = transformers.AutoTokenizer.from_pretrained(export.folder)
    is_decoder = architecture(export.ours).decoder
    texts = [text[:20] for text in DOCSTRINGS]
    ids = encode(texts, load_tokenizer(export.tokenizer), 32)
    closed = [text + "[EOS]" * is_decoder for text in texts]
    assert theirs(closed, padding=True, return_tensors="pt")["input_ids"].tolist() == ids.tolist()
    cut = theirs(DOCSTRINGS, truncation=True, return_tensors="pt")["input_ids"]
    ids = encode(DOCSTRINGS, load_tokenizer(export.tokenizer), 32)
    assert cut[:, : 32 - is_decoder].tolist() == ids[:, : 32 - is_decoder].tolist()
    assert theirs.model_max_length == 32
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.mask_token_id) == (PAD, EOS, MASK)


@every_export
def test_extra_ids_are_tokens_behind_the_tokenizers_own(export: Export):
    theirs = transformers.AutoTokenizer.from_pretrained(export.folder)
    n_extra = export.ours.n_extra_tokens(export.ours.options, export.ours.shapes)
    names = [f"<extra_id_{i}>" for i in range(n_extra)]
    assert theirs.convert_tokens_to_ids(names) == [300 + i for i in range(n_extra)]
    assert len(theirs) == 300 + n_extra
    assert export.theirs("AutoModel").get_input_embeddings().num_embeddings == 300 + n_extra


def test_a_written_mask_is_the_mask_and_takes_the_space_before_it(exports: dict[str, Export]):
    theirs = transformers.AutoTokenizer.from_pretrained(exports["mlm"].folder)
    written = theirs("the [MASK] of")["input_ids"]
    expected = [*theirs("the")["input_ids"][:-1], MASK, *theirs(" of")["input_ids"]]
    assert written == expected


# Use


def test_pipelines_run_on_the_exports_that_they_are_for(exports: dict[str, Export]):
    filler = transformers.pipeline("fill-mask", model=str(exports["mlm"].folder))
    assert len(filler("Return the [MASK] of x.", top_k=3)) == 3
    writer = transformers.pipeline("text-generation", model=str(exports["clm"].folder))
    (done,) = writer("Return the", max_new_tokens=4, do_sample=False)
    assert done["generated_text"].startswith("Return the")
    assert len(done["generated_text"]) > len("Return the")


@pytest.mark.parametrize("stem", ["mlm", "mntp"])
@torch.no_grad()
def test_a_mask_is_filled_in_where_the_strategy_predicts_it(stem: str, exports: dict[str, Export]):
    export = exports[stem]
    (found,) = fill(export.folder, "Return the [MASK] of x.", 3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(export.folder)
    tokens = tokenizer("Return the [MASK] of x.", return_tensors="pt")["input_ids"]
    at = tokens[0].tolist().index(MASK) - (stem == "mntp")
    shares = export.ours.head(export.ours.backbone(tokens, causal=False))[0, at].softmax(dim=-1)
    assert [candidate.probability for candidate in found] == pytest.approx(
        shares.topk(3).values.tolist(), 1e-3
    )
    assert found[0].token == tokenizer.decode([int(shares.argmax())])


@pytest.mark.parametrize("stem", ["clm", "clip", "rtd"])
def test_an_export_without_a_masked_head_fills_in_nothing(stem: str, exports: dict[str, Export]):
    with pytest.raises(ConfigError, match="masked"):
        fill(exports[stem].folder, "Return the [MASK].", 1)


@every_export
def test_the_card_tells_the_data_the_scores_and_their_chance(export: Export):
    text = (export.folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    assert export.stem in yaml.safe_load(front)["tags"]
    assert "| library\\_probe | accuracy (32 labels) | 0.750 | 0.125 | 800 |" in body
    assert "| generation | repetition | 0.500 | – | 64 |" in body
    assert "| data (text) | docs \\| of numpy |" in body
    assert ("| data (pairs) |" in body) == (export.ours.modality == "pairs")
    assert f"`{export.ours.stock_class}`" in body
    assert all(f"`{name}`" in body for name in other_modules(export.ours))
    assert ("predicted 1 position to its left" in card(export.ours, record(export.stem), SCORES)) == bool(
        export.ours.mask_shift and ARCHITECTURES[export.ours.stock_class].masks
    )
