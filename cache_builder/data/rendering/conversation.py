"""What of an example a chat template is given, and the text that it makes of it.

messages, tools, chat_template_kwargs ──▶ Jinja, sandboxed ──▶ text, whole or up to a turn
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from cache_builder.data.examples import Example, Message, named
from cache_builder.data.rendering.templates import TEMPLATE_ERRORS, deployed_template
from cache_builder.errors import DataError

RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {"messages"}
"""Names that `chat_template_kwargs` cannot have."""


@dataclass(frozen=True)
class Conversation:
    """An example's turns with everything that rendering them needs."""

    name: str
    """What an error calls the example."""
    messages: tuple[Message, ...]
    tools: list[dict[str, Any]] | None
    kwargs: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    template: str

    def render(self, turns: int, *, add_generation_prompt: bool = False) -> str:
        """Return the text of the first turns.

        Raises:
            DataError: the template fails on them.
        """
        try:
            text: Any = self.tokenizer.apply_chat_template(
                as_given(self.messages[:turns]),
                tools=self.tools,  # type: ignore[arg-type]
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self.kwargs,
            )
        except TEMPLATE_ERRORS as error:
            raise DataError(f"the chat template fails on {self.name}: {error}") from error
        return text

    def render_marked(self, turns: int) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of the first turns, and the spans of it that `{% generation %}` marks.

        Raises:
            DataError: the template fails on them.
        """
        tools: Any = self.tools
        try:
            rendered: Any = render_jinja_template(
                conversations=[as_given(self.messages[:turns])],
                tools=tools,
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                **{**self.tokenizer.special_tokens_map, **self.kwargs},
            )
        except TEMPLATE_ERRORS as error:
            raise DataError(f"the chat template fails on {self.name}: {error}") from error
        (text,), (spans,) = rendered
        return text, spans

    def changed(self, turn: int, key: str, value: object) -> "Conversation":
        """Return the conversation with another value in one turn."""
        messages: list[Any] = [*self.messages]
        messages[turn] = {**messages[turn], key: value}
        return replace(self, messages=tuple(messages))

    def answers(self) -> list[int]:
        """Return the assistant's turns."""
        return [turn for turn, message in enumerate(self.messages) if message["role"] == "assistant"]

    def trained_turns(self, train_on: str) -> list[int]:
        """Return the turns that are completions.

        Raises:
            DataError: there is none, one has nothing before it or in it, or a turn after the last answer is of no use.
        """
        chosen = self.answers()[-1:] if train_on == "last" else self.answers()
        turns = [turn for turn in chosen if self.messages[turn].get("train", True)]
        if not turns or turns[0] == 0:
            untrained = " that is trained on" if len(turns) < len(chosen) else ""
            raise DataError(f"{self.name} has no completion; expected an assistant turn{untrained} after a prompt")
        for turn in turns:
            message = self.messages[turn]
            if not message["content"].strip() and not message.get("tool_calls"):
                raise DataError(f"{self.name} has an empty completion in turn {turn}; fill or remove it")
        after = self.answers()[-1] + 1
        if after < len(self.messages):
            raise DataError(
                f"{self.name}: turn {after} ({self.messages[after]['role']}) comes after the last answer, so nothing "
                "would be learned from it; remove it, or add its answer"
            )
        return turns


def open_conversation(example: Example, tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> Conversation:
    """Return an example's conversation under the template that a setting stands for.

    Raises:
        DataError: it is a text and no conversation, or its `chat_template_kwargs` have a reserved name.
    """
    if "text" in example:
        raise DataError(f"{named(example)} is a `text`, not a conversation; it has no prompt and no answer")
    kwargs = example.get("chat_template_kwargs", {})
    for key in kwargs:
        if key in RESERVED or key in tokenizer.special_tokens_map:
            raise DataError(f"{named(example)}, `chat_template_kwargs.{key}`: the name is taken; remove it")
    return Conversation(
        name=named(example),
        messages=tuple(example["messages"]),
        tools=example.get("tools"),
        kwargs=kwargs,
        tokenizer=tokenizer,
        template=deployed_template(tokenizer, chat_template),
    )


def as_given(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return turns as a template gets them: without `train`, which is ours."""
    return [{key: value for key, value in message.items() if key != "train"} for message in messages]
