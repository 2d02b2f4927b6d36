"""Intervals and tests between models: known answers, and the error rates that they promise."""

import numpy as np
import pytest

from trainer.evaluation.statistics import interval, mcnemar, mean_and_std, mean_interval, paired_bootstrap


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide_on_each_side() -> None:
    scores = np.random.default_rng(0).normal(0.5, 0.2, 400)
    low, high = mean_interval(scores, 4000)
    error = scores.std() / np.sqrt(400)
    assert low == pytest.approx(scores.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(scores.mean() + 1.96 * error, abs=0.1 * error)


def test_a_mean_and_a_score_of_rows_have_the_same_interval() -> None:
    scores = np.random.default_rng(0).random(50)
    assert interval(lambda rows: float(scores[rows].mean()), 50, 200) == mean_interval(scores, 200)


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
