"""Two models → whose tokenizer, which template, and how long they may read.

both have one, the same      the teacher's           `[tokenizer]` is left out
a checkpoint has one         the last checkpoint's   `tokenizer.path`
neither has weights          one is trained          `tokenizer.train_vocab_size`
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from cache_builder.config import ModelConfig, TokenizerConfig
from cache_builder.data.chat import encode, encode_text
from cache_builder.data.examples import Example, Split
from cache_builder.data.tokenizer import load_tokenizer, resolve, train_tokenizer
from cache_builder.errors import DataError, MissingError, ModelError, first_line
from cache_builder.models.adapters import adapter_at
from cache_builder.models.weights import has_weights
from trainer.starting.rows import LOOKED_AT

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
UNLIMITED = 1 << 30
LONGEST = 4096
"""Tokens of a sequence at most, where the models would read longer ones: memory grows with it."""


@dataclass(frozen=True)
class ModelFacts:
    """What a model's config says."""

    location: str
    vocabulary: int
    positions: int | None
    """Tokens that it reads at most; None where its config does not say."""
    dtype: str | None
    """Of the saved weights."""
    has_weights: bool
    has_tokenizer: bool


@dataclass(frozen=True)
class Lengths:
    """Tokens of sampled training rows, sorted, and of their completions."""

    sequences: list[int]
    completions: list[int]

    def at(self, share: float) -> int:
        """Return the length that a share of the rows does not exceed."""
        return self.sequences[min(len(self.sequences) - 1, int(share * len(self.sequences)))]

    def max_length(self, positions: Sequence[int | None]) -> int:
        """Return what `text.max_length` should be: all rows, and an eighth more, as far as the models read."""
        wanted = -(-self.sequences[-1] * 9 // 8 // 32) * 32
        return max(2, min([wanted, LONGEST, *(limit for limit in positions if limit is not None)]))


def model_facts(location: str) -> ModelFacts:
    """Read a model's config; of a hub id, its config alone is downloaded.

    Raises:
        MissingError: there is no such model.
        ModelError: transformers does not know it.
    """
    name, revision = resolve(location)
    try:
        config: Any = AutoConfig.from_pretrained(name, revision=revision).get_text_config()
    except OSError as error:
        raise MissingError(f"model {location!r} could not be loaded: {first_line(error)}") from error
    except (ValueError, KeyError) as error:
        raise ModelError(f"model {location!r}: its config.json is not read: {first_line(error)}") from error
    here = Path(name).is_dir()
    dtype = getattr(config, "dtype", None)
    return ModelFacts(
        location,
        int(config.vocab_size),
        getattr(config, "max_position_embeddings", None),
        None if dtype is None else str(dtype).removeprefix("torch."),
        not here or has_weights(Path(name)),
        not here or any((Path(name) / file).is_file() for file in TOKENIZER_FILES),
    )


def check_checkpoint(folder: str) -> None:
    """Refuse what is no checkpoint of a teacher: a model with weights, or adapters that name their base.

    Raises:
        MissingError: there is no such folder.
        ModelError: it holds neither.
    """
    if not Path(folder).is_dir():
        raise MissingError(f"--checkpoints {folder}: no such folder; a hub id can be written into teacher.checkpoints")
    if adapter_at(folder, None) is None and not (
        (Path(folder) / "config.json").is_file() and has_weights(Path(folder))
    ):
        raise ModelError(
            f"--checkpoints {folder}: expected a model, config.json and *.safetensors, or adapters with their "
            "adapter_config.json; name the folder of one checkpoint"
        )


def shared_tokenizer(teacher: ModelFacts, student: ModelFacts) -> PreTrainedTokenizerBase | None:
    """Return the teacher's tokenizer, of whose tokens the student's has the same; None where neither has any.

    Raises:
        ModelError: they have different ones, or weights and none.
    """
    having = [model for model in (teacher, student) if model.has_tokenizer]
    if not having:
        untold = [model.location for model in (teacher, student) if model.has_weights]
        if untold:
            raise ModelError(
                f"model {untold[0]!r} has weights, but its folder no tokenizer.json; save its tokenizer there"
            )
        return None
    tokenizers = [load_tokenizer(model.location) for model in having]
    prints = [_token_fingerprint(tokenizer) for tokenizer in tokenizers]
    if len(set(prints)) > 1:
        raise ModelError(
            f"teacher {teacher.location!r} has tokenizer {prints[0][:12]}…, student {student.location!r} "
            f"{prints[1][:12]}…; a student learns the teacher's tokens, so choose models of one family"
        )
    return tokenizers[0]


def _token_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 of the tokens and of how words become them; a base and its chat model end and pad otherwise."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return hashlib.sha256(json.dumps([model, tokenizer.get_vocab()], sort_keys=True).encode()).hexdigest()


def tokenizer_for(settings: TokenizerConfig, teacher: ModelConfig, train: Split) -> PreTrainedTokenizerBase:
    """Return an experiment's tokenizer; one that is to be trained is, on a part of the training text.

    Raises:
        MissingError, ModelError: there is none that can be used.
    """
    if settings.train_vocab_size is None:
        return load_tokenizer(settings.path or teacher.model, teacher.trust_remote_code)
    return trained_tokenizer(train, settings.train_vocab_size)


def trained_tokenizer(train: Split, vocabulary: int) -> PreTrainedTokenizerBase:
    """Train a tokenizer on the rows that are looked at; nothing of it stays on the disk."""
    examples = (train[row] for row in range(min(len(train), LOOKED_AT)))
    texts = ("\n".join([*(turn["content"] for turn in row["messages"]), row.get("text", "")]) for row in examples)
    with tempfile.TemporaryDirectory() as folder:
        return train_tokenizer(texts, vocabulary, Path(folder))


def find_template(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> dict[str, str]:
    """Return the `[text]` settings with which every example can be rendered.

    Raises:
        DataError: there are none; what the template makes of an example is refused by its name.
    """
    if tokenizer.chat_template is None:
        return {"chat_template": "plain"}
    try:
        _encode_all(tokenizer, examples, {})
    except DataError as refused:
        try:
            _encode_all(tokenizer, examples, {"train_on": "last"})
        except DataError:
            raise refused from None
        return {"train_on": "last"}
    return {}


def measure(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], text: dict[str, str]) -> Lengths:
    """Return how long the examples are, whole."""
    encoded = _encode_all(tokenizer, examples, text)
    return Lengths(sorted(total for total, _ in encoded), sorted(completion for _, completion in encoded))


def _encode_all(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], text: dict[str, str]
) -> list[tuple[int, int]]:
    """Return (tokens, tokens of completions) of each example."""
    found = []
    for example in examples:
        if "text" in example:
            encoded = encode_text(example, tokenizer, UNLIMITED, False)[0]
        else:
            whole = encode(
                example,
                tokenizer,
                text.get("chat_template"),
                UNLIMITED,
                "last" if text.get("train_on") == "last" else "all",
            )
            assert whole is not None, "nothing is too long for no limit"
            encoded = whole
        found.append((len(encoded.input_ids), sum(encoded.completion)))
    return found
