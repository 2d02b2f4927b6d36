"""Adaptive weights and TAID's t, against their definitions."""

import math

import numpy as np
import pytest

from trainer.methods.weighting import TaidState, adaptive_weights, hard_weights


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


def test_taids_t_follows_the_linear_floor_and_ends_at_one() -> None:
    state, path = TaidState(0.4), []
    for step in range(1, 101):
        state.update(2.0, step, 100, start=0.4)
        path.append(state.t)
    assert path == sorted(path)
    assert path[-1] == 1.0
    assert all(t >= 0.4 + 0.6 * step / 100 for step, t in enumerate(path, start=1))


def test_taids_first_two_updates_by_hand() -> None:
    state = TaidState(0.4)
    state.update(2.0, 0, 1000, start=0.4)
    assert state.t == pytest.approx(0.4 + 5e-4 * 0.5 * 0.6)
    state.update(1.0, 0, 1000, start=0.4)
    assert state.momentum == pytest.approx(0.01 * 0.5)
    assert state.t == pytest.approx(0.40015 + 5e-4 * (1 - 0.40015) / (1 + math.exp(-0.005)))
