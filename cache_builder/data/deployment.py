"""What a trained model needs beside its weights, so that others prompt it as it was trained.

folder/chat_template.jinja       the template that training rendered with; "plain" travels as its Jinja text
folder/generation_config.json    eos_token_id: every token that ended a completion, and the tokenizer's eos
                                 suppress_tokens: the ids of a head that has more rows than the tokenizer has tokens

saved folder ──AutoTokenizer──▶ apply_chat_template(turns before an answer) = that answer's prompt in training
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from cache_builder.config import TextConfig
from cache_builder.data.chat import training_prompt
from cache_builder.data.corpus import Corpus
from cache_builder.data.examples import Example, Split
from cache_builder.data.rendering.conversation import as_given
from cache_builder.data.rendering.templates import deployed_template
from cache_builder.errors import ModelError

VERIFIED_PROMPTS = 4
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Deployment:
    """A tokenizer with the template that training renders with, where generation stops, and prompts to verify both."""

    tokenizer: PreTrainedTokenizerBase
    stop_ids: list[int]
    prompts: list[tuple[Example, int, list[int]]]
    """(example, its first turn that is trained on, the tokens before that turn in training)."""
    _verified: set[str] = field(default_factory=set)

    def finish(self, folder: Path) -> None:
        """Write the generation config beside a saved model and its tokenizer, and verify what was saved.

        Raises:
            ModelError: the saved tokenizer makes other tokens of a training prompt.
        """
        if (folder / "generation_config.json").is_file():
            settings = GenerationConfig.from_pretrained(folder)
        else:
            settings = GenerationConfig()
        declared = settings.eos_token_id
        before = declared if isinstance(declared, list) else [declared] if declared is not None else []
        settings.eos_token_id = list(dict.fromkeys([*self.stop_ids, *before]))
        if settings.pad_token_id is None:
            settings.pad_token_id = self.tokenizer.pad_token_id
        if padded := padded_ids(folder, len(self.tokenizer)):
            settings.suppress_tokens = sorted({*(settings.suppress_tokens or []), *padded})
        settings.save_pretrained(folder)
        saved = hashlib.sha256()
        for name in TOKENIZER_FILES:
            saved.update((folder / name).read_bytes() if (folder / name).is_file() else b"\0")
        if saved.hexdigest() not in self._verified:
            self._verify(folder)
            self._verified.add(saved.hexdigest())

    def _verify(self, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if self.prompts and tokenizer.chat_template is None:
            raise ModelError(f"{folder}: the tokenizer saved there has no chat template, and training had one")
        for example, turn, expected in self.prompts:
            tools: Any = example.get("tools")
            got: Any = tokenizer.apply_chat_template(
                as_given(example["messages"][:turn]),
                tools=tools,
                add_generation_prompt=True,
                return_dict=False,
                **example.get("chat_template_kwargs", {}),
            )
            if got != expected:
                raise ModelError(
                    f"{folder}: the tokenizer saved there makes other tokens of the prompt of {example['id']!r} than "
                    f"training did: {tokenizer.decode(got)[-60:]!r} for {tokenizer.decode(expected)[-60:]!r}"
                )


def make_deployment(
    tokenizer: PreTrainedTokenizerBase, text: TextConfig, examples: Split, corpus: Corpus
) -> Deployment:
    """Return what travels with models that are trained on a corpus of the examples.

    Raises:
        DataError: an example cannot be encoded.
    """
    travelling = copy.deepcopy(tokenizer)
    rows = np.unique(np.linspace(0, len(examples) - 1, VERIFIED_PROMPTS).astype(int)).tolist()
    chosen = [example for example in (examples[row] for row in rows) if "text" not in example]
    if chosen:
        travelling.chat_template = deployed_template(tokenizer, text.chat_template)
    prompts = [(example, *training_prompt(example, tokenizer, text.chat_template, text.train_on)) for example in chosen]
    return Deployment(travelling, stop_ids(corpus, tokenizer), prompts)


def padded_ids(folder: Path, tokens: int) -> range:
    """Return the ids of a saved model's head that no token has: no loss reads their rows, so nothing pushes them down.

    A folder of adapters says nothing of its base's head.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size", tokens))
    return range(tokens, max(tokens, rows))


def stop_ids(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that end completions of a corpus, the most frequent first, then the tokenizer's eos."""
    completion = np.asarray(corpus.completion)
    is_end = completion.copy()
    is_end[:-1] &= ~completion[1:]
    is_end[corpus.token_offsets[1:] - 1] = completion[corpus.token_offsets[1:] - 1]
    ids, counts = np.unique(np.asarray(corpus.tokens)[is_end], return_counts=True)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    found: Sequence[int] = [int(token) for token in ids[np.argsort(-counts, kind="stable")] if int(token) in special]
    eos = [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
    return list(dict.fromkeys([*found, *eos]))
