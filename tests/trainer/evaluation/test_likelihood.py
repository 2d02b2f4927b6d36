"""Likelihood of choices: on every kind of past that a model can have, and after the same prompt for all choices."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.config import TextConfig
from cache_builder.data.chat import encode
from cache_builder.data.examples import Example
from cache_builder.errors import DataError
from tests.support.hybrid_families import HYBRIDS, PLAIN, make
from tests.support.toys import color_examples
from trainer.evaluation.evaluate import evaluate_model
from trainer.evaluation.generation import with_answer
from trainer.evaluation.likelihood import choice_sequences, completion_logp, has_plain_past, likeliest
from trainer.evaluation.tasks import EvaluateConfig, TaskConfig, resolve_tasks


@pytest.mark.filterwarnings("ignore")  # of kernels that are not installed
@pytest.mark.parametrize("family", [*HYBRIDS, *PLAIN])
def test_choices_get_the_score_that_each_has_read_alone(family: str) -> None:
    model = make(family, {**HYBRIDS, **PLAIN}[family])
    assert has_plain_past(model) == (family in PLAIN)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 300, length).tolist() for length in (3, 9, 30)]
    sequences = [(prompt, rng.integers(2, 300, length).tolist()) for prompt in prompts for length in (1, 4, 2)]
    with torch.inference_mode():
        found = completion_logp(model, sequences, 300, 1)
        for (prompt, completion), ours in zip(sequences, found, strict=True):
            logp = model(torch.tensor([[*prompt, *completion]])).logits[0, :, :300].float().log_softmax(-1)
            alone = sum(float(logp[len(prompt) + i - 1, token]) for i, token in enumerate(completion))
            assert ours == pytest.approx(alone, abs=1e-4)


def text_of(max_length: int) -> TextConfig:
    return TextConfig(chat_template="plain", max_length=max_length)


def long_example(words: int) -> Example:
    example = color_examples(1)[0]
    example["messages"][0]["content"] = " ".join(f"word{index}" for index in range(words))
    return example


def test_all_choices_follow_one_prompt_the_one_that_training_has(tokenizer: PreTrainedTokenizerBase) -> None:
    example, choices = long_example(30), ["red", "a much longer choice than red is", "blue and green"]
    for max_length in (64, 300):
        prompt, completions = choice_sequences(example, choices, tokenizer, text_of(max_length))
        longest = encode(with_answer(example, choices[1]), tokenizer, "plain", max_length)
        assert longest is not None and longest.input_ids == [*prompt, *completions[1]]
        assert (longest.truncated_tokens > 0) == (max_length == 64)
        for choice, completion in zip(choices, completions, strict=True):
            whole = encode(with_answer(example, choice), tokenizer, "plain", 10_000)
            assert whole is not None and whole.input_ids[-len(completion) :] == completion
            if max_length == 300:
                assert whole.input_ids == [*prompt, *completion]


def test_a_choice_that_does_not_fit_is_refused_by_its_example(
    make_model: Callable[..., LlamaForCausalLM], tokenizer: PreTrainedTokenizerBase
) -> None:
    labels = [["red", "x y z " * 40]]
    with pytest.raises(DataError, match=r"'color-0': the choice 'x y z .* does not fit 64 tokens"):
        likeliest(make_model(), tokenizer, [long_example(2)], labels, text=text_of(64))


def test_the_prompt_that_is_kept_is_the_one_that_the_choices_followed(
    make_model: Callable[..., LlamaForCausalLM], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Also where the model has fewer positions than text.max_length has tokens."""
    example = {**long_example(200), "choices": ["red", "blue"]}
    tasks = resolve_tasks([example], "files", {"color": TaskConfig()})  # type: ignore[list-item]
    evaluate_model(
        make_model(),
        tokenizer,
        [example],  # type: ignore[list-item]
        tasks,
        EvaluateConfig(method="likelihood", bootstrap_samples=2),
        tmp_path,
        "m",
        text=text_of(4096),
    )
    row = json.loads((tmp_path / "evaluate" / "m" / "predictions.jsonl").read_text())
    prompt, completions = choice_sequences(example, ["red", "blue"], tokenizer, text_of(256))  # type: ignore[arg-type]
    assert row["prompt"] == tokenizer.decode(prompt) and len(prompt) + max(map(len, completions)) == 256
