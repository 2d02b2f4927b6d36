"""Intervals and tests between models: known answers, and the error rates that they promise."""

import itertools

import numpy as np
import pytest

from trainer.evaluation.statistics import interval, mcnemar, mean_and_std, paired_bootstrap


def mean_interval(scores: np.ndarray, samples: int) -> tuple[float, float]:
    return interval(lambda rows: float(scores[rows].mean()), len(scores), samples)


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide_on_each_side() -> None:
    scores = np.random.default_rng(0).normal(0.5, 0.2, 400)
    low, high = mean_interval(scores, 4000)
    error = scores.std() / np.sqrt(400)
    assert low == pytest.approx(scores.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(scores.mean() + 1.96 * error, abs=0.1 * error)


def test_weights_of_one_change_no_comparison() -> None:
    one, other = np.random.default_rng(0).random((2, 80))
    ones = np.ones(80)
    np.testing.assert_allclose(
        paired_bootstrap(one, other, 300, weights=(ones, ones)), paired_bootstrap(one, other, 300)
    )


def test_weighted_rows_are_compared_as_ratios_of_sums_resampled_together() -> None:
    """By hand, over all 27 resamples of three rows: Σ right / Σ entities, and rows without entities count nothing."""
    score, weight = np.array([1.0, 0.5, 1.0]), np.array([2.0, 6.0, 0.0])
    other, other_weight = np.array([0.5, 1.0, 0.0]), np.array([4.0, 2.0, 1.0])
    draws = [np.array(rows) for rows in itertools.product(range(3), repeat=3)]

    def ratio(rows: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
        return float((scores * weights)[rows].sum() / weights[rows].sum()) if weights[rows].sum() else 0.0

    exact = [ratio(rows, score, weight) - ratio(rows, other, other_weight) for rows in draws]
    found = paired_bootstrap(score, other, 20_000, weights=(weight, other_weight))
    assert found[0] == pytest.approx(5 / 8 - 4 / 7)
    expected = np.quantile(np.repeat(exact, 1000), [0.025, 0.975])
    np.testing.assert_allclose(found[1:3], expected, atol=0.02)


def test_several_models_count_by_the_mean_of_their_own_ratios() -> None:
    scores, weights = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[1.0, 3.0], [2.0, 2.0]])
    teacher = np.array([1.0, 1.0])
    difference, *_ = paired_bootstrap(scores, teacher, 100, weights=(weights, np.ones(2)))
    assert difference == pytest.approx((1 / 4 + 1 / 2) / 2 - 1)
    assert paired_bootstrap(scores, teacher, 100)[0] == pytest.approx(0.5 - 1)


def test_equal_models_differ_in_ratios_about_as_often_as_promised() -> None:
    generator = np.random.default_rng(0)
    rejected = 0
    for _ in range(200):
        entities = generator.integers(1, 5, 60).astype(float)
        one, other = generator.binomial(entities.astype(int), 0.7, (2, 60)) / entities
        rejected += paired_bootstrap(one, other, 400, weights=(entities, entities))[3] < 0.05
    assert rejected <= 22


def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_rows() -> None:
    correct = np.array([1] * 9 + [0] * 1 + [1] * 5)
    other = np.array([0] * 9 + [1] * 1 + [1] * 5)
    assert mcnemar(correct, other) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(other, correct) == mcnemar(correct, other)
    assert mcnemar(correct, correct) == 1


def test_mcnemar_of_many_rows_does_not_overflow() -> None:
    assert 0 <= mcnemar(np.array([1] * 3000 + [0] * 2000), np.array([0] * 3000 + [1] * 2000)) < 1e-40


def test_a_clear_difference_is_significant_and_none_is_not() -> None:
    generator = np.random.default_rng(0)
    base = generator.random(300)
    difference, low, high, p_value = paired_bootstrap(base + 0.05 + 0.01 * generator.random(300), base, 2000)
    assert 0.05 < low < difference < high < 0.06 and p_value < 0.01
    assert paired_bootstrap(base, base, 500) == (0.0, 0.0, 0.0, 1.0)


def test_pairing_sees_what_two_separate_intervals_hide() -> None:
    generator = np.random.default_rng(0)
    base = generator.random(200)
    better = base + 0.02 + generator.normal(0, 0.02, 200)
    (_, high), (low, _) = mean_interval(base, 500), mean_interval(better, 500)
    assert low < high
    assert paired_bootstrap(better, base, 2000)[3] < 0.01


def test_equal_models_are_called_different_about_as_often_as_promised() -> None:
    generator = np.random.default_rng(0)
    rejected = 0
    for _ in range(200):
        one, other = (generator.random((2, 60)) < 0.7).astype(float)
        rejected += paired_bootstrap(one, other, 400)[3] < 0.05
    assert rejected <= 22


def test_mean_and_std_are_those_of_a_sample() -> None:
    assert mean_and_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_std([4.0]) == (4.0, None)
