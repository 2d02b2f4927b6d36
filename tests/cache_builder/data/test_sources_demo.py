"""The demo's generator: deterministic, clean where it judges, mistaken where it trains."""

import re

import pytest

from cache_builder.config import DataConfig
from cache_builder.data.examples import Example
from cache_builder.data.sources import demo
from cache_builder.errors import ConfigError


def load(seed: int = 0, **options: object) -> dict[str, list[Example]]:
    return demo.load(DataConfig.model_validate({"source": "demo", **options}), seed)


def right_answer(prompt: str) -> str:
    """Answer a prompt from its text alone."""
    note, question = prompt.split("\n")
    found = re.fullmatch(r"(child|adult|elder) \. (.*) \. kidneys (weak|fine) \. takes (\w+) \.", note)
    assert found
    patient, listed, kidneys, drug = found.groups()
    findings = [mention.split() for mention in listed.split(" , ")]
    if question == "findings ?":
        return str([finding for status, finding in findings if status != "no"])
    if question == "department ?":
        severe = next(finding for status, finding in findings if status == "severe")
        return "pediatrics" if patient == "child" else demo.DEPARTMENT_OF[severe]
    if question == "plan ?":
        return f"change to {demo.OTHER_FAMILY[demo.FAMILY_OF[drug]]}" if kidneys == "weak" else f"keep {drug}"
    dose = 4 * (1 + demo.DRUGS.index(drug) % 6)
    return f"{dose // 2 if patient == 'child' else dose if patient == 'adult' else 3 * dose // 4} mg"


def share_right(examples: list[Example]) -> float:
    return sum(e["messages"][1]["content"] == right_answer(e["messages"][0]["content"]) for e in examples) / len(
        examples
    )


def test_the_same_seed_gives_the_same_examples_and_another_seed_others() -> None:
    assert load() == load()
    assert load()["test"] != load(seed=1)["test"]


def test_fewer_examples_are_the_first_ones_and_the_test_set_stays() -> None:
    few, many = load(train_examples=60, validation_examples=20), load()
    assert few["train"] == many["train"][:60] and few["validation"] == many["validation"][:20]
    assert few["test"] == many["test"]
    assert [len(many[split]) for split in ("train", "validation", "test")] == [3000, 300, 600]


def test_no_prompt_is_in_two_places() -> None:
    prompts = [example["messages"][0]["content"] for examples in load().values() for example in examples]
    assert len(set(prompts)) == len(prompts)


def test_validation_and_test_answers_follow_the_rules_and_training_answers_mostly() -> None:
    splits = load()
    assert share_right(splits["test"]) == share_right(splits["validation"]) == 1
    for task in demo.TASKS:
        rows = [example for example in splits["train"] if example["task"] == task]
        assert 0.7 < share_right(rows) < 0.8, task


def test_the_three_kinds_are_balanced_and_carry_what_judging_them_needs() -> None:
    for example in load()["test"]:
        answer = example["messages"][1]["content"]
        if example["task"] == "department":
            assert answer in example["choices"]
        elif example["task"] == "findings":
            assert answer == str(example["answer"])
        else:
            assert example["task"] == "question" and "answer" not in example
    counts = [sum(example["task"] == task for example in load()["test"]) for task in demo.TASKS]
    assert counts == [200, 200, 200]


def test_tasks_can_be_chosen_and_an_unknown_one_is_refused() -> None:
    assert {example["task"] for example in load(tasks=["question"])["train"]} == {"question"}
    with pytest.raises(ConfigError, match="demo has no task 'dosage'; it has department, findings, question"):
        load(tasks=["dosage"])
