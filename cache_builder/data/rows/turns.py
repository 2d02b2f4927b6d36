"""One turn of a conversation → a message as chat templates take it, every key of it used or refused by name.

    {"role": "assistant", "content": …, "reasoning_content": …, "tool_calls": […], "train": false}     messages
    {"from": "gpt", "value": …, "weight": 0}                                                           conversations

A call's arguments may be an object or JSON of one; templates get the object, as transformers and vLLM hand it to them.
A tool's turn is bound to the call that it answers: by `tool_call_id`, or by being the next one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cache_builder.data.examples import Message, Role
from cache_builder.data.rows import values
from cache_builder.data.rows.values import wrong
from cache_builder.errors import DataError

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
}
SHAREGPT_ONLY: dict[str, Role] = {"observation": "tool", "function_call": "assistant"}
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names under which rows have it; transformers hands templates the first."""
TRAINED = ("train", "weight")
MESSAGE_KEYS = ("role", "content", "name", *TRAINED)
ASSISTANT_KEYS = ("role", "content", *REASONING, "tool_calls", *TRAINED)
TOOL_KEYS = ("role", "content", "tool_call_id", "name", *TRAINED)
SHAREGPT_KEYS = ("from", "value", *TRAINED)


def read_messages(value: Any, key: str, where: str, ignored: frozenset[str]) -> list[Message]:
    """Read a list of turns with `role` and `content`.

    Raises:
        DataError: it is not one; the message names the turn and its key.
    """
    return [_message(turn, f"{key}[{index}]", where, ignored) for index, turn in enumerate(_turns(value, key, where))]


def read_conversations(value: Any, key: str, where: str, ignored: frozenset[str]) -> list[Message]:
    """Read a list of ShareGPT turns with `from` and `value`.

    Raises:
        DataError: it is not one; the message names the turn and its key.
    """
    return [_sharegpt(turn, f"{key}[{index}]", where, ignored) for index, turn in enumerate(_turns(value, key, where))]


def bind_tools(messages: Sequence[Message], where: str) -> None:
    """Check that each tool's turn answers the next call that is still open, by id and by name where they are given.

    Few templates write ids, so the order has to say the same; that is why results out of order are refused.

    Raises:
        DataError: a turn answers no call, or another than the next.
    """
    waiting: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            waiting = list(message.get("tool_calls", []))
        if message["role"] != "tool":
            continue
        call = waiting.pop(0) if waiting else None
        for name, called in (("tool_call_id", call and call.get("id")), ("name", call and call["function"]["name"])):
            if name in message and message[name] != called:  # type: ignore[literal-required]
                got = message[name]  # type: ignore[literal-required]
                expected = (
                    f"{called!r}, of the next call that has no result yet" if called else "a call that it answers"
                )
                raise wrong(where, f"{name} of turn {index}", expected, got, "put results in the order of their calls")


def _turns(value: Any, key: str, where: str) -> list[Mapping[str, Any]]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = values.from_json(value, key, where, "a list of turns")
    if not isinstance(value, list) or not value or not all(isinstance(turn, Mapping) for turn in value):
        raise wrong(where, key, "a list of turns", value)
    return value


def _message(turn: Mapping[str, Any], key: str, where: str, ignored: frozenset[str]) -> Message:
    role = _role(turn.get("role"), ROLES, f"{key}.role", where)
    keys = {"assistant": ASSISTANT_KEYS, "tool": TOOL_KEYS}.get(role, MESSAGE_KEYS)
    values.check_keys(turn, keys, key, where, ignored)
    content = turn.get("content")
    calls = turn.get("tool_calls") if role == "assistant" else None
    if content is None and calls:
        content = ""
    message: Message = {"role": role, "content": values.text(content, f"{key}.content", where)}
    if role == "assistant":
        thoughts = [name for name in REASONING if turn.get(name) is not None]
        if len({values.text(turn[name], f"{key}.{name}", where) for name in thoughts}) > 1:
            raise DataError(f"{where}, `{key}`: {' and '.join(thoughts)} differ; keep one of them")
        if thoughts:
            message["reasoning_content"] = values.text(turn[thoughts[0]], f"{key}.{thoughts[0]}", where)
    if calls is not None and calls != []:
        message["tool_calls"] = _calls(calls, f"{key}.tool_calls", where)
    for name in ("name", "tool_call_id"):
        if turn.get(name) is not None and name in keys:
            message[name] = values.label(turn[name], f"{key}.{name}", where)
    _set_trained(message, turn, key, where)
    return message


def _sharegpt(turn: Mapping[str, Any], key: str, where: str, ignored: frozenset[str]) -> Message:
    sender = turn.get("from")
    role = _role(sender, ROLES | SHAREGPT_ONLY, f"{key}.from", where)
    values.check_keys(turn, SHAREGPT_KEYS, key, where, ignored)
    content = values.text(turn.get("value"), f"{key}.value", where)
    message: Message = {"role": role, "content": content}
    if sender == "function_call":
        call = values.from_json(content, f"{key}.value", where, "a call's name and arguments")
        calls = call if isinstance(call, list) else [call]
        message = {"role": role, "content": "", "tool_calls": _calls(calls, f"{key}.value", where)}
    _set_trained(message, turn, key, where)
    return message


def _role(value: Any, known: Mapping[str, Role], key: str, where: str) -> Role:
    if not isinstance(value, str) or value not in known:
        raise wrong(where, key, f"one of {', '.join(known)}", value)
    return known[value]


def _set_trained(message: Message, turn: Mapping[str, Any], key: str, where: str) -> None:
    """Read `train` and `weight`; nothing but an assistant's turn can be trained on, and only wholly or not at all."""
    given = {name: turn[name] for name in TRAINED if turn.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            expected = "true or false" if name == "train" else "0 or 1: weights between are not supported"
            raise wrong(where, f"{key}.{name}", expected, value)
        if value and message["role"] != "assistant":
            raise wrong(where, f"{key}.{name}", "0 or false: only assistant turns are trained on", value)
    if len({bool(value) for value in given.values()}) > 1:
        raise DataError(f"{where}, `{key}`: train and weight contradict each other; keep one of them")
    if given and message["role"] == "assistant":
        message["train"] = bool(next(iter(given.values())))


def _calls(value: Any, key: str, where: str) -> list[dict[str, Any]]:
    calls = values.from_json(value, key, where, "a list of calls") if isinstance(value, str) else value
    if not isinstance(calls, list) or not calls:
        raise wrong(where, key, "a list of calls", value)
    return [_call(call, f"{key}[{index}]", where) for index, call in enumerate(calls)]


def _call(call: Any, key: str, where: str) -> dict[str, Any]:
    expected = '{"type": "function", "function": {"name": …, "arguments": {…}}}'
    if not isinstance(call, Mapping):
        raise wrong(where, key, expected, call)
    function, path = call, key
    if call.get("function") is not None:
        values.check_keys(call, ("id", "type", "function", "index"), key, where, frozenset())
        function, path = call["function"], f"{key}.function"
        if not isinstance(function, Mapping):
            raise wrong(where, path, expected, function)
        values.check_keys(function, ("name", "arguments"), path, where, frozenset())
    else:
        values.check_keys(call, ("id", "type", "name", "arguments"), key, where, frozenset())
    if call.get("type", "function") not in ("function", None):
        raise wrong(where, f"{key}.type", '"function"', call["type"])
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise wrong(where, f"{path}.name", "the function's name", function.get("name"))
    arguments = function.get("arguments")
    arguments = {} if arguments in (None, "") else values.mapping(arguments, f"{path}.arguments", where)
    read: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if call.get("id") is not None:
        read["id"] = values.label(call["id"], f"{key}.id", where)
    return read
