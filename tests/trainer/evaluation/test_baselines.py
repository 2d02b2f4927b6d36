"""What must be beaten: by hand for each kind, and a set of which half has no entity, where learning nothing shows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from cache_builder.config import DataConfig, TextConfig
from cache_builder.data.examples import Example
from cache_builder.data.sources import turns
from cache_builder.data.splits import load_splits
from tests.support.paths import ROOT
from trainer.evaluation.answers import Answer
from trainer.evaluation.baselines import ahead, baseline_answers, score
from trainer.evaluation.evaluate import TaskOutputs, evaluate_model
from trainer.evaluation.generation import Outputs
from trainer.evaluation.tasks import EvaluateConfig, TaskConfig, resolve_tasks


def rows_of(answers: list[Any], **extra: Any) -> list[Example]:
    return [
        {"id": str(row), "task": "t", "messages": turns(f"question {row}\nmore", str(answer)), **extra}
        for row, answer in enumerate(answers)
    ]  # type: ignore[typeddict-item]


def baselines_of(examples: list[Example], config: TaskConfig) -> tuple[dict[str, list[Answer | None]], list[Answer]]:
    task = resolve_tasks(examples, "files", {"t": config})["t"]
    gold = [task.gold(example) for example in examples]
    return baseline_answers(task, examples, gold), gold


def test_a_choice_is_to_beat_the_label_that_most_rows_have() -> None:
    answers, gold = baselines_of(rows_of(["b", "a", "b"], choices=["a", "b"]), TaskConfig())
    assert answers == {"majority": ["b", "b", "b"]}
    assert score("accuracy", answers["majority"], gold, 10)["value"] == pytest.approx(2 / 3)
    assert score("kappa", answers["majority"], gold, 10)["value"] == 0


def test_a_line_is_to_beat_the_most_frequent_one_and_the_question() -> None:
    answers, _ = baselines_of(rows_of(["4 mg", "8 mg", "8 mg"]), TaskConfig(kind="exact"))
    assert answers == {"majority": ["8 mg"] * 3, "prompt": [f"question {row}" for row in range(3)]}
    answers, _ = baselines_of(rows_of(["4 mg", "8 mg", "8 mg"]), TaskConfig(kind="text"))
    assert answers["prompt"][0] == "question 0\nmore"


def test_entities_are_to_beat_nothing_and_the_whole_question() -> None:
    answers, _ = baselines_of(rows_of([["a"], []]), TaskConfig(kind="entities"))
    assert answers == {"empty": [[], []], "prompt": [["question 0\nmore"], ["question 1\nmore"]]}


def test_being_ahead_is_resampled_in_pairs() -> None:
    gold: list[Answer] = ["a"] * 30 + ["b"] * 10
    majority: list[Answer | None] = ["a"] * 40
    better: list[Answer | None] = ["a"] * 30 + ["b"] * 9 + ["a"]
    found = ahead("accuracy", better, majority, gold, 500)
    assert found["value"] == pytest.approx(9 / 40) and 0.08 < found["low"] < found["value"] < found["high"] < 0.38
    assert ahead("accuracy", majority, majority, gold, 50) == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert ahead("kappa", better, majority, gold, 50)["low"] > 0


@pytest.fixture
def half_empty() -> list[Example]:
    folder = ROOT / "tests" / "fixtures" / "ner_half_empty"
    data = DataConfig(train=str(folder / "train.jsonl"), test=str(folder / "test.jsonl"))
    examples = list(load_splits(data, 0)["test"])
    assert [example["answer"] == [] for example in examples].count(True) == len(examples) // 2
    return examples


def written(examples: list[Example], texts: list[str]) -> dict[str, Any]:
    """Return the task's part of metrics.json for a model that wrote `texts`."""
    task = resolve_tasks(examples, "files", {})["findings"]
    parsed = [task.read(text, example) for text, example in zip(texts, examples, strict=True)]
    gold = [task.gold(example) for example in examples]
    return TaskOutputs(task, examples, texts, Outputs(texts, [], 1, 1.0), parsed, gold, {}).result(200)


def test_a_model_that_learned_nothing_is_at_its_baseline_and_one_that_learned_is_above_it(
    half_empty: list[Example],
    make_model: Callable[..., LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    settings = EvaluateConfig(max_new_tokens=8, bootstrap_samples=200)
    text = TextConfig(chat_template="plain", max_length=200)
    tasks = resolve_tasks(half_empty, "files", {})
    evaluate_model(make_model(), tokenizer, half_empty, tasks, settings, tmp_path, "student", text=text)
    untrained = json.loads((tmp_path / "evaluate" / "student" / "metrics.json").read_text())["tasks"]["findings"]
    says_nothing = written(half_empty, ["[]"] * len(half_empty))
    assert says_nothing["metrics"]["exact_f1"]["value"] == 0.5, "the mean over rows calls saying nothing half right"
    for learned_nothing in (untrained, says_nothing):
        assert learned_nothing["primary"] == "entity_f1" and learned_nothing["metrics"]["entity_f1"]["value"] == 0
        assert learned_nothing["baselines"]["empty"]["metrics"]["entity_f1"]["value"] == 0
        assert min(each["ahead"]["low"] for each in learned_nothing["baselines"].values()) <= 0
    finds_the_first = written(half_empty, [str(example["answer"][:1]) for example in half_empty])
    assert min(each["ahead"]["low"] for each in finds_the_first["baselines"].values()) > 0.3
    copies = written(half_empty, [str([example["messages"][0]["content"]]) for example in half_empty])
    assert 0 < copies["metrics"]["partial_f1"]["value"] < 0.3
    assert copies["metrics"] == copies["baselines"]["prompt"]["metrics"]
