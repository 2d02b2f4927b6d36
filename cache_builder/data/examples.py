"""What an example is: one conversation, or one text, with what judging its answer needs.

    messages   system · user · assistant (tool_calls) · tool · assistant     a conversation, every answer a completion
    text       The paper of …                                                continued pre-training, every token

`rows/` makes examples of a user's rows, `sources/` of known data sets; `rendering/` turns them into text.
"""

from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict, overload

import numpy as np

Role = Literal["system", "developer", "user", "assistant", "tool"]


class Message(TypedDict):
    """One turn, as chat templates take it; `train` is ours."""

    role: Role
    content: str
    """Text parts are joined as they stand; empty where an assistant's turn only calls tools."""
    reasoning_content: NotRequired[str]
    """What an assistant thought before it answered."""
    tool_calls: NotRequired[list[dict[str, Any]]]
    """[{"type": "function", "function": {"name": str, "arguments": {…}}, "id"?: str}, …] of an assistant."""
    tool_call_id: NotRequired[str]
    """Which call a tool's turn answers."""
    name: NotRequired[str]
    """Of a tool's turn the function; of others the participant."""
    train: NotRequired[bool]
    """Whether an assistant's turn is a completion; it is where this is absent."""


class Example(TypedDict):
    """One conversation or one text; the last assistant turn is what evaluation asks for."""

    id: str
    task: str
    messages: list[Message]
    """Empty where there is a `text`."""
    text: NotRequired[str]
    """Of continued pre-training: every token but the first is a position."""
    tools: NotRequired[list[dict[str, Any]]]
    """JSON schemas of functions, handed to the chat template."""
    chat_template_kwargs: NotRequired[dict[str, Any]]
    """Variables of the chat template, such as {"enable_thinking": False}."""
    answer: NotRequired[str | list[str]]
    """The gold answer, where it is not simply the last assistant turn."""
    choices: NotRequired[list[str]]
    group: NotRequired[str]
    """The document it was made from; a grouped split keeps a document on one side."""
    where: NotRequired[str]
    """File and line that it came from, for messages to the user."""


Split = Sequence[Example]


def named(example: Example) -> str:
    """Return what an error calls the example: its id, and the file and line where there are any."""
    where = example.get("where")
    return f"example {example['id']!r}" if where is None else f"{where}, example {example['id']!r}"


class Subset(Sequence[Example]):
    """Some rows of a split, by index, without copying it."""

    def __init__(self, base: Split, rows: np.ndarray) -> None:
        self.base, self.rows = base, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "Subset": ...
    def __getitem__(self, index: int | slice) -> "Example | Subset":
        if isinstance(index, slice):
            return Subset(self.base, self.rows[index])
        return self.base[int(self.rows[index])]


def random_part(split: Split, limit: int | None, seed: int) -> Split:
    """Return `limit` examples by the seed, in their order: the first ones of a file sorted by label have few labels."""
    if limit is None or limit >= len(split):
        return split
    return Subset(split, np.sort(np.random.default_rng([seed, 0x11317]).permutation(len(split))[:limit]))
