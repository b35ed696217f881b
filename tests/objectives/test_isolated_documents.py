"""Every strategy that trains on text keeps attention within documents where the config asks for it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_lines import one
from toy_data import prepare
from toy_models import equal_batches, generator, make_strategy, strategy_node, text_rows, with_pretraining

from bench.config.checks import validate
from bench.data.batches import DOCUMENTS, TextRows, document_numbers
from bench.data.tokenizer import EOS
from bench.errors import ConfigError
from bench.models.transformer import EVERY, Attention
from bench.objectives.base import Objective
from bench.objectives.corruption import numbers_at_spans
from bench.training.pretrain import rows_of

OF_TEXT = [stem for stem in with_pretraining() if strategy_node(stem)["modality"] == "text"]
ISOLATING = [stem for stem in OF_TEXT if strategy_node(stem)["_target_"].startswith("bench.")]


def numbered_rows() -> dict[str, torch.Tensor]:
    rows = text_rows(4)
    rows["tokens"][:, 6] = EOS
    return rows | {DOCUMENTS: document_numbers(rows["tokens"])}


def attended(model: Objective, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Outputs of the first attention of each stack that reads whole rows of the batch."""
    outputs: list[torch.Tensor] = []
    shape = batch["tokens"].shape
    hooks = [
        module.register_forward_hook(lambda layer, given, output: outputs.append(output))
        for name, module in model.named_modules()
        if isinstance(module, Attention) and "layers.0" in name and "decoder" not in name
    ]
    with torch.no_grad():
        model.loss(batch)
    for hook in hooks:
        hook.remove()
    return [output for output in outputs if output.shape[:2] == shape]


@pytest.mark.parametrize("stem", ISOLATING)
@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_other_documents_of_a_row_change_nothing(stem: str, progress: float):
    model = make_strategy(stem)
    assert model.isolates_documents
    batch = model.corrupt_at(numbered_rows(), generator(), progress)
    is_first = batch[DOCUMENTS] == 0
    keys = [key for key in ("tokens", "originals") if key in batch]
    other = batch | {key: torch.where(is_first, 4 + (batch[key] + 1) % 60, batch[key]) for key in keys}
    before, after = attended(model, batch), attended(model, other)
    assert len(before) == (2 if "originals" in batch else 1)  # the generator of rtd, too
    is_later = (batch[DOCUMENTS] > 0)[..., None]
    for one_output, another in zip(before, after, strict=True):
        assert torch.equal(one_output * is_later, another * is_later)
        assert not torch.equal(one_output * ~is_later, another * ~is_later)
    del batch[DOCUMENTS], other[DOCUMENTS]
    across = zip(attended(model, batch), attended(model, other), strict=True)
    assert all(not torch.equal(a * is_later, b * is_later) for a, b in across)


@pytest.mark.parametrize("stem", ISOLATING)
def test_numbers_of_documents_change_nothing_else_of_a_batch(stem: str):
    model, rows = make_strategy(stem), numbered_rows()
    numbered = model.corrupt(rows, generator())
    plain = model.corrupt({"tokens": rows["tokens"]}, generator())
    assert equal_batches({key: numbered[key] for key in plain}, plain)
    assert set(numbered) - set(plain) == {DOCUMENTS}
    assert numbered[DOCUMENTS].shape == numbered["tokens"].shape


def test_a_span_has_the_number_of_its_first_token_and_a_mode_that_of_every_document():
    numbers = torch.tensor([[0, 0, 0, 1, 1, 1]])
    mask = torch.tensor([[False, False, True, True, False, True]])
    assert numbers_at_spans(numbers, mask).tolist() == [[0, 0, 0, 1, 1]]
    batch = make_strategy("ul2").corrupt(numbered_rows(), generator())
    assert (batch[DOCUMENTS][:, 0] == EVERY).all()
    assert (batch[DOCUMENTS][:, 1:] >= 0).all()


# Settings


def rows_with(tmp_path: Any, model: Objective, *overrides: str) -> tuple[TextRows, TextRows]:
    spec = one("strategy=mlm", "budget.unique_bytes=null", "sequence_length=16", *overrides)
    train, validation = rows_of(spec, model, SimpleNamespace(text=prepare(tmp_path)))  # type: ignore[arg-type]
    assert isinstance(train, TextRows)
    assert isinstance(validation, TextRows)
    return train, validation


def test_rows_are_numbered_only_where_attention_is_within_documents(tmp_path: Any):
    model, first = make_strategy("mlm"), torch.zeros(1, dtype=torch.long).numpy()
    for rows in rows_with(tmp_path, model, "attention_across_documents=false"):
        read = rows.read(first)
        assert torch.equal(read[DOCUMENTS], document_numbers(read["tokens"]))
    for rows in rows_with(tmp_path, model):
        assert set(rows.read(first)) == {"tokens"}


def test_a_strategy_that_attends_across_documents_is_refused(tmp_path: Any):
    class Plain(type(make_strategy("mlm"))):  # type: ignore[misc]
        isolates_documents = False

    model = make_strategy("mlm")
    model.__class__ = Plain
    with pytest.raises(ConfigError, match=r"attention_across_documents=false: strategy=mlm"):
        rows_with(tmp_path, model, "attention_across_documents=false")


def test_a_checkpoint_is_refused_before_it_is_read():
    config = one("strategy=mlm", "attention_across_documents=false").typed()
    with pytest.raises(ConfigError, match=r"attention_across_documents=false.*model\.name"):
        validate(replace(config, model=replace(config.model, name="x", d_model=0)))


def test_only_isolated_text_changes_the_id_of_a_run():
    for strategy, changes in (("mlm", True), ("clip", False), ("scratch", False)):
        spec = one(f"strategy={strategy}")
        assert "attention_across_documents" not in spec.science
        isolated = one(f"strategy={strategy}", "attention_across_documents=false")
        assert (isolated.run_id != spec.run_id) == changes
