"""A checkpoint behind our interface computes what transformers computes from the same text."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from toy_checkpoints import CAUSAL, END, LENGTH, MAKERS, MASKED, TEXTS, opened, write_checkpoint
from toy_models import OPTIM, SHAPES, generator, make_strategy, strategy_node

from bench.config.build import build
from bench.data.pretrained_files import Checkpoint, open_checkpoint
from bench.data.tokenizer import EOS, MASK, PAD, SPECIAL_TOKENS, train_tokenizer
from bench.errors import ConfigError
from bench.models.flops import blocks_flops
from bench.models.from_huggingface import Loaded
from bench.objectives.base import Core, Objective, Shapes
from bench.objectives.sampling import Sampling
from bench.objectives.to_huggingface import stock_model, write_tokenizer
from bench.tasks.probe import encode

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")
PLAIN = ["Some words, 42 of them.", "the lazy dog", "Sphinx of black quartz: näher"]
every_kind = pytest.mark.parametrize("kind", MAKERS)
every_predictor = pytest.mark.parametrize("kind", MASKED + CAUSAL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_checkpoint(kind, tmp_path_factory.mktemp(kind)) for kind in MAKERS}


def our_tokens(checkpoint: Checkpoint, texts: list[str] = PLAIN) -> Tensor:
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer)
    tokenizer.encode_special_tokens = True
    return encode(texts, tokenizer, LENGTH)


def their_inputs(folder: Path) -> dict[str, Tensor]:
    """Real text as transformers tokenises it; where its tokenizer closes no text, closed as all texts are."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [theirs(text)["input_ids"] for text in PLAIN]
    rows = [row if row[-1] in theirs.all_special_ids else [*row, theirs.eos_token_id] for row in rows]
    width = max(map(len, rows))
    pad = theirs.pad_token_id or 0
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def part_that_reads(model: Any) -> Any:
    if isinstance(model, transformers.CLIPModel):
        return model.text_model
    return model.get_encoder() if model.config.is_encoder_decoder else model


def make(kind_of_strategy: str, checkpoint: Checkpoint, loaded: Loaded) -> Objective:
    shapes = Shapes(loaded.model, checkpoint.vocab_size, LENGTH, SHAPES.caption_length, SHAPES.image_size)
    core = Core(loaded.backbone, loaded.head)  # type: ignore[arg-type]
    node = strategy_node(kind_of_strategy)
    return build(node, Objective, "strategy", shapes=shapes, optimizer=OPTIM, core=core)  # type: ignore[type-abstract]


# The same numbers


@every_kind
@torch.no_grad()
def test_hidden_states_of_real_text_are_those_of_transformers(kind: str, folders: dict[str, Path]):
    checkpoint, loaded = opened(folders[kind])
    tokens = our_tokens(checkpoint)
    found = loaded.backbone(tokens, tokens != PAD, causal=None)
    inputs = their_inputs(folders[kind])
    whole = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    expected = part_that_reads(whole)(**inputs).last_hidden_state
    n_before = len(checkpoint.prefix)
    assert expected.shape[1] == tokens.shape[1] + n_before
    kept = inputs["attention_mask"].bool()
    assert_close(found[kept[:, n_before:]], expected[:, n_before:][kept[:, n_before:]], atol=1e-5, rtol=1e-4)
    assert found.std() > 0.1


@every_kind
@torch.no_grad()
def test_every_layer_of_real_text_is_that_of_transformers(kind: str, folders: dict[str, Path]):
    checkpoint, loaded = opened(folders[kind])
    tokens = our_tokens(checkpoint)
    found = loaded.backbone(tokens, tokens != PAD, causal=None, every_layer=True)
    inputs = their_inputs(folders[kind])
    whole = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    theirs = part_that_reads(whole)(**inputs, output_hidden_states=True)
    assert len(found) == loaded.model.n_layers + 1
    expected = torch.stack([*theirs.hidden_states[:-1], theirs.last_hidden_state])
    n_before, kept = len(checkpoint.prefix), inputs["attention_mask"].bool()
    real = kept[:, n_before:]
    assert_close(found[:, real], expected[:, :, n_before:][:, real], atol=1e-5, rtol=1e-4)


@every_predictor
@torch.no_grad()
def test_logits_of_real_text_are_those_of_transformers(kind: str, folders: dict[str, Path]):
    checkpoint, loaded = opened(folders[kind], predicts=True)
    tokens = our_tokens(checkpoint)
    found = loaded.head(loaded.backbone(tokens, tokens != PAD, causal=None))  # (B, T, V)
    auto = transformers.AutoModelForCausalLM if kind in CAUSAL else transformers.AutoModelForMaskedLM
    theirs = auto.from_pretrained(folders[kind]).eval()(**their_inputs(folders[kind])).logits
    expected = theirs[:, len(checkpoint.prefix) :].log_softmax(dim=-1)
    kept, targets = tokens != PAD, torch.tensor(checkpoint.to_theirs)[tokens]
    nll = found.log_softmax(dim=-1).gather(2, tokens[:, :, None])
    assert_close(nll[kept], expected.gather(2, targets[:, :, None])[kept], atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_an_exported_run_comes_back_as_what_it_was(tmp_path: Path):
    train_tokenizer(TEXTS, 300).save(str(tmp_path / "tokenizer.json"))
    for stem in ("mlm", "clm"):
        ours = make_strategy(stem, shapes=Shapes(SHAPES.model, 300, LENGTH, 6, 8))
        stock_model(ours).save_pretrained(tmp_path / stem)
        write_tokenizer(ours, tmp_path / "tokenizer.json", tmp_path / stem)
        checkpoint, loaded = opened(tmp_path / stem, predicts=True)
        assert checkpoint.to_theirs == tuple(range(checkpoint.vocab_size))
        assert loaded.model.d_ff == SHAPES.model.d_ff
        tokens = our_tokens(checkpoint)
        again = make(stem, checkpoint, loaded)
        assert_close(again.features(tokens), ours.features(tokens), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_reference_that_reads_from_left_to_right_has_an_exact_likelihood(folders: dict[str, Path]):
    checkpoint, loaded = opened(folders["gpt2"], predicts=None)
    model = make("reference", checkpoint, loaded)
    assert model.likelihoods == {"exact"}
    tokens = our_tokens(checkpoint, PLAIN[:1])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders["gpt2"]).eval()
    ids = torch.tensor(checkpoint.to_theirs)[tokens]
    mean = theirs(input_ids=ids, labels=ids).loss  # over all tokens but the first
    assert_close(
        model.nll(tokens, "exact", 1, generator())[0], mean * (ids.shape[1] - 1), rtol=1e-5, atol=1e-3
    )


def test_a_causal_reference_writes_what_transformers_writes(folders: dict[str, Path]):
    checkpoint, loaded = opened(folders["gpt2"], predicts=None)
    model = make("reference", checkpoint, loaded)
    prompts = our_tokens(checkpoint, PLAIN[1:2])[:, :-1]  # without its EOS
    written = model.generate(prompts, 8, Sampling(temperature=0.0, top_p=1.0), generator())[0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders["gpt2"]).eval()
    to_theirs = torch.tensor(checkpoint.to_theirs)
    words = set(to_theirs[len(SPECIAL_TOKENS) :].tolist()) - set(to_theirs[checkpoint.aliases].tolist())
    end = int(to_theirs[EOS])
    silenced = sorted(set(range(theirs.config.vocab_size)) - words - {end})
    ids = theirs.generate(
        to_theirs[prompts],
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=end,
        suppress_tokens=silenced or None,
    )
    assert to_theirs[written[written != PAD]].tolist() == ids[0, prompts.shape[1] :].tolist()
    assert model.writes == "left to right"


@pytest.mark.parametrize("kind", ["bert", "t5", "clip"])
def test_a_reference_that_does_not_has_none(kind: str, folders: dict[str, Path]):
    model = make("reference", *opened(folders[kind], predicts=None))
    assert model.likelihoods == frozenset()
    assert model.writes is None


def test_tokens_that_lose_capitals_are_not_measured_by_the_bytes_of_the_text(folders: dict[str, Path]):
    assert open_checkpoint(str(folders["gpt2"])).is_lossless
    assert not open_checkpoint(str(folders["bert"])).is_lossless


# Tokens


@every_kind
def test_our_ids_are_their_ids_by_the_table(kind: str, folders: dict[str, Path]):
    checkpoint = open_checkpoint(str(folders[kind]))
    theirs = transformers.AutoTokenizer.from_pretrained(folders[kind])
    for text in [*PLAIN, "Ünsünn 漢字 !?", "  two  spaces "]:
        ids = [checkpoint.to_theirs[i] for i in our_tokens(checkpoint, [text])[0, :-1].tolist()]
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]


@every_kind
def test_no_text_spells_a_special_token(kind: str, folders: dict[str, Path]):
    texts = [*TEXTS, "[PAD] [EOS] [BOS] <s> <pad> <mask>", f"{END} <|start|> </s>"]
    tokens = our_tokens(open_checkpoint(str(folders[kind])), texts)
    inner = tokens[:, :-1][tokens[:, 1:] != PAD]  # without the token that closes each text
    assert (inner >= len(SPECIAL_TOKENS)).all()


def test_the_special_tokens_stand_first_and_lead_to_theirs(folders: dict[str, Path]):
    theirs = transformers.AutoTokenizer.from_pretrained(folders["bert"])
    checkpoint = open_checkpoint(str(folders["bert"]))
    expected = (theirs.pad_token_id, theirs.sep_token_id, theirs.mask_token_id, theirs.cls_token_id)
    assert checkpoint.to_theirs[: len(SPECIAL_TOKENS)] == expected
    assert sorted(checkpoint.to_theirs) == list(range(len(theirs)))
    assert (checkpoint.prefix, checkpoint.aliases) == ((theirs.cls_token_id,), [])


@torch.no_grad()
def test_a_token_with_several_roles_is_predicted_as_one(folders: dict[str, Path]):
    checkpoint, loaded = opened(folders["gpt2"], predicts=True)
    end = checkpoint.to_theirs[EOS]
    assert checkpoint.to_theirs[: len(SPECIAL_TOKENS)] == (end,) * len(SPECIAL_TOKENS)
    tokens = our_tokens(checkpoint)
    shares = loaded.head(loaded.backbone(tokens, causal=True)).softmax(dim=-1)
    assert (shares[..., [PAD, MASK]] == 0).all()
    assert (shares[..., EOS] > 0).all()


# Attention


@every_kind
def test_attention_is_found_out_and_no_other_is_had(kind: str, folders: dict[str, Path]):
    checkpoint, loaded = opened(folders[kind])
    backbone, tokens = loaded.backbone, our_tokens(checkpoint)
    assert backbone.is_causal == (kind in (*CAUSAL, "clip"))
    backbone(tokens, causal=backbone.is_causal)
    fit = "strategy=clm" if backbone.is_causal else "strategy=mlm"
    prefix = torch.ones(len(tokens), dtype=torch.long)
    for wish in ({"causal": not backbone.is_causal}, {"causal": None, "prefix": prefix}):
        with pytest.raises(ConfigError, match=f"model.name=.*{fit}"):
            backbone(tokens, **wish)


@torch.no_grad()
def test_features_do_not_depend_on_padding(folders: dict[str, Path]):
    for kind, folder in folders.items():
        checkpoint, loaded = opened(folder)
        model = make("reference", checkpoint, loaded)
        tokens = our_tokens(checkpoint)
        together = model.features(F.pad(tokens, (0, 3)))
        for row, expected in zip(tokens, together, strict=True):
            assert_close(model.features(row[row != PAD][None])[0], expected, atol=1e-5, rtol=1e-4, msg=kind)


# Training on


@every_predictor
def test_what_trains_on_learns_with_all_its_weights(kind: str, folders: dict[str, Path]):
    checkpoint, loaded = opened(folders[kind], predicts=True)
    model = make("clm" if kind in CAUSAL else "mlm", checkpoint, loaded).train()
    tokens = torch.randint(len(SPECIAL_TOKENS), checkpoint.vocab_size, (8, LENGTH), generator=generator())
    batch = model.corrupt({"tokens": tokens}, generator())
    first, again = (model.loss(batch) for _ in range(2))
    assert torch.equal(first.sum, again.sum)  # no dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.sum.backward()
        if not losses:
            silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
            assert silent == []
        optimizer.step()
        losses.append(float(loss.sum.detach()))
    assert losses[-1] < 0.9 * losses[0]


@every_predictor
@torch.no_grad()
def test_the_flops_counted_are_those_of_the_checkpoints_matrices(kind: str, folders: dict[str, Path]):
    _, loaded = opened(folders[kind], predicts=True)
    tokens = torch.full((1, LENGTH), len(SPECIAL_TOKENS))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loaded.backbone(tokens, causal=None)
    model = loaded.model
    rounding = model.n_layers * 2 * LENGTH * 3 * model.d_model / 2  # half a unit of the feed-forward's width
    assert abs(blocks_flops(model, LENGTH) - counter.get_total_flops()) <= rounding + 1


def test_gpt2s_feed_forward_of_four_widths_is_a_gated_one_of_eight_thirds(folders: dict[str, Path]):
    assert opened(folders["gpt2"])[1].model.d_ff == round(8 * 32 / 3)


def test_drawn_anew_it_is_the_same_architecture_with_other_weights(folders: dict[str, Path]):
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(opened(folders["bert"], pretrained=False)[1])
    given = opened(folders["bert"])[1]
    weights = [loaded.backbone.state_dict() for loaded in drawn]
    assert_close(weights[0], weights[1], rtol=0, atol=0)
    names = given.backbone.state_dict().keys()
    assert all(w.keys() == names for w in weights)
    key = next(name for name in names if name.endswith("word_embeddings.weight"))
    assert not torch.equal(weights[0][key], weights[2][key])
    assert not torch.equal(weights[0][key], given.backbone.state_dict()[key])
    assert drawn[0].model == given.model


# Images


@torch.no_grad()
def test_clip_embeds_images_and_texts_as_transformers_does(folders: dict[str, Path]):
    checkpoint, loaded = opened(folders["clip"])
    model = make("reference", checkpoint, loaded)
    theirs = transformers.CLIPModel.from_pretrained(folders["clip"]).eval()
    texts = theirs.get_text_features(**their_inputs(folders["clip"])).pooler_output
    assert_close(model.embed_texts(our_tokens(checkpoint)), F.normalize(texts, dim=-1), atol=1e-5, rtol=1e-4)
    images = torch.randint(256, (3, 24, 24, 3), generator=generator(), dtype=torch.uint8)
    processor = transformers.CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    pixels = processor([image.numpy() for image in images], return_tensors="pt")["pixel_values"]
    expected = F.normalize(theirs.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    assert_close(model.embed_images(images), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_an_image_of_another_size_is_resized(folders: dict[str, Path]):
    model = make("reference", *opened(folders["clip"]))
    colour = torch.tensor([200, 30, 90], dtype=torch.uint8)
    small, fitting = (model.embed_images(colour.expand(1, size, size, 3)) for size in (10, 24))
    assert_close(small, fitting, atol=1e-4, rtol=1e-3)


def test_only_a_checkpoint_with_two_towers_has_a_joint_space(folders: dict[str, Path]):
    assert not hasattr(make("reference", *opened(folders["bert"])), "embed_images")
