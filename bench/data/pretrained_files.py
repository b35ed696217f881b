"""Open a Hugging Face checkpoint: find its files and convert its tokenizer to our ids. No torch.

Our ids begin with the special tokens of `bench.data.tokenizer`, followed by all other tokens of the
checkpoint in its order. `to_theirs` maps our ids back, so that data, objectives and tasks use our ids only.
Transformers is imported inside functions because its import takes seconds.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bench.data.tokenizer import BOS, EOS, MASK, PAD, SPECIAL_TOKENS
from bench.errors import ConfigError

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
NONCHARACTER = "\ufdd0"  # a code point that texts do not contain, so no text spells a special token
SPECIAL = [NONCHARACTER + token for token in SPECIAL_TOKENS]
MAX_IDS = 2**22  # of a vocabulary; the largest known one has a quarter of it
PROBE = "Some words, 42 of them, näher betrachtet."


class CheckpointError(ConfigError):
    """A checkpoint cannot be used; only its own run fails.

    Args:
        name: value of `model.name`.
        problem: what is wrong and what to change.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"model.name={name}: {problem}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder, and its tokenizer with our ids."""

    name: str
    folder: Path
    tokenizer: str = field(repr=False)  # JSON, with our ids
    to_theirs: tuple[int, ...] = field(repr=False)  # our id -> theirs
    prefix: tuple[int, ...]  # their ids before every text, such as [CLS]
    is_lossless: bool  # decoding restores the text exactly, so bits per byte are defined

    @property
    def vocab_size(self) -> int:
        """Number of our ids."""
        return len(self.to_theirs)

    @property
    def aliases(self) -> list[int]:
        """Our special ids that share their token with another id; the model must never predict them."""
        owned = _owners(self.to_theirs[: len(SPECIAL_TOKENS)])
        others = set(self.to_theirs[len(SPECIAL_TOKENS) :])
        ids = enumerate(self.to_theirs[: len(SPECIAL_TOKENS)])
        return [ours for ours, theirs in ids if owned[theirs] != ours or theirs in others]

    @property
    def architecture(self) -> str:
        """The architecture's name in config.json."""
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        named = config.get("architectures")
        return str(named[0] if isinstance(named, list) and named else config.get("model_type"))

    def described(self) -> dict[str, Any]:
        """Return name, architecture and weights' hash for the record; this reads all weights."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return {
            "name": self.name,
            "architecture": self.architecture,
            "weights_sha256": digest.hexdigest(),  # of the files' hashes, in the order of their names
        }


@lru_cache(maxsize=8)
def open_checkpoint(name: str) -> Checkpoint:
    """Find a checkpoint, in a folder or on the hub, and adapt its tokenizer.

    Raises:
        CheckpointError: it is absent or unreachable, or lacks config, fast tokenizer or safetensors.
    """
    folder = _folder(name)
    theirs = _their_tokenizer(name, folder)
    try:
        return _adapted(name, folder, theirs)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged vocabulary raises many kinds of errors
        raise CheckpointError(name, f"its tokenizer is damaged ({first_line(error)}); replace it") from error


def _adapted(name: str, folder: Path, theirs: Any) -> Checkpoint:
    """Return the checkpoint with its tokenizer in our ids, after testing it on a few words."""
    bare = theirs(PROBE, add_special_tokens=False)["input_ids"]
    if not bare:
        raise CheckpointError(name, "its tokenizer produces no tokens; choose another checkpoint")
    prefix, suffix = _frame(theirs, bare)
    roles = _roles(theirs, prefix, suffix)
    if roles is None:
        raise CheckpointError(name, "its tokenizer has no token that ends a text; choose another checkpoint")
    text, to_theirs = translate(json.loads(theirs.backend_tokenizer.to_str()), roles)
    ours = Tokenizer.from_str(text)
    ours.encode_special_tokens = True
    back = [to_theirs[i] for i in ours.encode(PROBE, add_special_tokens=False).ids]
    if back != bare or ours.get_vocab_size() != len(to_theirs):
        raise CheckpointError(name, f"its {type(theirs).__name__} does not behave as its tokenizer.json")
    is_lossless = ours.decode(ours.encode(PROBE, add_special_tokens=False).ids) == PROBE
    return Checkpoint(name, folder, text, tuple(to_theirs), tuple(prefix), is_lossless)


def translate(theirs: Mapping[str, Any], roles: Sequence[int]) -> tuple[str, list[int]]:
    """Convert a tokenizer to our ids.

    Args:
        theirs: content of a tokenizer.json: BPE, WordPiece, WordLevel or Unigram.
        roles: their ids of [PAD], [EOS], [MASK] and [BOS]. A token with several roles is read as the first of
            [EOS], [PAD], [MASK], [BOS]. A role that is the unknown token shares it.

    Returns:
        The tokenizer's JSON, and the table from our ids to theirs.
    """
    model = theirs["model"]
    vocab = model["vocab"]
    pairs = [(i, token) for i, (token, _) in enumerate(vocab)] if isinstance(vocab, list) else None
    in_model = pairs or [(id_, token) for token, id_ in vocab.items()]
    unknown = model["unk_id"] if pairs else vocab.get(model.get("unk_token"))
    owners = {id_: role for id_, role in _owners(roles).items() if id_ != unknown or role == EOS}
    inside = sorted((id_, token) for id_, token in in_model if id_ not in owners)
    known = {token for _, token in in_model}
    extra = [entry for entry in theirs["added_tokens"] if entry["id"] not in owners]
    outside = sorted((entry["id"], entry["content"]) for entry in extra if entry["content"] not in known)
    new = {token: len(SPECIAL) + i for i, (_, token) in enumerate([*inside, *outside])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [flags | {"id": i, "content": name} for i, name in enumerate(SPECIAL)]
    added += sorted((e | {"id": new[e["content"]]} for e in extra), key=lambda entry: new[entry["content"]])
    tokens = [*SPECIAL, *(token for _, token in inside)]
    ours = {"added_tokens": added, "model": model | _vocab(model, tokens, unknown, owners)}
    unused = {"post_processor": None, "truncation": None, "padding": None}
    text = json.dumps(dict(theirs) | unused | ours, ensure_ascii=False)
    return text, [*roles, *(id_ for id_, _ in [*inside, *outside])]


def _vocab(
    model: Mapping[str, Any], tokens: Sequence[str], unknown: int | None, owners: Mapping[int, int]
) -> dict[str, Any]:
    """Return the new vocabulary of a tokenizer's model and its unknown token."""
    old = model["vocab"]
    if isinstance(old, list):
        scores = dict(old)
        lowest = min(scores.values())
        at = None
        if unknown is not None:
            at = owners[unknown] if unknown in owners else tokens.index(old[unknown][0])
        return {"vocab": [[token, scores.get(token, lowest)] for token in tokens], "unk_id": at}
    renamed = {"unk_token": SPECIAL[owners[unknown]]} if unknown is not None and unknown in owners else {}
    return renamed | {"vocab": {token: i for i, token in enumerate(tokens)}}


def _owners(roles: Sequence[int]) -> dict[int, int]:
    """Map each of their special ids to the one role as which it is read."""
    owners: dict[int, int] = {}
    for role in (EOS, PAD, MASK, BOS):
        owners.setdefault(roles[role], role)
    return owners


def _folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
            raise CheckpointError(name, "no such folder; correct the path")
        folder = _downloaded(name)
    if not (folder / "config.json").is_file():
        raise CheckpointError(name, "it has no config.json; give a folder written by save_pretrained")
    if not list(folder.glob("*.safetensors")):
        pickled = [path.name for pattern in PICKLED for path in sorted(folder.glob(pattern))]
        found = f"it has only {pickled[0]}, which may hold code" if pickled else "it has no weights"
        raise CheckpointError(name, f"{found}; save it with safetensors (save_pretrained does)")
    return folder


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:  # the hub has different errors for unknown, gated and unreachable names
        problem = f"no such folder, and the hub does not provide it ({first_line(error)})"
        raise CheckpointError(name, f"{problem}; correct the name, log in, or give a folder") from error


def _their_tokenizer(name: str, folder: Path) -> Any:
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(name, "it has no tokenizer.json; save a fast tokenizer in its folder")
    from transformers import AutoTokenizer

    try:
        _check_ids(folder / "tokenizer.json")
        theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        theirs.backend_tokenizer.to_str()
    except Exception as error:  # a damaged or foreign file raises many kinds of errors
        raise CheckpointError(name, f"its tokenizer cannot be read ({first_line(error)})") from error
    return theirs


def _check_ids(path: Path) -> None:
    """Refuse damaged ids before they are used: one very large id would take minutes and much memory."""
    vocab = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
    if not ids or len(set(ids)) < len(ids) or not 0 <= min(ids) <= max(ids) < MAX_IDS:
        raise ValueError(f"its vocabulary is empty, or ids are shared, negative or above {MAX_IDS}")


def _frame(theirs: Any, bare: list[int]) -> tuple[list[int], list[int]]:
    """Return their ids before and after every text; `bare` are the ids of the probe alone."""
    full = theirs(PROBE)["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[:start], full[start + len(bare) :]


def _roles(theirs: Any, prefix: list[int], suffix: list[int]) -> list[int] | None:
    """Return their ids of our special tokens: end token if missing, unknown token for [MASK]."""
    closing = _first([*suffix[-1:], theirs.eos_token_id, theirs.sep_token_id, theirs.pad_token_id])
    if closing is None:
        return None
    roles = {
        PAD: theirs.pad_token_id,
        EOS: closing,
        MASK: _first([theirs.mask_token_id, theirs.unk_token_id]),
        BOS: _first([*prefix[:1], theirs.bos_token_id, theirs.cls_token_id]),
    }
    return [closing if roles[role] is None else roles[role] for role in range(len(SPECIAL_TOKENS))]


def _first(ids: Sequence[int | None]) -> int | None:
    return next((id_ for id_ in ids if id_ is not None), None)


def first_line(error: Exception) -> str:
    """Return a library's error as one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
