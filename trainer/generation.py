"""Answers of a causal LM: written greedily, or the likeliest of the given choices.

prompts, longest first ─▶ left-padded batches ─▶ generate, first len(tokenizer) logits only ─▶ ids up to the stop
prompt + each choice   ─▶ encode, as in training ─▶ Σ log p(choice and its end of turn)     ─▶ the likeliest
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cache_builder.batches import collate, plan_batches
from cache_builder.capture import gold_logp, sequence_losses
from cache_builder.data import Example
from cache_builder.errors import DataError
from cache_builder.text import encode

LIKELIHOOD_BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Outputs:
    """What a model wrote for some rows, in their order."""

    texts: list[str]
    tokens: int
    """Tokens that it took, prompts not counted."""
    seconds: float


@torch.inference_mode()
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
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(stop_ids),
        pad_token_id=_pad_id(tokenizer),
    )
    known_only = LogitsProcessorList([_KnownTokens(len(tokenizer))])
    by_length = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    texts, tokens, seconds = [""] * len(prompts), 0, 0.0
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        input_ids, attention_mask = _pad_left([prompts[row] for row in rows], _pad_id(tokenizer))
        began = time.perf_counter()
        written: torch.Tensor = model.generate(  # type: ignore[operator]
            input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=settings,
            logits_processor=known_only,
        )[:, input_ids.shape[1] :].cpu()
        seconds += time.perf_counter() - began
        for row, ids in zip(rows, written.tolist(), strict=True):
            length = next((index for index, token in enumerate(ids) if token in stop_ids), len(ids))
            tokens += min(length + 1, len(ids))
            texts[row] = str(tokenizer.decode(ids[:length], skip_special_tokens=True))
        advance(len(rows))
    return Outputs(texts, tokens, seconds)


@torch.inference_mode()
def likeliest(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    labels: Sequence[Sequence[str]],
    *,
    chat_template: str | None,
    max_length: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> Outputs:
    """Return the choice of each row with the highest probability, its end of turn included; ties go to the first.

    Raises:
        DataError: a choice does not fit `max_length`.
    """
    sequences: list[tuple[np.ndarray, np.ndarray]] = []
    for example, choices in zip(examples, labels, strict=True):
        for choice in choices:
            encoded = encode(with_answer(example, choice), tokenizer, chat_template, max_length)
            if encoded is None:
                raise DataError(f"example {example['id']!r}: the choice {choice!r} does not fit {max_length} tokens")
            sequences.append((np.array(encoded.input_ids), _last_turn_only(np.array(encoded.completion))))
    owner = np.repeat(np.arange(len(labels)), [len(choices) for choices in labels])
    logp, waiting = np.empty(len(sequences)), np.bincount(owner)
    began = time.perf_counter()
    for rows in plan_batches(np.array([len(ids) for ids, _ in sequences]), LIKELIHOOD_BATCH_TOKENS):
        batch = collate([sequences[row] for row in rows], _pad_id(tokenizer))
        logp[rows] = -sequence_losses(batch, gold_logp(model, batch, len(tokenizer)))
        before = np.count_nonzero(waiting)
        np.subtract.at(waiting, owner[rows], 1)
        advance(int(before - np.count_nonzero(waiting)))
    seconds = time.perf_counter() - began
    best = [int(np.argmax(own)) for own in np.split(logp, np.flatnonzero(np.diff(owner)) + 1)]
    texts = [choices[index] for choices, index in zip(labels, best, strict=True)]
    return Outputs(texts, sum(int(completion.sum()) for _, completion in sequences), seconds)


def with_answer(example: Example, answer: str) -> Example:
    """Return the example with another text in its last assistant turn."""
    messages = [*example["messages"][:-1], {"role": "assistant", "content": answer}]
    return {**example, "messages": messages}  # type: ignore[typeddict-item]


def find_stop_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, example: Example, chat_template: str | None
) -> list[int]:
    """Return the tokens that end an answer: the last of a training completion, and every eos of tokenizer and model."""
    encoded = encode(example, tokenizer, chat_template, max_length=2**31)
    assert encoded is not None
    ids = {encoded.input_ids[max(np.flatnonzero(encoded.completion))]}
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    for more in (tokenizer.eos_token_id, declared):
        ids |= set(more) if isinstance(more, list) else {more} if more is not None else set()
    return sorted(token for token in ids if token < len(tokenizer))


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    assert isinstance(tokenizer.pad_token_id, int), "load_tokenizer gives every tokenizer a pad token"
    return tokenizer.pad_token_id


class _KnownTokens(LogitsProcessor):
    """Leaves only the tokenizer's tokens: a head may have more rows."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores[:, self.vocab_size :] = -torch.inf
        return scores


def _pad_left(prompts: Sequence[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the left; the mask is by length, because the pad token may be eos."""
    width = max(len(ids) for ids in prompts)
    input_ids = torch.full((len(prompts), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        attention_mask[row, width - len(ids) :] = 1
    return input_ids, attention_mask


def _last_turn_only(completion: np.ndarray) -> np.ndarray:
    """Keep the last run of True."""
    prompt_ends = np.flatnonzero(~completion[: np.flatnonzero(completion)[-1]])
    kept = completion.copy()
    kept[: prompt_ends[-1] + 1 if len(prompt_ends) else 0] = False
    return kept
