"""Load a Hugging Face checkpoint: files -> backbone, head and sizes, each checked against the whole model.

Only safetensors are read, and no code of a checkpoint is ever run. If a checkpoint does not fit, the error is
one line that names `model.name`. Transformers is imported late because the import takes seconds.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.config.schema import Model
from bench.data.pretrained_files import Checkpoint, CheckpointError, first_line
from bench.data.tokenizer import SPECIAL_TOKENS
from bench.models.huggingface_adapters import ClipBackbone, HuggingFaceBackbone, HuggingFaceHead

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TOLERANCE = 1e-3  # between logits computed in two ways, relative to the largest


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in the form that strategies use."""

    model: Model
    backbone: HuggingFaceBackbone
    head: nn.Module


def load(
    checkpoint: Checkpoint, *, patch_size: int, length: int, pretrained: bool, predicts: bool | None
) -> Loaded:
    """Read the weights of a checkpoint.

    Args:
        checkpoint: the files to read.
        patch_size: patch size of the vision tower that tasks fit.
        length: tokens (our ids) of the longest text.
        pretrained: False: use its architecture, with weights drawn from torch's global generator.
        predicts: load its language-model head; None: if it has one.

    Raises:
        CheckpointError: the architecture, the weights or the tokenizer cannot be used.
    """
    if predicts is None:
        try:
            return load(
                checkpoint, patch_size=patch_size, length=length, pretrained=pretrained, predicts=True
            )
        except CheckpointError:  # problems other than the head will be found again
            predicts = False
    if predicts:
        whole = _read(checkpoint, _language_model_class(checkpoint), pretrained)
        body = whole.base_model
    else:
        whole = _read(checkpoint, "AutoModel", pretrained)
        body = whole.get_encoder() if whole.config.is_encoder_decoder else whole
    backbone = _backbone(body, checkpoint)
    tokens = _probe_tokens(checkpoint, length)
    model = _probe(backbone, checkpoint, tokens, patch_size)
    head = _head(whole, backbone, checkpoint, tokens) if predicts else nn.Identity()
    return Loaded(model, backbone, head)


def _config(checkpoint: Checkpoint) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            str(checkpoint.folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        problem = f"this version of transformers has no {checkpoint.architecture} ({first_line(error)})"
        raise CheckpointError(checkpoint.name, f"{problem}; choose another checkpoint") from error
    config.use_cache = False
    return config


def _language_model_class(checkpoint: Checkpoint) -> str:
    """Return the Auto class of the head: masked if the architecture has a masked LM, else causal."""
    from transformers.models.auto import modeling_auto

    config = _config(checkpoint)
    if not config.is_encoder_decoder:
        is_decoder = getattr(config, "is_decoder", False)
        if config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not is_decoder:
            return "AutoModelForMaskedLM"
        if config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return "AutoModelForCausalLM"
    raise CheckpointError(
        checkpoint.name,
        f"{checkpoint.architecture} is not a language model of one stack, so no strategy can continue its "
        "pretraining; choose strategy=reference",
    )


def _read(checkpoint: Checkpoint, auto: str, pretrained: bool) -> "PreTrainedModel":
    import transformers

    quiet_transformers()
    config, cls = _config(checkpoint), getattr(transformers, auto)
    if not pretrained:
        return _without_pooler(cls.from_config(config, dtype=torch.float32))
    try:
        whole, report = cls.from_pretrained(
            str(checkpoint.folder),
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # damaged files and unknown architectures raise many types
        problem = f"its weights cannot be read as {checkpoint.architecture} ({first_line(error)})"
        raise CheckpointError(checkpoint.name, f"{problem}; choose another checkpoint") from error
    whole = _without_pooler(whole)
    if misfitting := misfit(whole, report):
        raise CheckpointError(checkpoint.name, f"{misfitting}; its config.json describes another model")
    return whole


def _without_pooler(whole: "PreTrainedModel") -> "PreTrainedModel":
    """Remove the pooler, which is not used and which many checkpoints lack."""
    if isinstance(getattr(whole, "pooler", None), nn.Module):
        whole.pooler = None
    return whole


def misfit(whole: "PreTrainedModel", report: dict[str, Any]) -> str | None:
    """Return which weight of a checkpoint is missing or left over; None if all fit.

    A head that is not used may be there or not, and so may the decoder of which only the encoder is used.

    Args:
        whole: the loaded model.
        report: its loading info, as `from_pretrained(output_loading_info=True)` returns it.
    """
    used = whole.get_encoder() if whole.config.is_encoder_decoder else whole
    ids = {id(weight) for weight in used.parameters()}
    names = {name for name, w in whole.named_parameters(remove_duplicate=False) if id(w) in ids}
    parts = {name for name, _ in whole.base_model.named_children()}
    bare = (name.removeprefix(f"{whole.base_model_prefix}.") for name in report["unexpected_keys"])
    for name in sorted(names & set(report["missing_keys"])):
        return f"weights of {name} are missing"
    for name in sorted(name for name in bare if name.partition(".")[0] in parts):
        return f"weights of {name} are left over"
    return None


def _backbone(body: "PreTrainedModel", checkpoint: Checkpoint) -> HuggingFaceBackbone:
    from transformers import CLIPModel

    is_clip = isinstance(body, CLIPModel)
    rows = (body.text_model if is_clip else body).get_input_embeddings().num_embeddings
    largest = max((*checkpoint.to_theirs, *checkpoint.prefix))
    if largest >= rows:
        raise CheckpointError(
            checkpoint.name,
            f"its tokenizer has the id {largest}, its embedding {rows} rows; use the tokenizer of this model",
        )
    return (ClipBackbone if is_clip else HuggingFaceBackbone)(body, checkpoint)


def _probe_tokens(checkpoint: Checkpoint, length: int) -> Tensor:
    """Return two texts that differ in their last token only: (2, T) ids."""
    n_words = checkpoint.vocab_size - len(SPECIAL_TOKENS)
    first = torch.arange(length) % n_words
    second = first.clone()
    second[-1] = (second[-1] + 1) % n_words
    return torch.stack([first, second]) + len(SPECIAL_TOKENS)


@torch.no_grad()
def _probe(backbone: HuggingFaceBackbone, checkpoint: Checkpoint, tokens: Tensor, patch_size: int) -> Model:
    """Measure the width, whether attention is causal, and the FLOPs of a text, by a forward pass."""
    length = tokens.shape[1]
    try:
        # The counter does not see the fused CPU kernel; the plain one consists of matrix products.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            hidden = backbone(tokens, causal=None)  # (2, T, D)
    except Exception as error:
        problem = f"{checkpoint.architecture} cannot read {length} tokens ({first_line(error)})"
        raise CheckpointError(
            checkpoint.name, f"{problem}; lower sequence_length, or choose another"
        ) from error
    if not hidden.isfinite().all():
        raise CheckpointError(checkpoint.name, "its hidden states are not finite; choose another checkpoint")
    backbone.is_causal = torch.equal(hidden[0, 0], hidden[1, 0])
    config = backbone.body.config.get_text_config()
    width, heads = hidden.shape[-1], config.num_attention_heads
    return Model(
        name=checkpoint.name,
        d_model=width,
        n_layers=config.num_hidden_layers,
        n_heads=heads if width % (2 * heads) == 0 else 1,  # used only by a fitted vision tower, with RoPE
        d_ff=_width_of_equal_cost(counter.get_total_flops() / 2, width, config.num_hidden_layers, length),
        patch_size=patch_size,
    )


def _width_of_equal_cost(flops: float, d_model: int, n_layers: int, length: int) -> int:
    """Return the gated feed-forward width at which our blocks need these FLOPs: `blocks_flops` inverted."""
    matrices = (flops / n_layers - 4 * length**2 * d_model) / (2 * length)
    return max(1, round((matrices - 4 * d_model**2) / (3 * d_model)))


@torch.no_grad()
def _head(
    whole: "PreTrainedModel", backbone: HuggingFaceBackbone, checkpoint: Checkpoint, tokens: Tensor
) -> HuggingFaceHead:
    """Return the head, after checking its logits against those of the whole model."""
    ids, mask = backbone.read(tokens, None)
    problem = (
        f"the head of {checkpoint.architecture} cannot be separated from its body; choose strategy=reference"
    )
    theirs = whole.eval()(input_ids=ids, attention_mask=mask).logits[:, len(checkpoint.prefix) :]
    if whole.base_model is whole:
        raise CheckpointError(checkpoint.name, problem)
    head = HuggingFaceHead(whole, checkpoint).eval()
    try:
        ours, expected = head(backbone(tokens, causal=None)), head.ours(theirs)
    except Exception as error:
        raise CheckpointError(checkpoint.name, f"{problem} ({first_line(error)})") from error
    used = ~head.duplicates
    gap = (ours - expected)[..., used].abs().max()
    if not gap <= TOLERANCE * expected[..., used].abs().max():
        raise CheckpointError(checkpoint.name, problem)
    return head


def quiet_transformers() -> None:
    """Turn off the progress bars and warnings of transformers."""
    import transformers  # late: it takes seconds

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
