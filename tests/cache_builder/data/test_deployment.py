"""A saved model is prompted as it was trained, by whoever loads its folder, and stops where training ended."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.config import TextConfig
from cache_builder.data.chat import encode_prompt
from cache_builder.data.deployment import Deployment, make_deployment
from cache_builder.data.examples import Example
from cache_builder.data.rows.shapes import normalize
from cache_builder.data.tokenising import build_corpus
from cache_builder.errors import ModelError
from tests.support.templates import family_template, family_tokenizer
from tests.support.toys import color_examples

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
ASKED = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the weather?"},
    {"role": "assistant", "tool_calls": [{"name": "get_weather", "arguments": {"city": "Paris"}}]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
]


def deployment(folder: Path, examples: list[Example], tokenizer: PreTrainedTokenizerBase, template: str) -> Deployment:
    text = TextConfig(chat_template=template, max_length=500)
    corpus = build_corpus(examples, tokenizer, folder / "corpus", text=text, inputs={})
    return make_deployment(tokenizer, text, examples, corpus)


def saved(folder: Path, made: Deployment, model: LlamaForCausalLM) -> Path:
    model.save_pretrained(folder / "model")
    made.tokenizer.save_pretrained(folder / "model")
    made.finish(folder / "model")
    return folder / "model"


def test_plain_travels_as_jinja_that_makes_the_same_tokens(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    folder = saved(tmp_path, deployment(tmp_path, color_examples(6), tokenizer, "plain"), make_model())
    loaded: Any = AutoTokenizer.from_pretrained(folder)
    assert (folder / "chat_template.jinja").is_file()
    for example in color_examples(6):
        given = loaded.apply_chat_template(example["messages"][:1], add_generation_prompt=True, return_dict=False)
        assert given == encode_prompt(example, tokenizer, "plain")


def test_a_family_s_template_travels_with_tools_and_its_end_of_turn(
    tmp_path: Path, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    tokenizer, template = family_tokenizer(), family_template("chatml_tools")
    examples = [normalize({"messages": ASKED, "tools": [WEATHER]}, f"e{index}", "rows") for index in range(3)]
    folder = saved(tmp_path, deployment(tmp_path, examples, tokenizer, template), make_model(vocab_size=320))
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    assert ends == [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    assert (folder / "chat_template.jinja").read_text() == template
    assert tokenizer.chat_template is None, "the training tokenizer is left alone"


def test_a_template_without_a_system_role_takes_one_wherever_it_goes(
    tmp_path: Path, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    tokenizer, template = family_tokenizer(), family_template("no_system")
    messages = [{"role": "system", "content": "Be\nbrief."}, *color_examples(1)[0]["messages"]]
    examples = [normalize({"messages": messages}, f"e{index}", "rows") for index in range(3)]
    folder = saved(tmp_path, deployment(tmp_path, examples, tokenizer, template), make_model(vocab_size=320))
    loaded: Any = AutoTokenizer.from_pretrained(folder)
    given = loaded.apply_chat_template(messages[:2], add_generation_prompt=True, tokenize=False)
    assert given.startswith("<|begin|><|turn|>user\nBe\nbrief.\n\ncase 0")


def test_a_saved_tokenizer_that_prompts_otherwise_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    made = deployment(tmp_path, color_examples(6), tokenizer, "plain")
    folder = saved(tmp_path, made, make_model())
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("'\n'", "' '"))
    with pytest.raises(ModelError, match=r"model: the tokenizer saved there makes other tokens .*'color-0'"):
        made.finish(folder)
    template.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert "chat_template" not in config
    with pytest.raises(ModelError, match="has no chat template"):
        made.finish(folder)


def test_what_a_model_declares_as_its_ends_is_kept(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    model = make_model()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [7, 0]
    made = deployment(tmp_path, color_examples(6), tokenizer, "plain")
    settings = GenerationConfig.from_pretrained(saved(tmp_path, made, model))
    assert settings.eos_token_id == [0, 7] and settings.pad_token_id == 1


def test_a_model_trained_on_texts_travels_without_a_template(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    examples: list[Example] = [{"id": "a", "task": "t", "messages": [], "text": "red green"}]
    corpus = build_corpus(examples, tokenizer, tmp_path / "corpus", text=TextConfig(), inputs={})
    made = make_deployment(tokenizer, TextConfig(), examples, corpus)
    folder = saved(tmp_path, made, make_model())
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [0]
    assert not (folder / "chat_template.jinja").exists()
