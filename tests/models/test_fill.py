"""Filling in masks: the probabilities of the model, at the mask; what cannot fill in says so."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from bench.errors import ConfigError
from bench.models.fill import Candidate, fill

transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<gap>", "the", "capital", "is", "paris", "rome"]
SHARES = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.05, 0.1, 0.5, 0.3])


@torch.no_grad()
def bert(folder: Path, *, mask: str | None = "<gap>", safe: bool = True) -> Path:
    """A BERT that predicts SHARES whatever it reads."""
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=12,
    )
    model = transformers.BertForMaskedLM(config)
    for parameter in model.parameters():
        parameter.zero_()
    model.cls.predictions.bias.copy_((SHARES + 1e-9).log())
    pieces = models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[1])
    tokenizer = Tokenizer(pieces)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names |= {"mask_token": mask} if mask else {}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    model.save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("gap", ["[MASK]", "<gap>"])
def test_the_probabilities_are_the_models_for_either_way_to_write_a_mask(gap: str, tmp_path: Path):
    (found,) = fill(bert(tmp_path), f"the capital is {gap}", 3)
    assert [candidate.token for candidate in found] == ["paris", "rome", "is"]
    assert [candidate.probability for candidate in found] == pytest.approx([0.5, 0.3, 0.1])


def test_every_mask_is_filled_in_and_no_more_tokens_than_there_are(tmp_path: Path):
    found = fill(bert(tmp_path), "[MASK] capital is [MASK]", 99)
    assert [len(candidates) for candidates in found] == [len(WORDS)] * 2
    assert found[0][0] == found[1][0] == Candidate("paris", pytest.approx(0.5))


def test_a_text_without_a_mask_or_too_long_is_refused(tmp_path: Path):
    model = bert(tmp_path)
    with pytest.raises(ConfigError, match=r"text='the capital' holds no mask"):
        fill(model, "the capital", 1)
    with pytest.raises(ConfigError, match=r"15 tokens long.*reads 12"):
        fill(model, "the " * 12 + "[MASK]", 1)


def test_a_folder_that_is_no_masked_language_model_is_refused_by_its_reason(tmp_path: Path):
    headless = tmp_path / "headless"
    transformers.AutoModel.from_pretrained(bert(headless)).save_pretrained(headless)
    (tmp_path / "empty").mkdir()
    for folder, reason in (
        (tmp_path / "nowhere", "is no folder"),
        (tmp_path / "empty", "no masked language model"),
        (headless, "no masked-LM head"),
        (bert(tmp_path / "maskless", mask=None), "no mask token"),
        (bert(tmp_path / "pickled", safe=False), "safetensors"),
    ):
        with pytest.raises(ConfigError, match=rf"model={folder}.*{reason}") as refused:
            fill(folder, "the capital is [MASK]", 1)
        assert "\n" not in str(refused.value)


def test_bytes_that_are_not_utf_8_and_weights_left_over_are_refused(tmp_path: Path):
    model = bert(tmp_path)
    with pytest.raises(ConfigError, match=r"text=caf\\udce9 \[MASK\]: not UTF-8"):
        fill(model, "caf\udce9 [MASK]", 1)
    config = (model / "config.json").read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 0')
    (model / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=r"left over; its config.json describes another model"):
        fill(model, "the capital is [MASK]", 1)
