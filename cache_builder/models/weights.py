"""What a model's folder holds, and whether its weights are the model's, all of them and no others.

    only config, tokenizer, notes   initialised from the seed, and said so
    *.safetensors                   loaded; a tensor that lacks, is too many or of another shape is refused by name
    anything else                   refused by name: PyTorch's .bin unpickles, .gguf in a folder names no model
    saved by a step of a run        each file's digest stands in the step's stage.json, and is compared

Random weights where a checkpoint was meant are the worst of all results: everything after them runs, and means nothing.
"""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from cache_builder.data.digests import check_recorded
from cache_builder.errors import ModelError

UNREADABLE = (
    *(KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError, RuntimeError, RecursionError),
    *(AssertionError, OverflowError, MemoryError, StrictDataclassError),
)
"""What transformers and peft raise at a config that says what no model has."""
_TEXT = (".json", ".jsonl", ".txt", ".md", ".jinja", ".py", ".toml", ".yaml", ".yml", ".png", ".svg")
_VOCABULARY = ("tokenizer", "spiece", "sentencepiece", "vocab")
"""How the names of SentencePiece's `.model` files begin; other `.model` files are weights."""
_NAMED = 3
"""Tensors that a message names."""


def has_weights(folder: Path) -> bool:
    """Say whether a model's folder holds safetensors weights, rather than nothing but a config and a tokenizer.

    Raises:
        ModelError: it holds neither, but a file that may be weights in another form.
    """
    if any(folder.glob("*.safetensors*")):
        return True
    other = sorted(path.name for path in folder.iterdir() if not _says_no_weights(path))
    if other:
        raise ModelError(
            f"model {str(folder)!r} has no safetensors weights, but {other[0]!r}; expected *.safetensors, or nothing "
            "but a config and a tokenizer, which is initialised anew; convert the weights with transformers' "
            "save_pretrained, name a .gguf file itself, or take the file away"
        )
    return False


def check_as_saved(folder: Path) -> None:
    """Compare a model's files with the record of the step that saved it, if that lies beside its folder.

    Raises:
        CacheDamagedError: a file is missing or has other bytes; or the record is damaged.
    """
    check_recorded(folder.parent, f"{folder.name}/", f"the model {folder.name}")


def in_a_layer(key: str) -> bool:
    """Say whether a tensor belongs to one of a model's layers, by the number in its name."""
    return any(part.isdigit() for part in key.split("."))


def check_loaded(location: str, info: dict[str, Any]) -> None:
    """Refuse what transformers has loaded, by its loading info, unless every tensor came from the checkpoint.

    Raises:
        ModelError: the checkpoint lacks tensors of the model, has others, or some of another shape.
    """
    problems = [
        f"{len(found)} {what} ({_some(found)})"
        for what, found in (
            ("are missing", sorted(info["missing_keys"])),
            ("are not the model's", sorted(info["unexpected_keys"])),
            ("have another shape", [_shapes(*entry) for entry in sorted(info["mismatched_keys"])]),
        )
        if found
    ]
    if problems:
        raise ModelError(
            f"model {location!r}: its tensors are not those of its config.json: {'; '.join(problems)}; expected each "
            "tensor of the model once; use the config.json that it was saved with, or get it anew"
        )


def _says_no_weights(path: Path) -> bool:
    name = path.name.lower()
    if name.startswith("."):
        return True
    if path.suffix.lower() == ".model":
        return name.startswith(_VOCABULARY)
    is_text = path.suffix.lower() in _TEXT or name in ("license", "notice", "readme")
    return path.is_file() and is_text and not name.endswith(".index.json")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _shapes(name: str, found: Any, expected: Any) -> str:
    return f"{name}: {list(found)} for {list(expected)}"
