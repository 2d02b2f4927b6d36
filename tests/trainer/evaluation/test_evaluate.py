"""Evaluation: what a row gets does not depend on its batch, and everything that was said is kept."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.config import TextConfig
from cache_builder.data.chat import encode, encode_prompt
from cache_builder.data.examples import Example
from cache_builder.errors import ConfigError, DataError, ModelError
from tests.support.toys import COLORS, color_examples
from trainer.evaluation.evaluate import evaluate_model
from trainer.evaluation.generation import GREEDY, find_stop_ids, generate, with_answer
from trainer.evaluation.likelihood import completion_logp, likeliest, one_by_one
from trainer.evaluation.tasks import EvaluateConfig, TaskConfig, resolve_tasks

MakeModel = Callable[..., LlamaForCausalLM]
PLAIN = TextConfig(chat_template="plain", max_length=96)


@pytest.fixture(scope="module")
def trained(make_model: MakeModel, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A model that has learned to answer with a color and stop, and not which."""
    model = make_model(hidden_size=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    examples = color_examples(8)
    for _ in range(60):
        loss = torch.zeros(())
        for example in examples:
            encoded = encode(example, tokenizer, "plain", 96)
            assert encoded is not None
            ids = torch.tensor([encoded.input_ids])
            labels = ids.masked_fill(~torch.tensor([encoded.completion]), -100)
            loss = loss + model(input_ids=ids, labels=labels).loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def run(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    examples: list[Example],
    tasks: dict[str, TaskConfig] | None = None,
    text: TextConfig = PLAIN,
    **settings: object,
) -> tuple[dict, list[dict]]:  # type: ignore[type-arg]
    evaluate_model(
        model,
        tokenizer,
        examples,
        resolve_tasks(examples, "files", tasks or {}),
        EvaluateConfig.model_validate({"max_new_tokens": 8, "bootstrap_samples": 50, **settings}),
        folder,
        "scd/seed-0/best",
        text=text,
        method="scd",
        seed=0,
        which="best",
    )
    written = folder / "evaluate" / "scd" / "seed-0" / "best"
    lines = (written / "predictions.jsonl").read_text().splitlines()
    assert sorted(path.name for path in written.iterdir()) == ["metrics.json", "predictions.jsonl"]
    return json.loads((written / "metrics.json").read_text()), [json.loads(line) for line in lines]


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_a_batch_of_unequal_prompts_writes_what_one_by_one_does(
    batch_size: int, make_model: MakeModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_model(initializer_range=0.3).double()
    prompts = [encode_prompt(example, tokenizer, "plain") for example in color_examples(9)]
    prompts = [prompt[: 3 + 2 * index] for index, prompt in enumerate(prompts)]
    alone, together = (
        generate(model, tokenizer, prompts, stop_ids=[0], max_new_tokens=12, batch_size=size)
        for size in (1, batch_size)
    )
    assert together.texts == alone.texts
    assert together.tokens == alone.tokens
    assert len(set(alone.texts)) > 3


def test_greedy_generation_follows_the_model_s_own_logits(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_model(initializer_range=0.3).double()
    prompt = encode_prompt(color_examples(1)[0], tokenizer, "plain")
    ids = list(prompt)
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1, : len(tokenizer)].argmax()))
    written = generate(model, tokenizer, [prompt], stop_ids=[0], max_new_tokens=6, batch_size=1)
    assert 0 not in ids[len(prompt) :]
    assert written.texts == [tokenizer.decode(ids[len(prompt) :])]
    assert written.tokens == 6


def test_rows_of_the_head_beyond_the_tokenizer_are_never_written(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_model(vocab_size=320)
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] = 50 * model.lm_head.weight[: 320 - len(tokenizer)]
    written: list[torch.Tensor] = []
    plain_generate = model.generate
    model.generate = lambda *args, **options: written.append(plain_generate(*args, **options)) or written[-1]  # type: ignore[method-assign,assignment,func-returns-value]
    prompts = [encode_prompt(example, tokenizer, "plain") for example in color_examples(4)]
    generate(model, tokenizer, prompts, stop_ids=[0], max_new_tokens=8, batch_size=4)
    assert int(written[0].max()) < len(tokenizer)


def test_a_trained_model_stops_at_its_end_of_turn(
    trained: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    _, predictions = run(trained, tokenizer, tmp_path, color_examples(12), max_new_tokens=40)
    assert all(row["output"] in COLORS for row in predictions)


def test_an_end_of_turn_that_is_not_eos_stops_too(make_model: MakeModel, tokenizer: PreTrainedTokenizerBase) -> None:
    template = (
        "{% for message in messages %}{{ message.content }}{{ '<|pad|>' if message.role == 'assistant' }}{% endfor %}"
    )
    assert find_stop_ids(make_model(), tokenizer, color_examples(1)[0], TextConfig(chat_template=template)) == [0, 1]


def test_an_eos_that_is_a_word_of_the_tokenizer_stops_nothing(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A config's default eos is id 2, which in a trained tokenizer is "!"; id 1 is a token of its own."""
    model, example = make_model(), color_examples(1)[0]
    assert tokenizer.decode([2]) == "!" and model.generation_config is not None
    for declared, stops in ((2, [0]), ([1, 2], [0, 1]), (None, [0]), (303, [0])):
        model.generation_config.eos_token_id = declared
        assert find_stop_ids(model, tokenizer, example, PLAIN) == stops


def test_greedy_is_greedy_whatever_a_model_s_generation_config_asks_for(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Saved and loaded: a penalty that changes what is written by its own config changes nothing here."""
    plain, examples = make_model(initializer_range=0.3), color_examples(6)
    _, expected = run(plain, tokenizer, tmp_path / "plain", examples)
    written = tokenizer(expected[0]["output"])["input_ids"]
    asked = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "num_beams": 3, "suppress_tokens": written}
    plain.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({**config, **asked}))
    penalised = LlamaForCausalLM.from_pretrained(tmp_path / "model").eval()
    metrics, predictions = run(penalised, tokenizer, tmp_path / "penalised", examples)
    assert [row["output"] for row in predictions] == [row["output"] for row in expected]
    assert metrics["ignored_generation_config"] == asked
    decoding = metrics["tasks"]["color"]["decoding"]
    assert 0 < decoding.pop("padded_mass") < 1, "four of the head's rows are no token's"
    assert decoding == {"method": "generate", **GREEDY, "max_new_tokens": 8, "stop_ids": [0]}
    assert penalised.generation_config.repetition_penalty == 5.0, "a judged model is left as it was"
    prompt = torch.tensor([encode_prompt(examples[0], tokenizer, "plain")])
    ids = penalised.generate(prompt, max_new_tokens=8, attention_mask=torch.ones_like(prompt))[0, prompt.shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True) != expected[0]["output"], "by its own config it differs"


def test_every_prediction_and_the_counts_are_kept(
    trained: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    examples = color_examples(12)
    metrics, predictions = run(trained, tokenizer, tmp_path, examples)
    assert [row["id"] for row in predictions] == [example["id"] for example in examples]
    assert predictions[3]["prompt"] == examples[3]["messages"][0]["content"] + "\n"
    right = [float(row["parsed"] == row["answer"]) for row in predictions]
    assert [row["score"] for row in predictions] == right
    result = metrics["tasks"]["color"]
    assert (result["rows"], result["unparsable"], result["primary"]) == (12, 0, "exact_match")
    assert result["metrics"]["exact_match"]["value"] == pytest.approx(sum(right) / 12)
    assert metrics["parameters"] == trained.num_parameters() and metrics["bytes"] == 4 * metrics["parameters"]
    assert metrics["tokens_per_second"] > 0
    assert (metrics["model"], metrics["method"], metrics["seed"], metrics["which"], metrics["split"]) == (
        "scd/seed-0/best",
        "scd",
        0,
        "best",
        "test",
    )


def test_unparsable_answers_are_counted_and_wrong(
    trained: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    examples: list[Example] = [{**example, "answer": ["red"]} for example in color_examples(6)]  # type: ignore[misc]
    metrics, predictions = run(trained, tokenizer, tmp_path, examples)
    assert metrics["tasks"]["color"]["unparsable"] == 6
    assert [row["parsed"] for row in predictions] == [None] * 6 and {row["score"] for row in predictions} == {0.0}


def test_likelihood_takes_the_choice_that_the_model_finds_likeliest(
    trained: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    examples = color_examples(10)
    choices = {"color": TaskConfig(choices=list(COLORS))}
    _, predictions = run(trained, tokenizer, tmp_path, examples, choices, method="likelihood")
    for example, row in zip(examples, predictions, strict=True):
        logp = []
        for color in COLORS:
            encoded = encode(with_answer(example, color), tokenizer, "plain", 96)
            assert encoded is not None
            ids = torch.tensor(encoded.input_ids)
            with torch.no_grad():
                log_q = trained(ids[None]).logits[0, :, : len(tokenizer)].log_softmax(-1)
            logp.append(sum(float(log_q[i - 1, ids[i]]) for i, is_answer in enumerate(encoded.completion) if is_answer))
        assert row["parsed"] == COLORS[logp.index(max(logp))]


def test_likelihood_judges_the_last_turn_only(make_model: MakeModel, tokenizer: PreTrainedTokenizerBase) -> None:
    first, second = color_examples(2)
    example: Example = {**second, "messages": [*first["messages"], *second["messages"]]}
    done: list[int] = []
    outputs = likeliest(
        make_model(), tokenizer, [example, second], [COLORS, COLORS[:2]], text=PLAIN,
        advance=done.append,
    )  # fmt: skip
    chosen = [encode(with_answer(second, color), tokenizer, "plain", 96) for color in outputs.texts]
    assert outputs.tokens == sum(sum(one.completion) for one in chosen if one is not None)
    assert sum(done) == 2


def test_choices_scored_from_one_pass_over_the_prompt_equal_those_scored_one_by_one(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.evaluation.likelihood.BATCH_TOKENS", 64)
    monkeypatch.setattr("trainer.evaluation.likelihood.BATCH_LOGITS", 3_000)
    model = make_model(initializer_range=0.3).double()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 300, length).tolist() for length in (3, 9, 17, 4, 30, 1)]
    sequences = [
        (prompt, rng.integers(2, 300, length).tolist()) for prompt in [*prompts, prompts[0]] for length in (1, 4, 2, 7)
    ]
    passes: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, options: passes.append(options["input_ids"].numel()), with_kwargs=True
    )
    done: list[int] = []
    with torch.inference_mode():
        ours = completion_logp(model, sequences, 300, 1, done.extend)
        shared = sum(passes)
        expected = one_by_one(sequences, model, 300, 1)
    assert sorted(done) == list(range(len(sequences)))
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    assert shared < sum(len(prompt) + len(completion) for prompt, completion in sequences)


def test_a_model_without_plain_keys_and_values_is_scored_one_by_one(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(initializer_range=0.3)
    sequences = [([5, 6, 7], [8, 9]), ([5, 6, 7], [9]), ([4, 3], [2, 2, 2])]
    with torch.inference_mode():
        expected = completion_logp(model, sequences, 300, 1)
        for name, value in (("PLAIN_LAYERS", ()), ("NEEDED", {"cache_params"})):
            monkeypatch.setattr(f"trainer.evaluation.likelihood.{name}", value)
            done: list[int] = []
            np.testing.assert_allclose(completion_logp(model, sequences, 300, 1, done.extend), expected, rtol=1e-4)
            assert sorted(done) == [0, 1, 2]
            monkeypatch.undo()


def test_a_model_that_says_nan_is_refused_by_the_example(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match=color_examples(1)[0]["id"]):
        likeliest(model, tokenizer, color_examples(1), [COLORS], text=PLAIN)


def test_a_judged_model_is_left_as_it_was(
    trained: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    trained.train()
    run(trained, tokenizer, tmp_path, color_examples(2))
    assert trained.training
    with pytest.raises(ConfigError, match="positions"):
        run(trained, tokenizer, tmp_path, color_examples(2), max_new_tokens=255)
    assert trained.training, "a model that a failure leaves in eval mode trains on without dropout"
    trained.eval()


def test_judging_again_replaces_what_was_there(
    trained: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    run(trained, tokenizer, tmp_path, color_examples(6))
    metrics, predictions = run(trained, tokenizer, tmp_path, color_examples(4))
    assert metrics["tasks"]["color"]["rows"] == len(predictions) == 4


def test_no_examples_and_too_few_positions_are_refused(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no test examples"):
        run(make_model(), tokenizer, tmp_path, [])
    with pytest.raises(ConfigError, match=r"max_new_tokens is 255, but the model has only 256 positions"):
        run(make_model(), tokenizer, tmp_path, color_examples(1), max_new_tokens=255)
    assert not list(tmp_path.iterdir())


def test_a_long_prompt_is_cut_to_the_model_s_positions(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    example = color_examples(1)[0]
    example["messages"][0]["content"] *= 60
    text = TextConfig(chat_template="plain", max_length=4096)
    _, predictions = run(make_model(), tokenizer, tmp_path, [example], text=text)
    assert len(tokenizer(predictions[0]["prompt"])["input_ids"]) <= 256 - 8 + 2
