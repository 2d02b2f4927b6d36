"""A head with more rows than there are tokens: no answer has such an id, whoever writes it, and their mass is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from cache_builder.config import TextConfig
from cache_builder.data.chat import encode_prompt
from cache_builder.data.deployment import make_deployment
from cache_builder.data.tokenising import build_corpus
from tests.support.toys import color_examples
from trainer.evaluation.evaluate import evaluate_model
from trainer.evaluation.generation import generate
from trainer.evaluation.tasks import EvaluateConfig, resolve_tasks

TEXT = TextConfig(chat_template="plain", max_length=200)


@pytest.fixture
def padded(tmp_path: Path, tokenizer: Any, make_model: Callable[..., LlamaForCausalLM]) -> Path:
    """A saved model that gives nearly all of its mass to ids 300 to 303, which are no tokens."""
    model = make_model(vocab_size=len(tokenizer) + 4)
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer)] = 60 * model.lm_head.weight[5]
        model.lm_head.weight[len(tokenizer) + 1] = -60 * model.lm_head.weight[5]
        model.lm_head.weight[len(tokenizer) + 2 :] = 0
    examples = color_examples(6)
    corpus = build_corpus(examples, tokenizer, tmp_path / "corpus", text=TEXT, inputs={})
    deployment = make_deployment(tokenizer, TEXT, examples, corpus)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    deployment.tokenizer.save_pretrained(folder)
    deployment.finish(folder)
    deployment.finish(folder)
    return folder


def written(model: Any, tokenizer: Any, **settings: Any) -> torch.Tensor:
    ids = torch.tensor([encode_prompt(color_examples(1)[0], tokenizer, "plain")])
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, **settings)[0, ids.shape[1] :]


def test_the_saved_generation_config_keeps_generate_from_ids_that_are_no_tokens(padded: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(padded), AutoTokenizer.from_pretrained(padded)
    size = len(tokenizer)
    assert GenerationConfig.from_pretrained(padded).suppress_tokens == list(range(size, size + 4))
    for sampled in (False, True):
        assert (written(model, tokenizer, do_sample=sampled) < size).all()
    model.generation_config.suppress_tokens = None
    assert (written(model, tokenizer, do_sample=False) >= size).any(), "the model is not one that this matters for"


def test_evaluation_never_takes_them_and_tells_their_mass(padded: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(padded), AutoTokenizer.from_pretrained(padded)
    examples = color_examples(5)
    prompts = [encode_prompt(example, tokenizer, "plain") for example in examples]
    outputs = generate(model, tokenizer, prompts, stop_ids=[0], max_new_tokens=4, batch_size=2)
    expected = []
    for ids in prompts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        expected.append(float(logits.softmax(-1)[len(tokenizer) :].sum()))
    assert outputs.padded_mass == pytest.approx(sum(expected) / 5, rel=1e-4) and outputs.padded_mass > 0.02
    tasks = resolve_tasks(examples, "files", {})
    result = evaluate_model(model, tokenizer, examples, tasks, EvaluateConfig(), tmp_path, "padded", text=TEXT)
    assert result["tasks"]["color"]["decoding"]["padded_mass"] == pytest.approx(outputs.padded_mass, rel=1e-4)
    assert result["ignored_generation_config"] == {}


def test_a_head_as_large_as_the_tokenizer_has_nothing_to_suppress_or_tell(
    tmp_path: Path, tokenizer: Any, make_model: Callable[..., LlamaForCausalLM]
) -> None:
    prompts = [encode_prompt(example, tokenizer, "plain") for example in color_examples(3)]
    model = make_model(vocab_size=len(tokenizer))
    assert generate(model, tokenizer, prompts, stop_ids=[0], max_new_tokens=2, batch_size=2).padded_mass is None


def test_cutting_the_rows_off_as_the_page_says_keeps_every_logit(padded: Path) -> None:
    """For servers that read no suppress_tokens."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(padded), AutoTokenizer.from_pretrained(padded)
    ids = torch.tensor([encode_prompt(color_examples(1)[0], tokenizer, "plain")])
    with torch.no_grad():
        before = model(input_ids=ids).logits[..., : len(tokenizer)]
        model.resize_token_embeddings(len(tokenizer))
        after = model(input_ids=ids).logits
    assert after.shape == before.shape and torch.equal(before, after)
