"""Answers of a causal LM, written greedily.

prompts, longest first ─▶ left-padded batches ─▶ generate, first len(tokenizer) logits only ─▶ ids up to the stop

What a model's generation_config.json asks for (a repetition penalty, say) is left out: models are compared by the same
decoding, and by the distribution that they were trained for.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cache_builder.config import TextConfig
from cache_builder.data.chat import encode
from cache_builder.data.examples import Example

GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "min_length": 0,
}
"""What every answer is written with."""
NO_CHOICE = {
    *("eos_token_id", "pad_token_id", "bos_token_id", "max_length", "max_new_tokens"),
    *("use_cache", "cache_implementation", "output_attentions", "output_hidden_states"),
    *("_from_model_config", "transformers_version"),
}
"""Settings of a generation config that say nothing of which token is chosen."""


ALONE = {"recurrent_gemma", "rwkv"}
"""Families whose state takes in the padding in front of a shorter prompt: their rows are answered one by one."""


@dataclass(frozen=True)
class Outputs:
    """What a model wrote for some rows, in their order."""

    texts: list[str]
    prompts: list[list[int]]
    """The token ids that each row's answer followed."""
    tokens: int
    """Tokens that it took, prompts not counted."""
    seconds: float
    padded_mass: float | None = None
    """Mean probability, at an answer's first token, of the head's rows that no token has; none of them is taken."""


@torch.no_grad()  # not inference_mode: what a model keeps of a pass would be of no use to a training that goes on
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> Outputs:
    """Complete prompts greedily until a stop token; what a row gets does not depend on its batch.

    `advance` is called with the number of rows after each batch.
    """
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=list(stop_ids), pad_token_id=pad_id(tokenizer), **GREEDY
    )
    masses: list[torch.Tensor] = []
    if model.config.model_type in ALONE:
        batch_size = 1
    by_length = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    texts, tokens, seconds = [""] * len(prompts), 0, 0.0
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        input_ids, attention_mask = pad_left([prompts[row] for row in rows], pad_id(tokenizer))
        known_only = _KnownTokens(len(tokenizer))
        began = time.perf_counter()
        with _no_generation_config(model):
            written: torch.Tensor = model.generate(  # type: ignore[operator]
                input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([known_only]),
            )[:, input_ids.shape[1] :].cpu()
        seconds += time.perf_counter() - began
        if known_only.padded_mass_B is not None:
            masses.append(known_only.padded_mass_B)
        for row, ids in zip(rows, written.tolist(), strict=True):
            length = next((index for index, token in enumerate(ids) if token in stop_ids), len(ids))
            tokens += min(length + 1, len(ids))
            texts[row] = str(tokenizer.decode(ids[:length], skip_special_tokens=True))
        advance(len(rows))
    padded_mass = float(torch.cat(masses).mean()) if masses else None
    return Outputs(texts, [list(prompt) for prompt in prompts], tokens, seconds, padded_mass)


def ignored_settings(model: PreTrainedModel, vocab_size: int) -> dict[str, Any]:
    """Return what the model's generation config asks for in choosing tokens, none of which `generate` does."""
    if model.generation_config is None:
        return {}
    asked: dict[str, Any] = model.generation_config.to_diff_dict()
    if asked.get("suppress_tokens") and min(asked["suppress_tokens"]) >= vocab_size:
        del asked["suppress_tokens"]  # of rows that no token has, which `generate` leaves out as well
    return {name: value for name, value in asked.items() if name not in NO_CHOICE and GREEDY.get(name) != value}


@contextmanager
def _no_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Take the model's own generation config away: what settings leave open would be filled from it."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def with_answer(example: Example, answer: str) -> Example:
    """Return the example with another text in its last assistant turn."""
    messages = [*example["messages"][:-1], {"role": "assistant", "content": answer}]
    return {**example, "messages": messages}  # type: ignore[typeddict-item]


def find_stop_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, example: Example, text: TextConfig
) -> list[int]:
    """Return the tokens that end an answer: the last of a training completion, the tokenizer's eos, and the model's.

    The model's count where the tokenizer has them as tokens of their own: a config's default id may be any word of it.
    """
    encoded = encode(example, tokenizer, text.chat_template, max_length=2**31, train_on=text.train_on)
    assert encoded is not None
    ids = {encoded.input_ids[max(np.flatnonzero(encoded.completion))]}
    if isinstance(tokenizer.eos_token_id, int):
        ids.add(tokenizer.eos_token_id)
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    declared = declared if isinstance(declared, list) else [declared]
    return sorted(ids | (set(declared) & tokenizer.added_tokens_decoder.keys()))


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the pad token, which `load_tokenizer` gives every tokenizer."""
    assert isinstance(tokenizer.pad_token_id, int), "load_tokenizer gives every tokenizer a pad token"
    return tokenizer.pad_token_id


class _KnownTokens(LogitsProcessor):
    """Leaves only the tokenizer's tokens: a head may have more rows."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.padded_mass_B: torch.Tensor | None = None
        """Of the first step, where there are such rows."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.padded_mass_B is None and scores.shape[1] > self.vocab_size:
            self.padded_mass_B = scores.float().softmax(-1)[:, self.vocab_size :].sum(-1)
        scores[:, self.vocab_size :] = -torch.inf
        return scores


def pad_left(prompts: Sequence[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the left; the mask is by length, because the pad token may be eos."""
    width = max(len(ids) for ids in prompts)
    input_ids = torch.full((len(prompts), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        attention_mask[row, width - len(ids) :] = 1
    return input_ids, attention_mask
