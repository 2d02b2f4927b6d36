"""Example → token ids and completion mask. The only place where text becomes tokens, for training and for inference.

    messages ──chat template──▶  prompt │ completion │ prompt │ completion      every assistant turn is a completion,
                                  each segment tokenised by itself               its end-of-turn token included

Because a segment is tokenised by itself, the ids that precede a completion in training are exactly those that the
model is given when it has to write that completion. Where a template has no place for a system message, it opens the
first user message, an empty line between them.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from cache_builder.data.examples import Example, Message
from cache_builder.errors import DataError

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.content }}"
    "{{ eos_token if message.role == 'assistant' else '\n' }}{% endfor %}"
)


@dataclass(frozen=True)
class Encoded:
    """One tokenised example."""

    input_ids: list[int]
    completion: list[bool]
    """True where the token belongs to an assistant turn."""
    truncated_tokens: int
    """How many prompt tokens were cut to meet `max_length`."""


def resolve_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str:
    """Return the Jinja chat template that a `text.chat_template` setting stands for.

    Raises:
        DataError: none is given and the tokenizer has none.
    """
    if chat_template == "plain":
        return PLAIN_TEMPLATE
    if chat_template is not None:
        return chat_template
    if not isinstance(tokenizer.chat_template, str):
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path!r} has no single chat template; "
            'set text.chat_template to "plain" or to a Jinja template'
        )
    return tokenizer.chat_template


def template_fingerprint(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str:
    """Return the SHA-256 of the chat template in force."""
    return hashlib.sha256(resolve_template(tokenizer, chat_template).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 that changes when any id, merge, normaliser or special token does."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for changed_by_use in ("truncation", "padding"):
        state.pop(changed_by_use, None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps([state, special], sort_keys=True).encode()).hexdigest()


def encode(
    example: Example, tokenizer: PreTrainedTokenizerBase, chat_template: str | None, max_length: int
) -> Encoded | None:
    """Tokenise a whole example, cutting the middle of its prompts to fit `max_length` tokens.

    Returns None where it does not fit even with its prompts cut to two tokens each: a completion is never cut.

    Raises:
        DataError: no assistant turn, an empty one, or a template that renders a turn's prompt differently once the
            turn is there; the message names the example.
    """
    segments = _segments(example, tokenizer, resolve_template(tokenizer, chat_template))
    overflow = sum(len(ids) for ids, _ in segments) - max_length
    truncated_tokens = max(0, overflow)
    for index, (ids, is_completion) in enumerate(segments):
        if overflow > 0 and not is_completion:
            cut = min(overflow, max(0, len(ids) - 2))
            segments[index] = (_cut_middle(ids, cut), False)
            overflow -= cut
    if overflow > 0:
        return None
    return Encoded(
        input_ids=[token for ids, _ in segments for token in ids],
        completion=[is_completion for ids, is_completion in segments for _ in ids],
        truncated_tokens=truncated_tokens,
    )


def encode_prompt(
    example: Example, tokenizer: PreTrainedTokenizerBase, chat_template: str | None, max_length: int | None = None
) -> list[int]:
    """Tokenise what precedes the last assistant turn, as `encode` would, cut in the middle to `max_length` tokens."""
    segments = _segments(example, tokenizer, resolve_template(tokenizer, chat_template))
    last = max(index for index, (_, is_completion) in enumerate(segments) if is_completion)
    prompt = [token for ids, _ in segments[:last] for token in ids]
    return prompt if max_length is None else _cut_middle(prompt, max(0, len(prompt) - max_length))


def _segments(example: Example, tokenizer: PreTrainedTokenizerBase, template: str) -> list[tuple[list[int], bool]]:
    """Split a rendered conversation at its assistant turns: [(ids, whether it is a completion), …]."""
    messages = _fitting_roles(example["messages"], tokenizer, template)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns or turns[0] == 0:
        raise DataError(f"example {example['id']!r} has no completion; expected an assistant turn after a prompt")
    special_ids = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    segments: list[tuple[list[int], bool]] = []
    rendered = ""
    for index in turns:
        if not messages[index]["content"].strip():
            raise DataError(f"example {example['id']!r} has an empty completion in turn {index}; fill or remove it")
        prompt = _render(example["id"], messages[:index], tokenizer, template, add_generation_prompt=True)
        whole = _render(example["id"], messages[: index + 1], tokenizer, template, add_generation_prompt=False)
        if not prompt.startswith(rendered) or not whole.startswith(prompt):
            raise DataError(
                f"the chat template breaks the prompt of example {example['id']!r} at turn {index}: the text before "
                "a completion must not change once the completion is there; use another text.chat_template"
            )
        # White space that a template writes after its end-of-turn token belongs to the next prompt.
        completion_text = whole[len(prompt) :].rstrip()
        completion = _tokenize(tokenizer, completion_text)
        if not completion or completion[-1] not in special_ids:
            completion_text = whole[len(prompt) :]
            completion = _tokenize(tokenizer, completion_text)
            if index == turns[-1]:
                completion.append(_eos(tokenizer))
        segments.append((_tokenize(tokenizer, prompt[len(rendered) :]), False))
        segments.append((completion, True))
        rendered = prompt + completion_text
    return segments


def _fitting_roles(messages: list[Message], tokenizer: PreTrainedTokenizerBase, template: str) -> list[Message]:
    """Join a leading system message to the user's where the template refuses it, or would leave it out unseen."""
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return messages
    probe: list[Message] = [{"role": "system", "content": "system-probe"}, {"role": "user", "content": "user"}]
    try:
        if "system-probe" in _render("", probe, tokenizer, template, add_generation_prompt=True):
            return messages
    except DataError:
        pass  # the template refuses the role; whatever else is wrong with it shows when the example is rendered
    joined: Message = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [joined, *messages[2:]]


def _render(
    example_id: str,
    messages: list[Message],
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    *,
    add_generation_prompt: bool,
) -> str:
    try:
        text: Any = tokenizer.apply_chat_template(
            [{"role": message["role"], "content": message["content"]} for message in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except jinja2.TemplateError as error:
        raise DataError(f"the chat template fails on example {example_id!r}: {error}") from error
    return text


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path!r} has no eos token and the chat template ends a turn with none; "
            "a student would never learn to stop"
        )
    return tokenizer.eos_token_id


def _cut_middle(ids: list[int], cut: int) -> list[int]:
    if cut <= 0:
        return ids
    head = (len(ids) - cut + 1) // 2
    return ids[:head] + ids[head + cut :]
