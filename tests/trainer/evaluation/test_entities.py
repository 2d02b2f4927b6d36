"""One-to-one pairings: the best of all, by scipy's solver and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from trainer.evaluation.entities import Found, best_pairing, overlap, partial


@given(st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(lambda shape: arrays(float, shape, elements=CREDIT)))
def test_the_best_pairing_is_scipy_s(credit: np.ndarray) -> None:
    rows, columns = linear_sum_assignment(credit, maximize=True)
    assert best_pairing(credit.tolist()) == pytest.approx(credit[rows, columns].sum())


CREDIT = st.sampled_from([0.0, 0.0, 0.2, 0.4, 0.5, 2 / 3, 1.0])


def test_a_greedy_pairing_would_not_do() -> None:
    assert best_pairing([[0.6, 0.5], [0.5, 0.0]]) == 1.0


@pytest.mark.parametrize(
    "one, other, share",
    [
        ("cough", "cough", 1),
        ("severe cough", "cough", 5 / 12),
        ("dry cough today", "bad dry cough", 9 / 15),
        ("abcd", "abxy", 2 / 4),
        ("abcd", "axyz", 0),
        ("", "a", 0),
        ("", "", 1),
    ],
)
def test_an_overlap_is_the_longest_common_text_s_share_of_the_longer_one(one: str, other: str, share: float) -> None:
    assert overlap(one, other) == overlap(other, one) == pytest.approx(share)


def test_no_entity_is_credited_twice() -> None:
    assert partial(["severe cough"], ["cough", "severe"]) == Found(0.5, 1, 2)
    assert partial(["cough", "severe"], ["severe cough"]) == Found(0.5, 2, 1)
