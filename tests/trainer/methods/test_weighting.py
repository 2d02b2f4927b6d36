"""Adaptive weights, against their definitions."""

import math

import numpy as np
import pytest

from trainer.methods.weighting import adaptive_weights, hard_weights


def test_the_weight_is_the_students_share_of_both_losses() -> None:
    student, teacher = np.array([1.0, 3.0, 2.0, 1e-9]), np.array([1.0, 1.0, 6.0, 1e3])
    np.testing.assert_allclose(adaptive_weights(student, teacher), student / (student + teacher), rtol=1e-12)


def test_the_weight_is_the_sigmoid_of_the_log_ratio() -> None:
    sigmoid = 1 / (1 + math.exp(-math.log(5.0 / 2.0)))
    assert adaptive_weights(np.array([5.0]), np.array([2.0]))[0] == pytest.approx(sigmoid, rel=1e-14)


@pytest.mark.parametrize(
    ("student", "teacher", "weight"),
    [(0.0, 0.0, 0.5), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0), (math.inf, math.inf, 0.5), (1e-300, 1e300, 0.0)],
)
def test_extreme_losses_keep_the_weight_between_zero_and_one(student: float, teacher: float, weight: float) -> None:
    assert adaptive_weights(np.array([student]), np.array([teacher]))[0] == pytest.approx(weight, abs=1e-12)


def test_sharpness_goes_from_constant_to_hard() -> None:
    student, teacher = np.array([2.0, 1.0]), np.array([1.0, 2.0])
    np.testing.assert_array_equal(adaptive_weights(student, teacher, 0.0), [0.5, 0.5])
    np.testing.assert_allclose(adaptive_weights(student, teacher, 1e6), [1.0, 0.0], atol=1e-12)


def test_a_negative_or_nan_loss_is_refused() -> None:
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="negative or NaN"):
            adaptive_weights(np.array([bad]), np.array([1.0]))


def test_hard_weights_leave_a_band_undecided() -> None:
    weights = hard_weights(np.array([0.39, 0.4, 0.5, 0.6, 0.61]), 0.1)
    assert weights.tolist() == [0.0, 0.5, 0.5, 0.5, 1.0]
