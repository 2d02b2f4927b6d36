"""Metrics: cases computed by hand, scikit-learn's values where it has them, and JMED-LLM's own, oddities included."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, precision_recall_fscore_support
from sklearn.preprocessing import MultiLabelBinarizer

from trainer.evaluation.answers import Answer
from trainer.evaluation.baselines import score
from trainer.evaluation.metrics import (
    MetricName,
    count_score,
    counts_GP,
    exact_match,
    kappa,
    label_indices,
    row_scores,
    scorer,
    token_f1,
)

WORDS = ["fever", "cough", "severe cough", "rash", "itch"]


def value(metric: str, parsed: list[Answer | None], gold: list[Answer]) -> float:
    return scorer(metric, parsed, gold)(np.arange(len(gold)))  # type: ignore[arg-type]


def of_labels(metric: str, parsed: list[str | None], gold: list[str]) -> float:
    gold_index, predicted_index, labels = label_indices(parsed, gold)
    return count_score(metric, counts_GP(gold_index, predicted_index, len(labels)))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
def test_label_metrics_agree_with_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    gold = [str(label) for label in generator.choice(list("ABCDE"), 60, p=[0.5, 0.2, 0.15, 0.1, 0.05])]
    parsed = [label if generator.random() < 0.6 else str(generator.choice(list("ABCDE"))) for label in gold]
    assert row_scores("accuracy", parsed, gold).score.mean() == pytest.approx(accuracy_score(gold, parsed))
    assert of_labels("kappa", parsed, gold) == pytest.approx(cohen_kappa_score(gold, parsed))
    assert of_labels("kappa_linear", parsed, gold) == pytest.approx(cohen_kappa_score(gold, parsed, weights="linear"))
    occurring = sorted(set(gold))
    expected = f1_score(gold, parsed, labels=occurring, average="macro", zero_division=0)
    assert of_labels("macro_f1", parsed, gold) == pytest.approx(expected)


def test_an_unparsed_answer_is_one_more_class_of_kappa_and_none_of_macro_f1() -> None:
    gold, parsed = ["A", "A", "B", "B"], ["A", None, "B", "B"]
    assert of_labels("kappa", parsed, gold) == pytest.approx(cohen_kappa_score(gold, ["A", "None", "B", "B"]))
    assert of_labels("macro_f1", parsed, gold) == pytest.approx((2 / 3 + 1) / 2)
    assert row_scores("accuracy", parsed, gold).score.tolist() == [1, 0, 1, 1]


def test_kappa_by_hand() -> None:
    assert kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx((0.7 - 0.5) / (1 - 0.5))


def test_a_majority_vote_is_accurate_and_worth_nothing() -> None:
    gold, parsed = ["A"] * 81 + ["B"] * 19, ["A"] * 100
    assert row_scores("accuracy", parsed, gold).score.mean() == 0.81
    assert of_labels("kappa", parsed, gold) == 0
    assert of_labels("macro_f1", parsed, gold) == pytest.approx(2 * 81 / 181 / 2)


def test_kappa_is_zero_where_there_is_only_one_class() -> None:
    assert of_labels("kappa", ["A", "A"], ["A", "A"]) == 0


@pytest.mark.parametrize(
    "parsed, gold, exact, partial, official",
    [
        (["a", "b"], ["a", "b"], 1, 1, 1),
        (["b", "a", "b"], ["a", "b", "a"], 1, 1, 1),
        (["a"], ["a", "b", "c", "d"], 0.4, 0.4, 1.6),
        (["a", "a", "a"], ["a", "b", "c", "d"], 0.4, 0.4, 1.6),
        (["a", "a", "b", "b"], ["a", "b", "c", "d"], 2 / 3, 2 / 3, 4 / 3),
        (["a"], ["a", "b"], 2 / 3, 2 / 3, 4 / 3),
        (["a", "x"], ["a", "b"], 0.5, 0.5, 1),
        (["x"], ["a", "b"], 0, 0, 0),
        (["severe cough"], ["cough", "fever"], 0, 2 * (5 / 12) / 3, 0),
        (["cough"], ["severe cough"], 0, 5 / 12, 0),
        (["severe cough", "severe"], ["severe"], 2 / 3, 2 / 3, 2 / 3),
        (["cough", "severe"], ["severe cough"], 0, 2 * (6 / 12) / 3, 0),
        (["cough", "rash"], ["severe cough", "rash"], 0.5, (5 / 12 + 1) / 2, 1),
        (["dry cough today"], ["bad dry cough"], 0, 9 / 15, 0),
        (["e"], ["fever", "headache"], 0, 2 * (1 / 5) / 3, 0),
        (["rash"], ["cough"], 0, 0, 0),
        ([], ["a"], 0, 0, 0),
        (None, ["a"], 0, 0, 0),
        (["a"], [], 0, 0, 0),
    ],
)
def test_the_entity_metrics_of_one_row_by_hand(
    parsed: list[str] | None, gold: list[str], exact: float, partial: float, official: float
) -> None:
    assert value("entity_f1", [parsed], [gold]) == pytest.approx(exact)
    assert value("exact_f1", [parsed], [gold]) == pytest.approx(exact)
    assert value("partial_f1", [parsed], [gold]) == pytest.approx(partial)
    assert value("partial_f1_official", [parsed], [gold]) == pytest.approx(official)


def test_the_entity_metrics_of_several_rows_by_hand() -> None:
    """4 of 7 predicted entities are right, and 4 of 6 gold ones found; of the five rows, one is right without any."""
    gold: list[Answer] = [["a", "b", "c", "d"], [], [], ["e"], ["f"]]
    parsed: list[Answer | None] = [["a", "b", "c"], [], ["x", "y"], ["e", "z"], None]
    assert value("entity_precision", parsed, gold) == pytest.approx(4 / 7)
    assert value("entity_recall", parsed, gold) == pytest.approx(4 / 6)
    assert value("entity_f1", parsed, gold) == pytest.approx(8 / 13)
    assert value("exact_f1", parsed, gold) == pytest.approx((6 / 7 + 1 + 0 + 2 / 3 + 0) / 5)


def test_saying_nothing_scores_the_empty_rows_by_the_mean_over_rows_and_nothing_over_all_entities() -> None:
    gold: list[Answer] = [["a"], [], ["b", "c"], []]
    nothing: list[Answer | None] = [[], [], [], []]
    assert value("exact_f1", nothing, gold) == 0.5
    assert [value(metric, nothing, gold) for metric in ENTITY] == [0, 0, 0, 0]


def test_an_unparsable_answer_is_no_right_one_where_there_is_nothing_to_find() -> None:
    gold: list[Answer] = [["a"], []]
    assert value("entity_f1", [["a"], []], gold) == 1
    assert value("entity_f1", [["a"], None], gold) == pytest.approx(2 / 3)
    assert value("entity_precision", [["a"], None], gold) == pytest.approx(1 / 2)


ENTITY: tuple[MetricName, ...] = ("entity_f1", "entity_precision", "entity_recall", "partial_f1")
ROWS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.lists(st.sampled_from(WORDS), max_size=5)), st.lists(st.sampled_from(WORDS), max_size=4)
    ),
    min_size=1,
    max_size=12,
)


@given(ROWS)
def test_entity_metrics_agree_with_scikit_learn_s_micro_average(rows: list[tuple[list[str] | None, list[str]]]) -> None:
    parsed: list[Answer | None] = [written or [] for written, _ in rows]
    gold: list[Answer] = [wanted for _, wanted in rows]
    codes = MultiLabelBinarizer(classes=WORDS)
    expected = precision_recall_fscore_support(
        codes.fit_transform(gold), codes.fit_transform(parsed), average="micro", zero_division=0
    )
    ours = [value(metric, parsed, gold) for metric in ("entity_precision", "entity_recall", "entity_f1")]
    assert ours == pytest.approx(expected[:3])


@given(ROWS)
def test_an_f1_is_one_for_the_right_answer_only(rows: list[tuple[list[str] | None, list[str]]]) -> None:
    parsed: list[Answer | None] = [written for written, _ in rows]
    gold: list[Answer] = [wanted for _, wanted in rows]
    right = all(written is not None and set(written) == set(wanted) for written, wanted in rows)
    for metric in ("entity_f1", "partial_f1", "exact_f1"):
        found = value(metric, parsed, gold)
        assert 0 <= found <= 1 + 1e-12
        assert (found > 1 - 1e-9) == (right and (metric == "exact_f1" or any(gold)))


@given(ROWS, st.randoms(use_true_random=False))
def test_neither_order_nor_duplicates_change_an_entity_metric(
    rows: list[tuple[list[str] | None, list[str]]], shuffler: random.Random
) -> None:
    changed = [
        (written and shuffler.sample([*written, *written], 2 * len(written)), shuffler.sample(wanted, len(wanted)))
        for written, wanted in shuffler.sample(rows, len(rows))
    ]
    before, after = (
        [value(metric, [w for w, _ in some], [g for _, g in some]) for metric in (*ENTITY, "exact_f1", OFFICIAL)]
        for some in (rows, changed)
    )
    assert before == pytest.approx(after)


@given(ROWS)
def test_partial_credit_is_never_below_the_exact_one_nor_above_what_is_there(
    rows: list[tuple[list[str] | None, list[str]]],
) -> None:
    parsed: list[Answer | None] = [written for written, _ in rows]
    gold: list[Answer] = [wanted for _, wanted in rows]
    assert value("entity_f1", parsed, gold) - 1e-12 <= value("partial_f1", parsed, gold) <= 1


OFFICIAL = "partial_f1_official"


@pytest.mark.parametrize(
    "seed, exact, official",
    [
        (0, 0.34453024453024456, 0.6122265122265123),
        (1, 0.2667953667953668, 0.42676962676962676),
        (2, 0.3055341055341055, 0.4862290862290862),
        (3, 0.3388674388674389, 0.5168597168597169),
    ],
)
def test_jmed_llm_s_script_is_reproduced_to_the_last_digit(seed: int, exact: float, official: float) -> None:
    """Its two functions were run at commit 3774a34 on these lists, duplicates and empty predictions among them."""
    drawn = random.Random(seed)
    gold: list[Answer] = [[drawn.choice(WORDS) for _ in range(drawn.randint(1, 4))] for _ in range(37)]
    parsed: list[Answer | None] = [[drawn.choice(WORDS) for _ in range(drawn.randint(0, 5))] for _ in range(37)]
    assert any(len(set(answer)) < len(answer) for answer in parsed if answer)
    assert value("exact_f1", parsed, gold) == exact
    assert value(OFFICIAL, parsed, gold) == official


def jmed_gold(shared_data, split_by: str) -> list[Answer]:  # type: ignore[no-untyped-def]
    from cache_builder.config import DataConfig
    from cache_builder.data.sources import jmed_llm

    path = str(shared_data / "data" / "jmed-llm")
    splits = jmed_llm.load(DataConfig(source="jmed-llm", path=path, split_by=split_by, tasks=["nrner"]), 0)
    chosen = splits["test"] if split_by == "official" else [row for rows in splits.values() for row in rows]
    return [example["answer"] for example in chosen]


def test_jmed_llm_s_script_is_reproduced_on_its_own_test_set(shared_data) -> None:  # type: ignore[no-untyped-def]
    gold = jmed_gold(shared_data, "official")
    parsed: list[Answer | None] = []
    for row, answer in enumerate(gold):
        after = gold[(row + 1) % len(gold)]
        parsed.append([*answer[: 1 + row % 3] * (1 + row % 4), *after[: row % 3], answer[0][:2]] if row % 5 else [])  # type: ignore[list-item]
    assert value("exact_f1", parsed, gold) == 0.4555713730713729
    assert value(OFFICIAL, parsed, gold) == 0.686238206238206


def test_the_question_or_the_first_entity_alone_scores_little_on_the_real_pool_but_by_the_official_script(
    shared_data,
) -> None:  # type: ignore[no-untyped-def]
    gold = jmed_gold(shared_data, "row")
    first: list[Answer | None] = [list(answer[:1]) for answer in gold]
    assert value(OFFICIAL, first, gold) == pytest.approx(1.33, abs=0.005)
    assert value("partial_f1", first, gold) < 0.7
    everything: list[Answer | None] = [["。".join(answer)] for answer in gold]
    assert value("partial_f1", everything, gold) < 0.35


def test_exact_match_ignores_white_space_only() -> None:
    assert exact_match(" 24  mg", "24 mg") == 1
    assert exact_match("24 MG", "24 mg") == 0


def test_token_f1_by_hand() -> None:
    assert token_f1("change to azole", "Change to statin") == pytest.approx(2 / 3)
    assert token_f1("to to", "to") == pytest.approx(2 / 3)
    assert token_f1("nothing", "24 mg") == 0


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "kappa", "entity_f1"])
def test_a_score_lies_in_its_interval_and_is_reproducible(metric: str) -> None:
    generator = np.random.default_rng(1)
    gold: list[Answer] = generator.choice(list("ABC"), 80).tolist()
    parsed: list[Answer | None] = [str(label) if generator.random() < 0.7 else "A" for label in gold]
    result = score(metric, parsed, gold, 300)  # type: ignore[arg-type]
    assert result == score(metric, parsed, gold, 300)  # type: ignore[arg-type]
    assert result["low"] < result["value"] < result["high"]
