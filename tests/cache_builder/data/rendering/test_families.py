"""Conversations under the templates of today's families: what is trained on is what the model will write."""

from typing import Any

import pytest

from cache_builder.data.chat import TrainOn, encode, encode_prompt
from cache_builder.data.examples import Example
from cache_builder.data.rows.shapes import normalize
from cache_builder.errors import DataError
from tests.support.templates import family_template, family_tokenizer

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
ASKED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the weather in Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "name": "get_weather", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
]
PLAIN = [
    {"role": "user", "content": "red?"},
    {"role": "assistant", "content": "green"},
    {"role": "user", "content": "blue?"},
    {"role": "assistant", "content": "amber"},
]
THINKING = [
    {"role": "user", "content": "red?"},
    {"role": "assistant", "content": "green", "reasoning_content": "after red"},
    {"role": "user", "content": "blue?"},
    {"role": "assistant", "content": "amber", "reasoning_content": "after blue"},
]


def example(messages: list[dict[str, Any]], **row: Any) -> Example:
    return normalize({"messages": messages, **row}, "one", "rows.jsonl, line 1")


def parts(found: Example, family: str, train_on: TrainOn = "all") -> list[tuple[bool, str]]:
    """Return the runs of prompt and completion as text."""
    encoded = encode(found, family_tokenizer(), family_template(family), 10_000, train_on)
    assert encoded is not None
    runs: list[tuple[bool, list[int]]] = []
    for token, is_completion in zip(encoded.input_ids, encoded.completion, strict=True):
        if not runs or runs[-1][0] != is_completion:
            runs.append((is_completion, []))
        runs[-1][1].append(token)
    return [(is_completion, str(family_tokenizer().decode(ids))) for is_completion, ids in runs]


def whole(found: Example, family: str) -> str:
    messages = [{key: value for key, value in message.items() if key != "train"} for message in found["messages"]]
    return str(
        family_tokenizer().apply_chat_template(
            messages,
            tools=found.get("tools"),
            chat_template=family_template(family),
            tokenize=False,
            **found.get("chat_template_kwargs", {}),
        )
    )


@pytest.mark.parametrize("family", ["chatml_tools", "llama3_like"])
def test_calls_results_and_declarations_are_in_the_text_and_calls_are_trained_on(family: str) -> None:
    found = example(ASKED, tools=[WEATHER])
    runs = parts(found, family)
    completions = [text for is_completion, text in runs if is_completion]
    assert "get_weather" in completions[0] and '{"city": "Paris"}' in completions[0]
    assert completions[1].startswith("It is sunny.")
    prompts = "".join(text for is_completion, text in runs if not is_completion)
    assert '"parameters"' in prompts and "sunny" in prompts and "Be brief." in prompts


@pytest.mark.parametrize("family", ["chatml_tools", "llama3_like", "no_system", "marked_thinking"])
def test_prompts_and_completions_joined_are_the_template_s_own_rendering(family: str) -> None:
    messages = PLAIN if family in ("no_system", "marked_thinking") else ASKED
    found = example(messages, **({"tools": [WEATHER]} if messages is ASKED else {}))
    joined = "".join(text for _, text in parts(found, family))
    assert joined == whole(found, family).rstrip()


@pytest.mark.parametrize("family", ["chatml_tools", "llama3_like", "qwen3_like", "no_system", "marked_thinking"])
@pytest.mark.parametrize("train_on", ["all", "last"])
def test_what_precedes_the_last_answer_is_what_a_deployed_model_is_given(family: str, train_on: TrainOn) -> None:
    found = example(PLAIN if train_on == "last" else PLAIN[:2])
    prompt = encode_prompt(found, family_tokenizer(), family_template(family), train_on=train_on)
    given = family_tokenizer().apply_chat_template(
        found["messages"][:-1], chat_template=family_template(family), add_generation_prompt=True, return_dict=False
    )
    assert prompt == given


@pytest.mark.parametrize(
    ("family", "end"), [("chatml_tools", "<|im_end|>"), ("llama3_like", "<|eot|>"), ("no_system", "<|/turn|>")]
)
def test_every_completion_ends_with_the_family_s_end_of_turn(family: str, end: str) -> None:
    completions = [text for is_completion, text in parts(example(PLAIN), family) if is_completion]
    assert completions == [f"green{end}", f"amber{end}"]


def test_a_turn_that_is_not_trained_on_is_prompt() -> None:
    untrained = [*PLAIN[:1], {**PLAIN[1], "train": False}, *PLAIN[2:]]
    weighted = [*PLAIN[:1], {**PLAIN[1], "weight": 0}, *PLAIN[2:]]
    expected = [text for is_completion, text in parts(example(PLAIN), "chatml_tools", "last") if is_completion]
    assert expected == ["amber<|im_end|>"]
    for messages in (untrained, weighted):
        runs = parts(example(messages), "chatml_tools")
        assert [text for is_completion, text in runs if is_completion] == expected
        assert "".join(text for _, text in runs) == "".join(text for _, text in parts(example(PLAIN), "chatml_tools"))


def test_thinking_that_earlier_turns_lose_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r'rows\.jsonl, line 1.*text\.train_on = "last"'):
        parts(example(THINKING), "qwen3_like")
    runs = parts(example(THINKING), "qwen3_like", "last")
    assert runs[1] == (True, "<think>\nafter blue\n</think>\n\namber<|im_end|>")
    assert "after red" not in runs[0][1], "the template strips it, as it does for a deployed model"


def test_thinking_within_one_answer_s_tool_loop_is_trained_on_whole() -> None:
    loop = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "reasoning_content": "look it up", "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "Sunny.", "reasoning_content": "it says so"},
    ]
    completions = [text for done, text in parts(example(loop, tools=[WEATHER]), "qwen3_like") if done]
    assert "look it up" in completions[0] and "get_weather" in completions[0]
    assert completions[1] == "<think>\nit says so\n</think>\n\nSunny.<|im_end|>"


def test_marks_say_what_is_written_where_earlier_turns_are_rewritten() -> None:
    messages = [*THINKING[:1], {"role": "assistant", "content": "green"}, *THINKING[2:]]
    runs = parts(example(messages), "marked_thinking")
    assert [text for done, text in runs if done] == [
        "green<|im_end|>",
        "<think>\nafter blue\n</think>\n\namber<|im_end|>",
    ]


def test_marks_under_which_a_trained_turn_loses_its_thinking_are_refused_by_key() -> None:
    with pytest.raises(DataError, match=r"`messages\[1\]\.reasoning_content`"):
        parts(example(THINKING), "marked_thinking")


def test_a_mark_that_leaves_the_end_of_turn_out_is_refused() -> None:
    template = family_template("marked_thinking").replace("message.content + '<|im_end|>' }}", "message.content }}")
    template = template.replace("{%- endgeneration %}", "{%- endgeneration %}{{ '<|im_end|>' }}")
    with pytest.raises(DataError, match="never learn to stop"):
        encode(example([*THINKING[:2], *PLAIN[2:]]), family_tokenizer(), template, 1000)


def test_a_variable_of_the_template_is_handed_to_it() -> None:
    found = example([*THINKING[:1], {"role": "assistant", "content": "green"}])
    off = {**found, "chat_template_kwargs": {"enable_thinking": False}}
    assert parts(found, "qwen3_like")[1][1] == "<think>\n\n</think>\n\ngreen<|im_end|>"
    assert parts(off, "qwen3_like")[1][1] == "green<|im_end|>"  # type: ignore[arg-type]
    dated = example(PLAIN[:2], chat_template_kwargs='{"date_string": "2 Feb 2026"}')
    assert "2 Feb 2026" in parts(dated, "llama3_like")[0][1]


@pytest.mark.parametrize(
    ("row", "family", "named"),
    [
        ({"messages": PLAIN, "tools": [WEATHER]}, "no_system", "`tools`"),
        ({"messages": PLAIN, "chat_template_kwargs": {"enable_thinking": True}}, "llama3_like", "enable_thinking"),
        (
            {"messages": PLAIN, "chat_template_kwargs": {"tools": []}},
            "chatml_tools",
            "the name is taken",
        ),
        ({"messages": PLAIN, "chat_template_kwargs": {"bos_token": "x"}}, "llama3_like", "the name is taken"),
        ({"messages": THINKING[:2]}, "chatml_tools", r"`messages\[1\]\.reasoning_content`"),
        ({"messages": ASKED}, "no_system", "Roles must alternate|tool_calls"),
        ({"messages": [*ASKED[:2], {**ASKED[2], "tool_calls": [CALL, CALL]}]}, "llama3_like", "one call at a time"),
        (
            {"messages": [*ASKED[:2], {**ASKED[2], "content": "Let me see."}]},
            "llama3_like",
            r"`messages\[2\]\.content`",
        ),
        ({"messages": [{**PLAIN[0], "name": "Ada"}, PLAIN[1]]}, "chatml_tools", r"`messages\[0\]\.name`"),
        ({"messages": [*PLAIN, PLAIN[0]]}, "chatml_tools", r"turn 4 \(user\) comes after the last answer"),
        ({"messages": [{**PLAIN[0], "role": "developer"}, *PLAIN[:2]]}, "chatml_tools", r"`messages\[0\]\.content`"),
        ({"messages": [PLAIN[0], {**PLAIN[1], "train": False}]}, "chatml_tools", "that is trained on"),
        ({"text": "red green"}, "chatml_tools", "not a conversation"),
    ],
)
def test_what_a_template_leaves_out_is_refused_by_file_row_and_key(row: Any, family: str, named: str) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1.*" + f"({named})"):
        parts(normalize(row, "one", "rows.jsonl, line 1"), family)


def test_calls_whose_arguments_the_template_drops_are_refused() -> None:
    template = family_template("chatml_tools").replace("call.function | tojson", "call.function.name")
    with pytest.raises(DataError, match=r"`messages\[2\]\.tool_calls`"):
        encode(example(ASKED, tools=[WEATHER]), family_tokenizer(), template, 1000)


def test_a_template_that_cuts_an_answer_short_is_refused() -> None:
    template = family_template("no_system").replace("message['content'] | trim", "message['content'][:3]")
    with pytest.raises(DataError, match=r"`messages\[1\]\.content`"):
        encode(example(PLAIN[:2]), family_tokenizer(), template, 1000)
