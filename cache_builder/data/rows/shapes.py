"""One row of any known shape → an `Example`, every key of it used or refused by name.

    {"messages": [{"role", "content", …}, …]}                     as OpenAI and transformers have conversations
    {"conversations": [{"from", "value"}, …], "system"?}          ShareGPT, roles mapped
    {"prompt": text | messages, "completion": text | messages}    TRL: answers within a prompt are not trained on
    {"instruction": text, "input"?, "output": text, "system"?}    Alpaca: an empty line before the input
    {"text": text}                                                continued pre-training: every token is a position

Beside any shape: `id`, `task`, `answer`, `choices`, `group`; beside a conversation: `tools`, `chat_template_kwargs`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from cache_builder.data.examples import Example, Message
from cache_builder.data.rows import values
from cache_builder.data.rows.turns import bind_tools, read_conversations, read_messages
from cache_builder.data.rows.values import wrong
from cache_builder.errors import DataError

JUDGING = ("id", "task", "answer", "choices", "group")
TEMPLATE = ("tools", "chat_template_kwargs")
IGNORE_NOTHING: frozenset[str] = frozenset()
Row = Mapping[str, Any]


def normalize(row: Row, default_id: str, where: str, ignored: frozenset[str] = IGNORE_NOTHING) -> Example:
    """Bring one row of any known shape to an `Example`; keys that `ignored` names are left out.

    Raises:
        DataError: unknown shape, key, role or kind of value; the message names `where` and the key.
    """
    shape = shape_of(row, where)
    own, read = SHAPES[shape]
    values.check_keys(row, (*own, *JUDGING, *(TEMPLATE if shape != ("text",) else ())), "", where, ignored)
    messages = read(row, where, ignored)
    bind_tools(messages, where)
    example: Example = {
        "id": values.label(row["id"], "id", where) if row.get("id") is not None else default_id,
        "task": values.label(row["task"], "task", where) if row.get("task") is not None else "default",
        "messages": messages,
        "where": where,
    }
    if shape == ("text",):
        example["text"] = values.text(row["text"], "text", where)
        if not example["text"].strip():
            raise wrong(where, "text", "a text that is not empty", row["text"])
    if row.get("tools") is not None and row["tools"] not in ([], "", "[]"):
        example["tools"] = _tools(row["tools"], where)
    if row.get("chat_template_kwargs") is not None:
        example["chat_template_kwargs"] = values.mapping(row["chat_template_kwargs"], "chat_template_kwargs", where)
    if row.get("answer") is not None:
        answer = row["answer"]
        example["answer"] = (
            [values.label(item, f"answer[{index}]", where) for index, item in enumerate(answer)]
            if isinstance(answer, list)
            else values.label(answer, "answer", where)
        )
    if row.get("choices") is not None:
        example["choices"] = values.labels(row["choices"], "choices", where)
    if row.get("group") is not None:
        example["group"] = values.label(row["group"], "group", where)
    return example


def shape_of(row: Row, where: str) -> tuple[str, ...]:
    """Return the keys that make a row of its shape; one that holds the keys of two shapes is of the first.

    Raises:
        DataError: it is of none.
    """
    for keys in SHAPES:
        if all(row.get(key) is not None for key in keys):
            return keys
    known = ", or ".join(" and ".join(f"`{key}`" for key in keys) for keys in SHAPES)
    raise DataError(f"{where}: expected {known}; got {', '.join(sorted(map(str, row))) or 'nothing'}; rename the keys")


def _messages(row: Row, where: str, ignored: frozenset[str]) -> list[Message]:
    return read_messages(row["messages"], "messages", where, ignored)


def _conversations(row: Row, where: str, ignored: frozenset[str]) -> list[Message]:
    turns = read_conversations(row["conversations"], "conversations", where, ignored)
    return _system(row, where) + turns


def _prompt_completion(row: Row, where: str, ignored: frozenset[str]) -> list[Message]:
    prompt, completion = row["prompt"], row["completion"]
    before: list[Message]
    if isinstance(prompt, list):
        before = read_messages(prompt, "prompt", where, ignored)
        before = [{**turn, "train": False} if turn["role"] == "assistant" else turn for turn in before]
    else:
        before = [{"role": "user", "content": values.text(prompt, "prompt", where)}]
    if isinstance(completion, list):
        return before + read_messages(completion, "completion", where, ignored)
    return [*before, {"role": "assistant", "content": values.text(completion, "completion", where)}]


def _alpaca(row: Row, where: str, ignored: frozenset[str]) -> list[Message]:
    question = values.text(row["instruction"], "instruction", where)
    if row.get("input") not in (None, ""):
        question += f"\n\n{values.text(row['input'], 'input', where)}"
    answer = values.text(row["output"], "output", where)
    return [*_system(row, where), {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _no_messages(row: Row, where: str, ignored: frozenset[str]) -> list[Message]:
    return []


SHAPES: dict[tuple[str, ...], tuple[tuple[str, ...], Callable[[Row, str, frozenset[str]], list[Message]]]] = {
    ("messages",): (("messages",), _messages),
    ("conversations",): (("conversations", "system"), _conversations),
    ("prompt", "completion"): (("prompt", "completion"), _prompt_completion),
    ("instruction", "output"): (("instruction", "input", "output", "system"), _alpaca),
    ("text",): (("text",), _no_messages),
}
"""The keys that make a row of a shape → all of the shape's own keys, and what reads its conversation."""


def _system(row: Row, where: str) -> list[Message]:
    if row.get("system") in (None, ""):
        return []
    return [{"role": "system", "content": values.text(row["system"], "system", where)}]


def _tools(value: Any, where: str) -> list[dict[str, Any]]:
    found = values.from_json(value, "tools", where, "a list of JSON schemas") if isinstance(value, str) else value
    if not isinstance(found, list):
        raise wrong(where, "tools", "a list of JSON schemas", value)
    tools = []
    for index, tool in enumerate(found):
        read = values.mapping(tool, f"tools[{index}]", where)
        function = read.get("function", read)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise wrong(where, f"tools[{index}]", 'a function with a "name"', tool)
        tools.append(read)
    return tools
