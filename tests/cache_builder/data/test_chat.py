"""Examples become tokens in one place, and what a completion is never depends on a token's id."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from cache_builder.data.chat import encode, encode_prompt
from cache_builder.data.examples import Example
from cache_builder.data.rendering.templates import PLAIN_TEMPLATE, resolve_template
from cache_builder.data.tokenizer import tokenizer_fingerprint
from cache_builder.errors import DataError

CHAT = (
    "{% for m in messages %}<|end|>{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<|end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|end|>assistant: {% endif %}"
)


def example(*turns: str) -> Example:
    roles = ("user", "assistant")
    return {
        "id": "one",
        "task": "t",
        "messages": [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)],
    }


def completion_text(tokenizer: PreTrainedTokenizerBase, encoded: Any) -> str:
    return tokenizer.decode(
        [t for t, is_completion in zip(encoded.input_ids, encoded.completion, strict=True) if is_completion]
    )


def test_only_the_completion_and_its_eos_are_targets(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode(example("red then green?", "green"), tokenizer, "plain", 64)
    assert encoded is not None
    assert completion_text(tokenizer, encoded) == "green<|end|>"
    assert tokenizer.decode(encoded.input_ids) == "red then green?\ngreen<|end|>"


def test_every_assistant_turn_is_a_completion(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode(example("red?", "green", "blue?", "amber"), tokenizer, "plain", 64)
    assert encoded is not None
    assert completion_text(tokenizer, encoded) == "green<|end|>amber<|end|>"


def test_eos_inside_a_prompt_is_not_a_target_and_at_the_end_it_is(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode(example("red?", "green", "blue?", "amber"), tokenizer, CHAT, 64)
    assert encoded is not None
    assert completion_text(tokenizer, encoded) == "green<|end|>amber<|end|>"
    assert tokenizer.decode(encoded.input_ids).endswith("assistant: amber<|end|>")


def test_a_prompt_is_tokenised_the_same_for_training_and_for_inference(tokenizer: PreTrainedTokenizerBase) -> None:
    for template in ("plain", CHAT):
        conversation = example("red?", "green", "blue?", "amber")
        encoded = encode(conversation, tokenizer, template, 64)
        prompt = encode_prompt(conversation, tokenizer, template)
        assert encoded is not None
        assert encoded.input_ids[: len(prompt)] == prompt
        assert not encoded.completion[len(prompt) - 1] and all(encoded.completion[len(prompt) :])


def test_truncation_cuts_the_middle_of_the_prompt_and_counts_what_it_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    conversation = example("red " * 40 + "end", "green blue")
    whole = encode(conversation, tokenizer, "plain", 1000)
    cut = encode(conversation, tokenizer, "plain", 20)
    assert whole is not None and cut is not None
    assert len(cut.input_ids) == 20
    assert cut.truncated_tokens == len(whole.input_ids) - 20
    assert completion_text(tokenizer, cut) == completion_text(tokenizer, whole)
    assert cut.input_ids[0] == whole.input_ids[0]
    assert cut.input_ids[-6:] == whole.input_ids[-6:]


def test_a_completion_that_does_not_fit_drops_the_example_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    assert encode(example("red?", "green " * 30), tokenizer, "plain", 20) is None


@pytest.mark.parametrize("turns", [("red?",), ("red?", "  ")])
def test_an_example_without_a_completion_is_refused_by_its_id(
    tokenizer: PreTrainedTokenizerBase, turns: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match="'one'"):
        encode(example(*turns), tokenizer, "plain", 64)


REFUSING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|end|>{{ m.role }}: {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant: {% endif %}"
)
DROPPING = (
    "{% for m in messages if m.role != 'system' %}<|end|>{{ m.role }}: {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant: {% endif %}"
)


@pytest.mark.parametrize("template", [REFUSING, DROPPING])
def test_without_a_system_role_the_system_message_opens_the_user_s(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    conversation = example("red?", "green", "blue?", "amber")
    conversation["messages"].insert(0, {"role": "system", "content": "Name a color."})
    prompt = "<|end|>user: Name a color.\n\nred?<|end|>assistant: "
    encoded = encode(conversation, tokenizer, template, 200)
    assert encoded is not None
    assert tokenizer.decode(encoded.input_ids).startswith(prompt + "green")
    assert (
        tokenizer.decode(encode_prompt({**conversation, "messages": conversation["messages"][:3]}, tokenizer, template))
        == prompt
    )
    assert conversation["messages"][0]["role"] == "system", "the example itself is left alone"


def test_a_template_with_a_system_role_gets_it(tokenizer: PreTrainedTokenizerBase) -> None:
    conversation = example("red?", "green")
    conversation["messages"].insert(0, {"role": "system", "content": "Name a color."})
    text = tokenizer.decode(encode_prompt(conversation, tokenizer, CHAT))
    assert text == "<|end|>system: Name a color.<|end|>user: red?<|end|>assistant: "


def test_a_system_message_that_cannot_be_joined_is_refused_by_the_examples_id(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    conversation = example("red?", "green")
    conversation["messages"] = [{"role": "system", "content": "Hi."}, conversation["messages"][1]]
    with pytest.raises(DataError, match="fails on example 'one': System role not supported"):
        encode(conversation, tokenizer, REFUSING, 64)


def test_a_template_that_rewrites_the_prompt_is_refused_by_the_examples_id(tokenizer: PreTrainedTokenizerBase) -> None:
    rewriting = "{{ messages | length }} {% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="breaks the prompt of example 'one'"):
        encode(example("red?", "green"), tokenizer, rewriting, 64)


def test_a_template_that_fails_is_refused_by_the_examples_id(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="fails on example 'one'"):
        encode(example("red?", "green"), tokenizer, "{{ messages[9].content }}", 64)


def test_a_tokenizer_without_a_template_asks_for_one(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"text\.chat_template"):
        resolve_template(tokenizer, None)
    assert resolve_template(tokenizer, "plain") == PLAIN_TEMPLATE


def test_a_turn_that_ends_without_a_special_token_gets_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode(example("red?", "green"), tokenizer, "{% for m in messages %}{{ m.content }} {% endfor %}", 64)
    assert encoded is not None
    assert encoded.input_ids[-1] == tokenizer.eos_token_id


def test_using_a_tokenizer_does_not_change_its_fingerprint(tokenizer: PreTrainedTokenizerBase) -> None:
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["red", "red green"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before
