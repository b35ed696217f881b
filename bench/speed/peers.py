"""Others' training steps as contenders: nanoGPT's model in a plain loop, stock classes under `Trainer`.

Each is fed the batches that ours are, ready-made: a peer pays for no corruption. The optimizer, its kernels
and the schedule are each peer's own; all clip gradients to the same norm and log as often.
"""

import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from bench.data.batches import Batch
from bench.errors import ConfigError
from bench.models.flops import BACKWARD_OVER_FORWARD
from bench.speed.contract import Facts, Pace, Task
from bench.speed.ours import Setup, set_up
from bench.speed.stock import Fields, Stock, vocab_size

NANOGPT_RATE, NANOGPT_BETAS = 6e-4, (0.9, 0.95)  # its train.py's


def train_stock(stock: Stock, task: Task, folder: Path, pace: Pace) -> nn.Module:
    """A stock class under Hugging Face's Trainer."""
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
    """Hugging Face's Trainer, ready to train a stock class on the batches of a run of ours.

    Args:
        stock: the class.
        ready: the run.
        folder: to write into.
        held_out: batches to measure the loss on, as often as the run does.
        callbacks: of transformers.
    """
    import transformers  # late: it takes seconds

    transformers.set_seed(ready.config.seed)
    place = ready.config.trainer
    return transformers.Trainer(
        model=getattr(transformers, stock.name)(stock.config(ready)),
        args=transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=ready.n_steps,
            per_device_train_batch_size=1,  # an item is a whole step
            per_device_eval_batch_size=1,
            max_grad_norm=ready.config.optim.clip_norm,
            weight_decay=ready.config.optim.weight_decay,
            logging_steps=ready.config.logger.log_every_n_steps,
            eval_strategy="steps" if held_out else "no",
            eval_steps=math.ceil(ready.n_steps / ready.config.trainer.n_validations),
            prediction_loss_only=True,
            save_strategy="no",
            remove_unused_columns=False,
            use_cpu=place.accelerator == "cpu",
            bf16=place.precision == "bf16-mixed",
            torch_compile=place.compile,
            report_to=[],
            disable_tqdm=True,
            seed=ready.config.seed,
        ),
        train_dataset=_Steps([stock.fields(batch, ready) for batch in ready.batches()]),
        eval_dataset=_Steps([stock.fields(batch, ready) for batch in held_out]) if held_out else None,
        data_collator=_the_only_one,
        callbacks=list(callbacks),
    )


def train_nanogpt(task: Task, folder: Path, pace: Pace) -> nn.Module:
    """The model of the user's own copy of nanoGPT, in a loop as its train.py's."""
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
        if i % ready.config.logger.log_every_n_steps == 0:
            print(f"iter {i}: loss {loss.item():.4f}")
        pace.step()
    return model


def nanogpt_model(path: Path, ready: Setup) -> Any:
    """`GPT(GPTConfig(...))` of the file at `path`, at our sizes, without biases, as its train.py has it.

    Raises:
        ConfigError: it is not nanoGPT's.
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
        raise ConfigError(f"nanogpt={path}: not nanoGPT's model.py ({error})") from error


def step_flops(model: nn.Module, loss: Callable[[Any], Tensor]) -> float:
    """Of matrix products in one forward and backward pass, attention in full, as `bench.models.flops` counts.

    On a GPU torch knows all kernels of attention.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which torch does not count
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def forwards(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def backwards(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return BACKWARD_OVER_FORWARD * sdpa_flop_count(q, k, v)

    with FlopCounterMode(display=False, custom_mapping={attention: forwards, backward: backwards}) as counter:
        loss(model).backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    if torch.cuda.is_initialized():  # what was counted is no step
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
    """Where the model is."""
    device = next(model.parameters()).device
    return [values.to(device, non_blocking=True) for values in tensors]


def _next_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, T) ids, and (B, T) the ids that follow: nanoGPT predicts at every position."""
    tokens = batch["tokens"]
    return tokens, tokens.roll(-1, dims=1).contiguous()


# What Trainer needs


class _Steps(Dataset[Fields]):
    """Whole steps, ready-made."""

    def __init__(self, batches: Sequence[Fields]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Fields:
        return self.batches[index]


def _the_only_one(items: Iterable[Fields]) -> Fields:
    (item,) = items
    return item


def _hand_over(pace: Pace) -> Any:
    from transformers import TrainerCallback

    class HandOver(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            pace.step()

    return HandOver()
