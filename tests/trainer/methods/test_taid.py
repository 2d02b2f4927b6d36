"""TAID's t, against its authors' rule."""

import math

import pytest

from trainer.methods.taid import TaidState


def test_taids_t_follows_the_linear_floor_up_to_one() -> None:
    state, path = TaidState(0.4), []
    for step in range(101):
        state.update(2.0, step, 100, start=0.4)
        path.append(state.t)
    assert path == sorted(path)
    assert path[-1] == 1.0
    assert all(t >= 0.4 + 0.6 * step / 100 for step, t in enumerate(path))


def test_taids_first_two_updates_by_hand() -> None:
    state = TaidState(0.4)
    state.update(2.0, 0, 1000, start=0.4)
    assert state.t == pytest.approx(0.4 + 5e-4 * 0.5 * 0.6)
    state.update(1.0, 0, 1000, start=0.4)
    assert state.momentum == pytest.approx(0.01 * 0.5)
    assert state.t == pytest.approx(0.40015 + 5e-4 * (1 - 0.40015) / (1 + math.exp(-0.005)))
