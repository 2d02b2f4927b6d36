"""Tokenizers, from a folder or a hub id `owner/name[@revision]`, or trained on a domain's own texts.

location ─▶ resolve ─▶ (folder or hub id, revision) ─▶ a fast tokenizer that has a pad token
texts    ─▶ byte-level BPE ─▶ tokenizer.json ─▶ the same
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cache_builder.config import expand
from cache_builder.errors import MissingError, ModelError, first_line

EOS_TOKEN = "<|end|>"
PAD_TOKEN = "<|pad|>"
GGUF = ".gguf"
"""The end of the name of a file that holds a model and its tokenizer."""
_MOST_TOKENS = 2**24


def resolve(location: str) -> tuple[str, str | None]:
    """Split a model's location into (folder, .gguf file or hub id, revision).

    Raises:
        MissingError: it looks like a folder or a file and there is none.
    """
    location = expand(location)
    if Path(location).is_dir() or is_gguf(location):
        return location, None
    name, _, revision = location.partition("@")
    if location.lower().endswith(GGUF):
        raise MissingError(
            f"model {location!r}: no such file; a .gguf file is read from this disk, so download it first"
        )
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise MissingError(f"model {location!r}: no such folder, and not a hub id of the form owner/name[@revision]")
    return name, revision or None


def is_gguf(name: str) -> bool:
    """Say whether a location is a file that holds a model and its tokenizer."""
    return name.lower().endswith(GGUF) and Path(name).is_file()


def gguf_parts(name: str) -> dict[str, Any]:
    """Return what `from_pretrained` takes for such a file.

    Raises:
        ModelError: the package that reads it is not installed.
    """
    if find_spec("gguf") is None:
        raise ModelError(f'model {name!r}: a .gguf file needs the package gguf; pip install "footsteps[gguf]"')
    return {"pretrained_model_name_or_path": str(Path(name).parent), "gguf_file": Path(name).name}


def load_tokenizer(location: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer; where it has no pad token, eos stands in (padding is masked by length, never by id).

    Raises:
        MissingError: there is none at `location`.
        ModelError: it is not a fast tokenizer, has neither pad nor eos, or an id that no cache holds.
    """
    name, revision = resolve(location)
    files = gguf_parts(name) if is_gguf(name) else {"pretrained_model_name_or_path": name, "revision": revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**files, trust_remote_code=trust_remote_code)
        tokenizer("a")  # its settings may be of any type, and are first looked at when it is used
    except (OSError, ValueError) as error:
        raise MissingError(f"tokenizer {location!r} could not be loaded: {first_line(error)}") from error
    except BaseException as error:
        # tokenizers raises nothing more special for a damaged file, and not even an Exception where its Rust panics.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"tokenizer {location!r} cannot be read: {type(error).__name__}: {first_line(error)}; get its files anew"
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(f"tokenizer {location!r} has no fast version (tokenizer.json); convert it first")
    # tokenizers writes a vocabulary by going through all ids up to its largest: at 2²⁸ that takes 4 s and a GiB.
    if (largest := max(tokenizer.get_vocab().values(), default=0)) >= _MOST_TOKENS:
        raise ModelError(
            f"tokenizer {location!r} has a token with the id {largest:,}, a cache holds ids below {_MOST_TOKENS:,}; "
            "get its files anew"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"tokenizer {location!r} has neither a pad nor an eos token; name one of them")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def checkpoint_tokenizer(checkpoints: int | Sequence[str]) -> str | None:
    """Return the last of finished checkpoints if its folder has a tokenizer, which is what it was fine-tuned with."""
    if isinstance(checkpoints, int) or not checkpoints:
        return None
    return checkpoints[-1] if (Path(expand(checkpoints[-1])) / "tokenizer.json").is_file() else None


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer on `texts`, save it to `folder` and return it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS_TOKEN, pad_token=PAD_TOKEN)
    tokenizer.save_pretrained(folder)
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 that changes when any id, merge, normaliser or special token does."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for changed_by_use in ("truncation", "padding"):
        state.pop(changed_by_use, None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps([state, special], sort_keys=True).encode()).hexdigest()
