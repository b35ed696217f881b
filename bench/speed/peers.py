"""Training steps of others as contenders: nanoGPT's model in a plain loop, stock classes of transformers.

All have our width, blocks, heads, vocabulary and no dropout; a feed-forward without gate is 4 D wide, one
with gate as wide as ours. They read our batches, made beforehand, so they spend no time on corruption. The
optimizer, its kernels and the schedule are each peer's own; all clip gradients to the same norm and log as
often.
"""

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from bench.data.batches import Batch
from bench.data.tokenizer import BOS, EOS, PAD
from bench.errors import ConfigError
from bench.models.cross_entropy import IGNORED
from bench.models.flops import BACKWARD_OVER_FORWARD
from bench.models.transformer import ROPE_THETA
from bench.models.vision import to_float
from bench.speed.ours import Setup, set_up
from bench.speed.settings import Facts, Pace, Task

NANOGPT_RATE, NANOGPT_BETAS = 6e-4, (0.9, 0.95)  # from its train.py
UNGATED_WIDTH = 4  # of a feed-forward that is not gated, in widths of the model
Fields = dict[str, Any]  # arguments of a model's forward


@dataclass(frozen=True)
class Stock:
    """A class of transformers, its size, and its view of our batches."""

    name: str
    config: Callable[[Setup], Any]
    fields: Callable[[Batch, Setup], Fields]


def train_stock(stock: Stock, task: Task, folder: Path, pace: Pace) -> nn.Module:
    """Train a stock class under Hugging Face's Trainer."""
    ready = set_up(task, folder)
    trainer = stock_trainer(stock, ready, folder / "trainer", callbacks=[_hand_over(pace)])
    model, first = trainer.model, trainer.train_dataset[0]
    how = ", compiled" if ready.config.trainer.compile else ""
    pace.start(_facts(f"{stock.name} under Trainer{how}", model, ready, _stock_loss(first)))
    trainer.train()
    return model  # type: ignore[no-any-return]


def stock_trainer(
    stock: Stock, ready: Setup, folder: Path, *, held_out: Sequence[Batch] = (), callbacks: Sequence[Any] = ()
) -> Any:
    """Return Hugging Face's Trainer, set up to train a stock class on the batches of one of our runs.

    Args:
        stock: the class.
        ready: the run.
        folder: where Trainer writes.
        held_out: validation batches, evaluated as often as in the run.
        callbacks: for Trainer.
    """
    import transformers  # late, since it takes seconds

    transformers.set_seed(ready.config.seed)
    return transformers.Trainer(
        model=getattr(transformers, stock.name)(stock.config(ready)),
        args=_arguments(ready, folder, validates=bool(held_out)),
        train_dataset=_Steps([stock.fields(batch, ready) for batch in ready.batches()]),
        eval_dataset=_Steps([stock.fields(batch, ready) for batch in held_out]) if held_out else None,
        data_collator=_unpack_single,
        callbacks=list(callbacks),
    )


def _arguments(ready: Setup, folder: Path, *, validates: bool) -> Any:
    """Return the arguments of Hugging Face's Trainer that correspond to one of our runs."""
    from transformers import TrainingArguments

    config = ready.config
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=ready.n_steps,
        per_device_train_batch_size=1,  # an item is a whole step
        per_device_eval_batch_size=1,
        max_grad_norm=config.optim.clip_norm,
        weight_decay=config.optim.weight_decay,
        logging_steps=config.trainer.log_every_n_steps,
        eval_strategy="steps" if validates else "no",
        eval_steps=math.ceil(ready.n_steps / config.trainer.n_validations),
        prediction_loss_only=True,
        save_strategy="no",
        remove_unused_columns=False,
        use_cpu=config.trainer.accelerator == "cpu",
        bf16=config.trainer.precision == "bf16-mixed",
        torch_compile=config.trainer.compile,
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
    )


def train_nanogpt(task: Task, folder: Path, pace: Pace) -> nn.Module:
    """Train the model of the user's copy of nanoGPT, in a loop like that of its train.py."""
    assert task.model_py is not None
    ready = set_up(task, folder)
    model = nanogpt_model(Path(task.model_py), ready).to(ready.device)
    settings, kind = ready.config.optim, ready.device.type
    optimizer = model.configure_optimizers(settings.weight_decay, NANOGPT_RATE, NANOGPT_BETAS, kind)
    batches = [_next_tokens(batch) for batch in ready.batches()]
    how = "compiled, " if ready.config.trainer.compile else ""
    facts = _facts(f"nanoGPT's model, {how}plain loop", model, ready, lambda m: m(*_on(m, batches[0]))[1])
    pace.start(facts)
    trained = torch.compile(model) if ready.config.trainer.compile else model
    for i, batch in enumerate(batches, start=1):
        tokens, targets = _on(model, batch)
        for group in optimizer.param_groups:
            group["lr"] = NANOGPT_RATE
        with ready.autocast():
            _, loss = trained(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if i % ready.config.trainer.log_every_n_steps == 0:
            print(f"iter {i}: loss {loss.item():.4f}")
        pace.step()
    return model


def nanogpt_model(path: Path, ready: Setup) -> Any:
    """Build `GPT(GPTConfig(...))` from the file at `path` at our sizes, without biases as in its train.py.

    Raises:
        ConfigError: the file is not nanoGPT's model.py.
    """
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.GPTConfig(
            block_size=ready.config.sequence_length,
            vocab_size=vocab_size(ready),
            n_layer=ready.config.model.n_layers,
            n_head=ready.config.model.n_heads,
            n_embd=ready.config.model.d_model,
            dropout=0.0,
            bias=False,
        )
        return module.GPT(config).train()
    except (AttributeError, SyntaxError, ImportError, TypeError) as error:
        raise ConfigError(f"nanogpt={path}: not nanoGPT's model.py ({error}); set it to one") from error


def step_flops(model: nn.Module, loss: Callable[[Any], Tensor]) -> float:
    """Count matrix products in one forward and backward pass, with full attention as in `bench.models.flops`.

    Torch itself counts attention on a GPU, but not on a CPU.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def forwards(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def backwards(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return BACKWARD_OVER_FORWARD * sdpa_flop_count(q, k, v)

    with FlopCounterMode(display=False, custom_mapping={attention: forwards, backward: backwards}) as counter:
        loss(model).backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    if torch.cuda.is_initialized():  # this pass is not part of a step
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return float(counter.get_total_flops())


def _facts(what: str, model: nn.Module, ready: Setup, loss: Callable[[Any], Tensor]) -> Facts:
    parameters = sum(p.numel() for p in model.parameters())
    with ready.autocast():
        return Facts(what, parameters, ready.cost.forward_tokens, step_flops(model, loss))


def _stock_loss(fields: Fields) -> Callable[[Any], Tensor]:
    def loss(model: Any) -> Tensor:
        tensors = {name: values for name, values in fields.items() if isinstance(values, Tensor)}
        moved = dict(zip(tensors, _on(model, tensors.values()), strict=True))
        return model(**(fields | moved)).loss  # type: ignore[no-any-return]

    return loss


def _on(model: nn.Module, tensors: Iterable[Tensor]) -> list[Tensor]:
    """Move tensors to the model's device."""
    device = next(model.parameters()).device
    return [values.to(device, non_blocking=True) for values in tensors]


def _next_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return (B, T) ids and (B, T) next ids; nanoGPT predicts at every token."""
    tokens = batch["tokens"]
    return tokens, tokens.roll(-1, dims=1).contiguous()


# Adapters for Trainer


class _Steps(Dataset[Fields]):
    """Batches of whole steps, made beforehand."""

    def __init__(self, batches: Sequence[Fields]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Fields:
        return self.batches[index]


def _unpack_single(items: Iterable[Fields]) -> Fields:
    (item,) = items
    return item


def _hand_over(pace: Pace) -> Any:
    from transformers import TrainerCallback

    class HandOver(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            pace.step()

    return HandOver()


# The arguments of each class


def _next_token_fields(batch: Batch, ready: Setup) -> Fields:
    return {"input_ids": batch["tokens"], "labels": batch["tokens"]}  # the class shifts them


def _masked_fields(batch: Batch, ready: Setup) -> Fields:
    """Choose as many targets as ours in each row, at random tokens."""
    tokens = batch["tokens"]
    n_targets = min(tokens.shape[1], max(1, round(ready.cost.predicted_tokens / ready.cost.rows)))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(tokens.shape, generator=generator).argsort(dim=1)[:, :n_targets]
    labels = torch.full_like(tokens, IGNORED).scatter(1, chosen, tokens.gather(1, chosen))
    return {"input_ids": tokens, "labels": labels}


def _span_fields(batch: Batch, ready: Setup) -> Fields:
    return {"input_ids": batch["tokens"], "labels": batch["targets"]}


def _pair_fields(batch: Batch, ready: Setup) -> Fields:
    images = to_float(batch["images"])
    return {"pixel_values": images, "input_ids": batch["captions"], "return_loss": True}


# The size of each class


def vocab_size(ready: Setup) -> int:
    """Return the size of our embedding, which includes the strategy's own ids."""
    return ready.objective.backbone.embedding.num_embeddings


def _gpt2(ready: Setup) -> Any:
    from transformers import GPT2Config

    model = ready.config.model
    return GPT2Config(
        vocab_size=vocab_size(ready),
        n_positions=ready.config.sequence_length,
        n_embd=model.d_model,
        n_layer=model.n_layers,
        n_head=model.n_heads,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        **_special_ids(),
        use_cache=False,
    )


def _modernbert(ready: Setup, name: str, **settings: Any) -> Any:
    import transformers

    model = ready.config.model
    return getattr(transformers, name)(
        vocab_size=vocab_size(ready),
        hidden_size=model.d_model,
        num_hidden_layers=model.n_layers,
        num_attention_heads=model.n_heads,
        intermediate_size=model.d_ff,
        max_position_embeddings=ready.config.sequence_length,
        layer_types=["full_attention"] * model.n_layers,  # as ours
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": ROPE_THETA}},
        **_special_ids(),
        cls_token_id=BOS,
        sep_token_id=EOS,
        **settings,
    )


def _modernbert_encoder(ready: Setup) -> Any:
    return _modernbert(ready, "ModernBertConfig", sparse_prediction=True)  # logits at targets only, as ours


def _modernbert_decoder(ready: Setup) -> Any:
    return _modernbert(ready, "ModernBertDecoderConfig", use_cache=False)


def _t5(ready: Setup) -> Any:
    from transformers import T5Config

    model = ready.config.model
    return T5Config(
        vocab_size=vocab_size(ready),
        d_model=model.d_model,
        d_kv=model.d_model // model.n_heads,
        d_ff=UNGATED_WIDTH * model.d_model,
        num_layers=model.n_layers,
        num_decoder_layers=model.n_layers,
        num_heads=model.n_heads,
        dropout_rate=0.0,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
        use_cache=False,
    )


def _clip(ready: Setup) -> Any:
    from transformers import CLIPConfig

    model = ready.config.model
    tower = {
        "hidden_size": model.d_model,
        "intermediate_size": UNGATED_WIDTH * model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "projection_dim": model.d_model,
    }
    length = {"vocab_size": vocab_size(ready), "max_position_embeddings": ready.config.caption_length}
    image = {"image_size": ready.data.pairs.image_size, "patch_size": model.patch_size}
    return CLIPConfig(
        text_config=tower | length | _special_ids(),
        vision_config=tower | image,
        projection_dim=model.d_model,
    )


def _special_ids() -> dict[str, int]:
    return {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}


STOCK: Mapping[str, Stock] = {
    "gpt2": Stock("GPT2LMHeadModel", _gpt2, _next_token_fields),
    "modernbert_decoder": Stock("ModernBertDecoderForCausalLM", _modernbert_decoder, _next_token_fields),
    "modernbert": Stock("ModernBertForMaskedLM", _modernbert_encoder, _masked_fields),
    "t5": Stock("T5ForConditionalGeneration", _t5, _span_fields),
    "clip": Stock("CLIPModel", _clip, _pair_fields),
}
