"""A row of any known shape becomes the same example, every key of it used, or is refused by file, row and key."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_builder.data.examples import Example
from cache_builder.data.rows.shapes import normalize
from cache_builder.errors import DataError

WHERE = "train.jsonl, line 3"
MESSAGES = [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "green"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "paint", "arguments": {"color": "red"}}}


def read(row: dict[str, Any], *ignored: str) -> Example:
    return normalize(row, "x-0", WHERE, frozenset(ignored))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "re"}, "d?"]}, MESSAGES[1]]},
        {"conversations": [{"from": "human", "value": "red?"}, {"from": "gpt", "value": "green"}]},
        {"prompt": "red?", "completion": "green"},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        {"prompt": MESSAGES[:1], "completion": "green"},
        {"instruction": "red?", "input": "", "output": "green"},
        {"messages": json.dumps(MESSAGES)},
    ],
)
def test_every_shape_becomes_the_same_messages(row: dict[str, Any]) -> None:
    assert read(row)["messages"] == MESSAGES


def test_alpacas_input_and_system_have_their_places() -> None:
    row = {"instruction": "Name it.", "input": "red", "output": "green", "system": "Be brief."}
    assert [(turn["role"], turn["content"]) for turn in read(row)["messages"]] == [
        ("system", "Be brief."),
        ("user", "Name it.\n\nred"),
        ("assistant", "green"),
    ]


def test_sharegpts_system_calls_and_observations_are_kept() -> None:
    called = {"from": "function_call", "value": '{"name": "paint", "arguments": {"color": "red"}}'}
    turns = [{"from": "human", "value": "paint"}, called, {"from": "observation", "value": "done"}]
    read_turns = read({"conversations": [*turns, {"from": "gpt", "value": "Done."}], "system": "Be brief."})["messages"]
    assert [turn["role"] for turn in read_turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert read_turns[2]["tool_calls"] == [{"type": "function", "function": CALL["function"]}]


def test_answers_within_a_prompt_are_not_trained_on() -> None:
    row = {"prompt": [*MESSAGES, {"role": "user", "content": "blue?"}], "completion": MESSAGES[1:]}
    assert [turn.get("train") for turn in read(row)["messages"]] == [None, False, None, None]


def test_a_text_row_is_an_example_without_turns() -> None:
    example = read({"text": "The red and the green.", "id": 4})
    assert (example["id"], example["text"], example["messages"]) == ("4", "The red and the green.", [])


def test_what_judging_needs_is_kept() -> None:
    example = read({"id": 7, "task": "ner", "messages": MESSAGES, "answer": ["a", "b"], "choices": ["a"], "group": "d"})
    assert (example["id"], example["task"], example["answer"], example["group"]) == ("7", "ner", ["a", "b"], "d")
    assert read({"messages": MESSAGES, "choices": '["abc", "d"]'})["choices"] == ["abc", "d"]


@pytest.mark.parametrize("arguments", [{"color": "red"}, '{"color": "red"}'])
@pytest.mark.parametrize("flat", [True, False])
def test_calls_come_as_objects_or_as_json_nested_or_flat(arguments: Any, flat: bool) -> None:
    function = {"name": "paint", "arguments": arguments}
    call = {"id": "c1", **function} if flat else {"id": "c1", "type": "function", "function": function}
    messages = [MESSAGES[0], {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert read({"messages": messages})["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize("tools", [[{"name": "paint"}], '[{"name": "paint"}]'])
def test_tools_come_as_a_list_or_as_json(tools: Any) -> None:
    assert read({"messages": MESSAGES, "tools": tools})["tools"] == [{"name": "paint"}]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_come_under_three_names(name: str) -> None:
    messages = [MESSAGES[0], {**MESSAGES[1], name: "after red"}]
    assert read({"messages": messages})["messages"][1]["reasoning_content"] == "after red"


def turn(**fields: Any) -> dict[str, Any]:
    return {"messages": [MESSAGES[0], {**MESSAGES[1], **fields}]}


ANSWERED = [MESSAGES[0], {"role": "assistant", "tool_calls": [CALL]}]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"words": "red? green"}, "expected `messages`"),
        ({"messages": None, "prompt": "red?"}, "expected `messages`"),
        ({"messages": "red?"}, "`messages`: expected a list of turns"),
        ({"messages": []}, "`messages`: expected a list of turns"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, r"`conversations\[0\]\.from`.*'robot'"),
        ({"messages": [{"role": "user", "content": None}]}, r"`messages\[0\]\.content`: expected text.*got None"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, r"content\[0\]`.*images"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]}]}, r"\[0\]\.cache`"),
        ({"messages": MESSAGES, "source": "web"}, r'`source`.*data\.ignore_keys = \["source"\]'),
        ({"messages": MESSAGES, "prompt": "red?"}, "`prompt`"),
        ({"text": "red", "tools": []}, "`tools`"),
        ({"text": " "}, "`text`: expected a text that is not empty"),
        ({"text": 3}, "`text`: expected text"),
        (turn(weight=0.5), r"`messages\[1\]\.weight`: expected 0 or 1"),
        (turn(train="no"), r"`messages\[1\]\.train`: expected true or false"),
        (turn(train=True, weight=0), "contradict"),
        (turn(reasoning="a", thinking="b"), "reasoning and thinking differ"),
        (turn(time="now"), r'`messages\[1\]\.time`.*\["messages\.time"\]'),
        (turn(tool_calls=[{"name": "paint", "arguments": "red"}]), r"tool_calls\[0\]\.arguments`: expected an object"),
        (turn(tool_calls=[{"arguments": {}}]), r"tool_calls\[0\]\.name`: expected the function's name"),
        (turn(tool_calls=[{"type": "code", "name": "x"}]), r'tool_calls\[0\]\.type`: expected "function"'),
        (turn(tool_calls={"name": "x"}), "`messages.1..tool_calls`: expected a list of calls"),
        ({"messages": [{**MESSAGES[0], "train": True}, MESSAGES[1]]}, "only assistant turns are trained on"),
        ({"messages": [{**MESSAGES[0], "tool_calls": [CALL]}, MESSAGES[1]]}, r"`messages\[0\]\.tool_calls`"),
        ({"messages": [*ANSWERED, {"role": "tool", "content": "x", "tool_call_id": "c2"}]}, "tool_call_id of turn 2"),
        ({"messages": [*ANSWERED, {"role": "tool", "content": "x", "name": "mix"}]}, "name of turn 2"),
        ({"messages": MESSAGES, "tools": "paint"}, "`tools`: expected a list of JSON schemas"),
        ({"messages": MESSAGES, "tools": [{"type": "function"}]}, r"`tools\[0\]`"),
        ({"messages": MESSAGES, "chat_template_kwargs": [1]}, "`chat_template_kwargs`: expected an object"),
        ({"messages": MESSAGES, "choices": "abc"}, "`choices`: expected a list of texts"),
        ({"messages": MESSAGES, "choices": "3"}, "`choices`: expected a list of texts"),
        ({"messages": MESSAGES, "answer": {"a": 1}}, "`answer`: expected text or a number"),
        ({"messages": MESSAGES, "id": [1]}, "`id`: expected text or a number"),
        ({"messages": MESSAGES, "id": "\ud800"}, "`id`: it has half of a surrogate pair"),
        (turn(content="a\0b"), r"`messages\[1\]\.content`: it has a NUL"),
        (turn(tool_calls=[{"name": "x", "arguments": {"a": "\udfff"}}]), "half of a surrogate pair"),
        (turn(tool_calls=[{"name": "x", "arguments": {"a": float("nan")}}]), "values that JSON has"),
    ],
)
def test_a_bad_row_is_refused_by_file_row_and_key(row: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl, line 3.*" + named):
        read(row)


def test_keys_are_left_out_only_by_name() -> None:
    row = {"messages": [MESSAGES[0], {**MESSAGES[1], "time": "now"}], "source": "web"}
    assert read(row, "source", "messages.time")["messages"] == MESSAGES
    with pytest.raises(DataError, match="time"):
        read(row, "source", "time")


# Whatever a row is: either all of its words are in the example, or it is refused.

WORDS = st.integers(0, 10**6).map(lambda number: f"w{number:07d}")
CALLS = st.lists(
    st.builds(
        lambda name, argument, as_json: {
            "type": "function",
            "function": {"name": name, "arguments": json.dumps({"a": argument}) if as_json else {"a": argument}},
        },
        WORDS,
        WORDS,
        st.booleans(),
    ),
    max_size=2,
)
TEXTS = st.one_of(WORDS, WORDS.map(lambda word: [{"type": "text", "text": word}]))
OPTIONAL_TURN = {
    "name": WORDS,
    "reasoning_content": TEXTS,
    "tool_calls": CALLS,
    "train": st.booleans(),
    "weight": st.sampled_from([0, 1]),
    "tool_call_id": WORDS,
    "extra": WORDS,
}
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXTS}, optional=OPTIONAL_TURN
    ),
    min_size=1,
    max_size=4,
)
ROWS = st.one_of(
    st.fixed_dictionaries({"messages": TURNS}, optional={"tools": CALLS, "source": WORDS, "id": WORDS}),
    st.fixed_dictionaries({"prompt": st.one_of(WORDS, TURNS), "completion": st.one_of(WORDS, TURNS)}),
    st.fixed_dictionaries({"instruction": WORDS, "output": WORDS}, optional={"input": WORDS, "system": WORDS}),
    st.fixed_dictionaries({"text": WORDS}, optional={"messages": TURNS, "tools": CALLS, "task": WORDS}),
)


def words_of(value: Any) -> set[str]:
    text = json.dumps(value)
    return {text[at : at + 8] for at in range(len(text)) if text[at] == "w" and text[at + 1 : at + 8].isdigit()}


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(ROWS)
def test_a_row_is_read_whole_or_refused_by_name(row: dict[str, Any]) -> None:
    try:
        example = read(row)
    except DataError as error:
        assert str(error).startswith(WHERE)
        return
    assert words_of(row) == words_of(example)


TURN_KEYS = ("role", "content", "from", "value", "text", "type", "name")
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "type", "name"]), inner, max_size=3
        ),
    ),
    max_leaves=12,
)
KEYS = ("messages", "conversations", "prompt", "completion", "instruction", "output", "text", "tools", "choices", "id")


@settings(max_examples=600, derandomize=True, deadline=None, database=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1))
def test_rows_of_anything_never_end_in_a_traceback(row: dict[str, Any]) -> None:
    try:
        example = read(row)
    except DataError:
        return
    json.dumps(example, ensure_ascii=False).encode()
