"""Example → token ids and completion mask. The only place where text becomes tokens, for training and for inference.

    messages ──chat template──▶  prompt │ completion │ prompt │ completion      every trained assistant turn is a
                                  each segment tokenised by itself               completion, its end of turn included
    text     ──────────────────▶  every token, eos at the end                    cut into blocks where that is asked for

Because a segment is tokenised by itself, the ids that precede a completion in training are exactly those that the
model is given when it has to write that completion.
"""

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from cache_builder.data.examples import Example
from cache_builder.data.rendering.conversation import open_conversation
from cache_builder.data.rendering.spans import segments
from cache_builder.data.rendering.uses import check_uses
from cache_builder.errors import DataError

TrainOn = Literal["all", "last"]


@dataclass(frozen=True)
class Encoded:
    """One tokenised example."""

    input_ids: list[int]
    completion: list[bool]
    """True where the token belongs to a completion."""
    truncated_tokens: int
    """How many prompt tokens were cut to meet `max_length`."""


def encode(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None,
    max_length: int,
    train_on: TrainOn = "all",
) -> Encoded | None:
    """Tokenise a whole example, cutting the middle of its prompts to fit `max_length` tokens.

    Returns None where it does not fit even with its prompts cut to two tokens each: a completion is never cut.

    Raises:
        DataError: no assistant turn, an empty one, a template that leaves something out, or that renders a turn's
            prompt differently once the turn is there; the message names the example. Or the tokenizer gives an id
            beyond its size.
    """
    parts = _tokenised(example, tokenizer, chat_template, train_on)
    overflow = sum(len(ids) for ids, _ in parts) - max_length
    truncated_tokens = max(0, overflow)
    for index, (ids, is_completion) in enumerate(parts):
        if overflow > 0 and not is_completion:
            cut = min(overflow, max(0, len(ids) - 2))
            parts[index] = (_cut_middle(ids, cut), False)
            overflow -= cut
    if overflow > 0:
        return None
    return Encoded(
        input_ids=[token for ids, _ in parts for token in ids],
        completion=[is_completion for ids, is_completion in parts for _ in ids],
        truncated_tokens=truncated_tokens,
    )


def encode_prompt(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    chat_template: str | None,
    max_length: int | None = None,
    train_on: TrainOn = "all",
) -> list[int]:
    """Tokenise what precedes the last assistant turn, as `encode` would, cut in the middle to `max_length` tokens.

    Raises:
        DataError: as `encode`.
    """
    parts = _tokenised(example, tokenizer, chat_template, train_on)
    last = max(index for index, (_, is_completion) in enumerate(parts) if is_completion)
    prompt = [token for ids, _ in parts[:last] for token in ids]
    return prompt if max_length is None else _cut_middle(prompt, max(0, len(prompt) - max_length))


def training_prompt(
    example: Example, tokenizer: PreTrainedTokenizerBase, chat_template: str | None, train_on: TrainOn = "all"
) -> tuple[int, list[int]]:
    """Return the first turn that is trained on, and the tokens before it.

    Raises:
        DataError: as `encode`.
    """
    conversation = open_conversation(example, tokenizer, chat_template)
    first = segments(conversation, conversation.trained_turns(train_on))[0]
    return first.turn, _tokenize(tokenizer, first.text)


def encode_text(
    example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int, split_documents: bool
) -> list[Encoded]:
    """Tokenise a text as the tokenizer does by itself, eos at its end; every token is one of a completion.

    A longer text than `max_length` becomes blocks, each beginning with the last token of the one before, so that every
    token but the text's first is a position once; without `split_documents` nothing is returned for it.

    Raises:
        DataError: the tokenizer has no eos, or an id beyond its size.
    """
    ids = _known(tokenizer(example["text"], verbose=False)["input_ids"], tokenizer)
    eos = _eos(tokenizer)
    ids = ids if ids and ids[-1] == eos else [*ids, eos]
    if len(ids) > max_length and not split_documents:
        return []
    starts = range(0, max(1, len(ids) - 1), max_length - 1)
    blocks = [ids[start : start + max_length] for start in starts]
    return [Encoded(block, [True] * len(block), 0) for block in blocks]


def _tokenised(
    example: Example, tokenizer: PreTrainedTokenizerBase, chat_template: str | None, train_on: TrainOn
) -> list[tuple[list[int], bool]]:
    """Return a conversation's segments: [(ids, whether it is a completion), …]."""
    conversation = open_conversation(example, tokenizer, chat_template)
    found = segments(conversation, conversation.trained_turns(train_on))
    check_uses(conversation, found)
    parts = [(_tokenize(tokenizer, segment.text), segment.is_completion) for segment in found]
    if not found[-1].ends_turn:
        parts[-1] = ([*parts[-1][0], _eos(tokenizer)], True)
    return parts


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return _known(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], tokenizer) if text else []


def _known(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Refuse ids that no model's first len(tokenizer) rows are of, which a vocabulary with gaps in its ids gives."""
    if ids and max(ids) >= len(tokenizer):
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path!r} has {len(tokenizer):,} tokens and gives the id {max(ids):,}: "
            "its ids have gaps, so no probability would be there for it; number its tokens without gaps"
        )
    return ids


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path!r} has no eos token and the chat template ends a turn with none; "
            "a student would never learn to stop"
        )
    return _known([tokenizer.eos_token_id], tokenizer)[0]


def _cut_middle(ids: list[int], cut: int) -> list[int]:
    if cut <= 0:
        return ids
    head = (len(ids) - cut + 1) // 2
    return ids[:head] + ids[head + cut :]
