"""The likeliest of the given choices, from one pass over the prompt.

    prompt ─▶ model ─▶ past keys and values ─┬─▶ choice 1 ─▶ Σ log p(choice and its end of turn)
                     └▶ first token's log p  ├─▶ choice 2 ─▶ …
                                             └─▶ …            ─▶ the largest

So 151 choices cost one prompt and 151 short completions, not 151 prompts. A model with a layer whose past is anything
but plain keys and values (a state-space or recurrent one, say) reads every prompt with every choice; the scores are the
same. All choices of a row follow the same prompt: one that is too long is cut as in training, for the longest choice.
"""

import copy
import inspect
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from cache_builder.capture.capture import gold_logp, sequence_losses
from cache_builder.config import TextConfig
from cache_builder.data.batching import collate, plan_batches
from cache_builder.data.chat import encode
from cache_builder.data.examples import Example
from cache_builder.errors import DataError, ModelError
from trainer.evaluation.generation import Outputs, pad_id, pad_left, with_answer

BATCH_TOKENS = 16_384
"""Tokens of a pass, those of the past included: what a choice costs in memory is its copy of the prompt's past."""
BATCH_LOGITS = 2**27
"""Logits of a pass: half a gigabyte."""
NEEDED = {"position_ids", "past_key_values", "logits_to_keep"}
"""Arguments without which a model cannot go on from a prompt that it has read."""
PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers of a cache that hold one key and value per token, so that rows can be picked and go on."""


@torch.no_grad()  # not inference_mode, as in generation.py
def likeliest(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    labels: Sequence[Sequence[str]],
    *,
    text: TextConfig,
    advance: Callable[[int], None] = lambda rows: None,
) -> Outputs:
    """Return the choice of each row with the highest probability, its end of turn included; ties go to the first.

    The tokens counted are those of the chosen answers, as if they had been written.

    Raises:
        DataError: a choice does not fit `text.max_length`.
        ModelError: the model gives a choice no finite probability.
    """
    sequences: list[tuple[list[int], list[int]]] = []
    prompts: list[list[int]] = []
    for example, choices in zip(examples, labels, strict=True):
        prompt, completions = choice_sequences(example, choices, tokenizer, text)
        prompts.append(prompt)
        sequences += [(prompt, completion) for completion in completions]
    owner = np.repeat(np.arange(len(labels)), [len(choices) for choices in labels])
    waiting = np.bincount(owner)

    def scored(rows: Sequence[int]) -> None:
        before = np.count_nonzero(waiting)
        np.subtract.at(waiting, owner[list(rows)], 1)
        advance(int(before - np.count_nonzero(waiting)))

    began = time.perf_counter()
    logp = completion_logp(model, sequences, len(tokenizer), pad_id(tokenizer), scored)
    seconds = time.perf_counter() - began
    if not np.isfinite(logp).all():
        name = examples[owner[np.flatnonzero(~np.isfinite(logp))[0]]]["id"]
        raise ModelError(f"example {name!r}: the model gives a choice no finite log-probability; check its weights")
    ends = np.flatnonzero(np.diff(owner)) + 1
    best = [int(np.argmax(own)) for own in np.split(logp, ends)]
    texts = [choices[index] for choices, index in zip(labels, best, strict=True)]
    tokens = sum(len(sequences[start + index][1]) for start, index in zip([0, *ends], best, strict=True))
    return Outputs(texts, prompts, tokens, seconds)


def choice_sequences(
    example: Example, choices: Sequence[str], tokenizer: PreTrainedTokenizerBase, text: TextConfig
) -> tuple[list[int], list[list[int]]]:
    """Return the one prompt that all choices follow, cut as `encode` cuts it for the longest of them, and each of them.

    Raises:
        DataError: the longest choice does not fit `text.max_length`.
    """
    uncut = text.model_copy(update={"max_length": 2**31})
    whole = [_answered(example, choice, tokenizer, uncut) for choice in choices]
    completions = [completion for _, completion in whole]
    longest = max(range(len(choices)), key=lambda index: len(completions[index]))
    prompt, completion = whole[longest]
    if len(prompt) + len(completion) > text.max_length:
        prompt, _ = _answered(example, choices[longest], tokenizer, text)
    return prompt, completions


def _answered(
    example: Example, choice: str, tokenizer: PreTrainedTokenizerBase, text: TextConfig
) -> tuple[list[int], list[int]]:
    """Return what precedes the last turn, and that turn, once it is `choice`."""
    encoded = encode(with_answer(example, choice), tokenizer, text.chat_template, text.max_length, text.train_on)
    if encoded is None:
        raise DataError(f"example {example['id']!r}: the choice {choice!r} does not fit {text.max_length} tokens")
    start = _last_turn(encoded.completion)
    return encoded.input_ids[:start], encoded.input_ids[start:]


def has_plain_past(model: PreTrainedModel) -> bool:
    """Say whether the model goes on from keys and values alone, by its forward and the cache that its config makes."""
    if NEEDED - inspect.signature(model.forward).parameters.keys():
        return False
    return all(type(layer) in PLAIN_LAYERS for layer in DynamicCache(config=model.config).layers)


def completion_logp(
    model: PreTrainedModel,
    sequences: Sequence[tuple[list[int], list[int]]],
    vocab_size: int,
    pad: int,
    scored: Callable[[Sequence[int]], None] = lambda rows: None,
) -> np.ndarray:
    """Return Σ log p(completion | prompt) of each (prompt ids, completion ids), float64; a prompt is read once.

    `scored` is called with the indices of sequences as they are done.
    """
    if not has_plain_past(model):
        return one_by_one(sequences, model, vocab_size, pad, scored)
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, (prompt, _) in enumerate(sequences):
        rows_of.setdefault(tuple(prompt), []).append(row)
    prompts = list(rows_of)
    logp = np.empty(len(sequences))
    for group in plan_batches(np.array([len(prompt) for prompt in prompts]), BATCH_TOKENS):
        chosen = [prompts[index] for index in group]
        rows = [row for prompt in chosen for row in rows_of[prompt]]
        prompt_of = np.repeat(np.arange(len(chosen)), [len(rows_of[prompt]) for prompt in chosen])
        input_ids, mask = (part.to(model.device) for part in pad_left([list(prompt) for prompt in chosen], pad))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model(
            input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        past = output.past_key_values
        if type(past) is not DynamicCache or any(type(layer) not in PLAIN_LAYERS for layer in past.layers):
            logp[rows] = one_by_one([sequences[row] for row in rows], model, vocab_size, pad)
            scored(rows)
            continue
        first = output.logits[:, -1, :vocab_size].float().log_softmax(-1)
        lengths = np.array([len(sequences[row][1]) for row in rows])
        for part in _parts(lengths, input_ids.shape[1], vocab_size):
            completions = [sequences[rows[index]][1] for index in part]
            logp[[rows[index] for index in part]] = _continued(
                model, past, mask, first, torch.from_numpy(prompt_of[part]).to(model.device), completions, pad
            )
            scored([rows[index] for index in part])
    return logp


def one_by_one(
    sequences: Sequence[tuple[list[int], list[int]]],
    model: PreTrainedModel,
    vocab_size: int,
    pad: int,
    scored: Callable[[Sequence[int]], None] = lambda rows: None,
) -> np.ndarray:
    """Return what `completion_logp` does, reading the prompt again with every completion."""
    whole = [
        (np.array([*prompt, *completion]), np.arange(len(prompt) + len(completion)) >= len(prompt))
        for prompt, completion in sequences
    ]
    logp = np.empty(len(whole))
    for rows in plan_batches(np.array([len(ids) for ids, _ in whole]), BATCH_TOKENS):
        batch = collate([whole[row] for row in rows], pad)
        logp[rows] = -sequence_losses(batch, gold_logp(model, batch, vocab_size), len(rows))
        scored(rows.tolist())
    return logp


def _parts(lengths: np.ndarray, past_tokens: int, vocab_size: int) -> Iterator[np.ndarray]:
    """Group completions so that a pass has at most BATCH_TOKENS tokens and BATCH_LOGITS logits, or one completion."""
    for part in plan_batches(lengths + past_tokens, BATCH_TOKENS):
        logits = len(part) * int(lengths[part].max()) * vocab_size
        yield from np.array_split(part, min(len(part), -(-logits // BATCH_LOGITS)))


def _continued(
    model: PreTrainedModel,
    past: DynamicCache,
    mask_PT: torch.Tensor,
    first_PV: torch.Tensor,
    prompt_of_B: torch.Tensor,
    completions: Sequence[list[int]],
    pad: int,
) -> np.ndarray:
    """Score completions, the longest first, each on its own copy of its prompt's past."""
    lengths = np.array([len(ids) for ids in completions])
    ids_BC = torch.full((len(completions), int(lengths.max())), pad)
    for row, ids in enumerate(completions):
        ids_BC[row, : len(ids)] = torch.tensor(ids)
    is_token_BC = (torch.arange(ids_BC.shape[1]) < torch.from_numpy(lengths)[:, None]).to(model.device)
    ids_BC = ids_BC.to(model.device)
    total_B = first_PV[prompt_of_B, ids_BC[:, 0]].double()
    if ids_BC.shape[1] > 1:
        own = copy.deepcopy(past)
        own.batch_select_indices(prompt_of_B)
        fed_BC = is_token_BC[:, :-1]
        prompt_mask = mask_PT[prompt_of_B]
        logits = model(
            input_ids=ids_BC[:, :-1],
            attention_mask=torch.cat([prompt_mask, fed_BC.long()], dim=1),
            position_ids=prompt_mask.sum(1, keepdim=True) + torch.arange(fed_BC.shape[1], device=model.device),
            past_key_values=own,
            use_cache=True,
        ).logits[..., : first_PV.shape[1]]
        gold_BC = logits.float().log_softmax(-1).gather(2, ids_BC[:, 1:, None])[..., 0].double()
        total_B += gold_BC.masked_fill(~is_token_BC[:, 1:], 0.0).sum(1)
    return total_B.cpu().numpy()


def _last_turn(completion: list[bool]) -> int:
    """Return where the last run of True begins."""
    end = int(np.flatnonzero(completion)[-1])
    before = np.flatnonzero(~np.array(completion[:end]))
    return int(before[-1]) + 1 if len(before) else 0
