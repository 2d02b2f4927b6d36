"""Metrics: cases computed by hand, scikit-learn's values where it has them, and JMED-LLM's own, oddities included."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

from trainer.evaluation.answers import Answer
from trainer.evaluation.evaluate import score
from trainer.evaluation.metrics import (
    count_score,
    counts_GP,
    exact_f1,
    exact_match,
    kappa,
    label_indices,
    partial_f1,
    partial_f1_official,
    row_scores,
    token_f1,
)


def of_labels(metric: str, parsed: list[str | None], gold: list[str]) -> float:
    gold_index, predicted_index, labels = label_indices(parsed, gold)
    return count_score(metric, counts_GP(gold_index, predicted_index, len(labels)))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
def test_label_metrics_agree_with_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    gold = [str(label) for label in generator.choice(list("ABCDE"), 60, p=[0.5, 0.2, 0.15, 0.1, 0.05])]
    parsed = [label if generator.random() < 0.6 else str(generator.choice(list("ABCDE"))) for label in gold]
    assert row_scores("accuracy", parsed, gold).mean() == pytest.approx(accuracy_score(gold, parsed))
    assert of_labels("kappa", parsed, gold) == pytest.approx(cohen_kappa_score(gold, parsed))
    assert of_labels("kappa_linear", parsed, gold) == pytest.approx(cohen_kappa_score(gold, parsed, weights="linear"))
    occurring = sorted(set(gold))
    expected = f1_score(gold, parsed, labels=occurring, average="macro", zero_division=0)
    assert of_labels("macro_f1", parsed, gold) == pytest.approx(expected)


def test_an_unparsed_answer_is_one_more_class_of_kappa_and_none_of_macro_f1() -> None:
    gold, parsed = ["A", "A", "B", "B"], ["A", None, "B", "B"]
    assert of_labels("kappa", parsed, gold) == pytest.approx(cohen_kappa_score(gold, ["A", "None", "B", "B"]))
    assert of_labels("macro_f1", parsed, gold) == pytest.approx((2 / 3 + 1) / 2)
    assert row_scores("accuracy", parsed, gold).tolist() == [1, 0, 1, 1]


def test_kappa_by_hand() -> None:
    assert kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx((0.7 - 0.5) / (1 - 0.5))


def test_a_majority_vote_is_accurate_and_worth_nothing() -> None:
    gold, parsed = ["A"] * 81 + ["B"] * 19, ["A"] * 100
    assert row_scores("accuracy", parsed, gold).mean() == 0.81
    assert of_labels("kappa", parsed, gold) == 0
    assert of_labels("macro_f1", parsed, gold) == pytest.approx(2 * 81 / 181 / 2)


def test_kappa_is_zero_where_there_is_only_one_class() -> None:
    assert of_labels("kappa", ["A", "A"], ["A", "A"]) == 0


@pytest.mark.parametrize(
    "parsed, gold, exact, partial, official",
    [
        (["a", "b"], ["a", "b"], 1, 1, 1),
        (["a"], ["a", "b", "c", "d"], 0.4, 0.4, 1.6),
        (["a"], ["a", "b"], 2 / 3, 2 / 3, 4 / 3),
        (["a", "x"], ["a", "b"], 0.5, 0.5, 1),
        (["x"], ["a", "b"], 0, 0, 0),
        (["severe cough"], ["cough", "fever"], 0, 2 / 3, 0),
        (["cough"], ["severe cough"], 0, 1, 0),
        (["cough", "severe"], ["severe cough"], 0, 1, 0),
        (["cough", "rash"], ["severe cough", "rash"], 0.5, 1, 1),
        ([], ["a"], 0, 0, 0),
        ([], [], 1, 1, 1),
    ],
)
def test_entity_metrics_by_hand(
    parsed: list[str], gold: list[str], exact: float, partial: float, official: float
) -> None:
    assert exact_f1(parsed, gold) == pytest.approx(exact)
    assert partial_f1(parsed, gold) == pytest.approx(partial)
    assert partial_f1_official(parsed, gold) == pytest.approx(official)


def test_an_empty_entity_matches_nothing() -> None:
    assert partial_f1([""], ["cough"]) == 0


def test_the_right_partial_f1_stays_between_exact_f1_and_one() -> None:
    generator = np.random.default_rng(0)
    words = ["cough", "severe cough", "rash", "red rash", "itch", "fever"]
    for _ in range(300):
        parsed, gold = (generator.choice(words, generator.integers(1, 5)).tolist() for _ in range(2))
        assert exact_f1(parsed, gold) - 1e-12 <= partial_f1(parsed, gold) <= 1


def test_the_first_gold_entity_alone_scores_1_33_on_the_real_pool_by_the_official_script(shared_data) -> None:  # type: ignore[no-untyped-def]
    from cache_builder.config import DataConfig
    from cache_builder.data.sources import jmed_llm

    path = str(shared_data / "data" / "jmed-llm")
    splits = jmed_llm.load(DataConfig(source="jmed-llm", path=path, split_by="row", tasks=["nrner"]), 0)
    gold: list[Answer] = [example["answer"] for examples in splits.values() for example in examples]
    first: list[Answer | None] = [list(answer[:1]) for answer in gold]
    assert row_scores("partial_f1_official", first, gold).mean() == pytest.approx(1.33, abs=0.005)
    assert row_scores("partial_f1", first, gold).mean() < 0.7


def test_exact_match_ignores_white_space_only() -> None:
    assert exact_match(" 24  mg", "24 mg") == 1
    assert exact_match("24 MG", "24 mg") == 0


def test_token_f1_by_hand() -> None:
    assert token_f1("change to azole", "Change to statin") == pytest.approx(2 / 3)
    assert token_f1("to to", "to") == pytest.approx(2 / 3)
    assert token_f1("nothing", "24 mg") == 0


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "kappa"])
def test_a_score_lies_in_its_interval_and_is_reproducible(metric: str) -> None:
    generator = np.random.default_rng(1)
    gold: list[Answer] = generator.choice(list("ABC"), 80).tolist()
    parsed: list[Answer | None] = [str(label) if generator.random() < 0.7 else "A" for label in gold]
    result = score(metric, parsed, gold, 300)  # type: ignore[arg-type]
    assert result == score(metric, parsed, gold, 300)  # type: ignore[arg-type]
    assert result["low"] < result["value"] < result["high"]
