"""The arithmetic on offsets against the loops that it stands for, over rows of any lengths, empty ones too."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from cache_builder.positions import (
    counts_of,
    groups_of_rows,
    is_position,
    offsets_of,
    positions_of,
    rows_between,
    spans_of,
    sum_rows,
)

row_counts = st.lists(st.integers(0, 5), min_size=1, max_size=12).map(np.array)


@st.composite
def some_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    counts = draw(row_counts)
    return offsets_of(counts), np.array(draw(st.lists(st.integers(0, len(counts) - 1))), np.int64)


@st.composite
def spans(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    offsets = offsets_of(draw(row_counts))
    start = draw(st.integers(0, int(offsets[-1])))
    return offsets, start, draw(st.integers(start, int(offsets[-1])))


def test_the_first_token_of_a_row_is_no_position_though_it_is_learned() -> None:
    completion = np.array([True, True, False, True])
    assert is_position(completion).tolist() == [False, True, False, True]
    assert completion[0], "the mask that was given is left alone"
    assert is_position(np.zeros(0, np.bool_)).tolist() == []
    assert is_position(np.array([1, 1, 0], np.uint8)).tolist() == [False, True, False]


@given(row_counts)
def test_offsets_and_counts_undo_each_other(counts: np.ndarray) -> None:
    offsets = offsets_of(counts)
    assert offsets.dtype == np.int64
    assert offsets[0] == 0
    np.testing.assert_array_equal(counts_of(offsets, np.arange(len(counts))), counts)


@given(some_rows())
def test_the_positions_of_rows_are_their_spans_one_after_another(chosen: tuple[np.ndarray, np.ndarray]) -> None:
    offsets, rows = chosen
    expected = [position for start, end in spans_of(offsets, rows) for position in range(start, end)]
    assert positions_of(offsets, rows).tolist() == expected


@given(spans())
def test_rows_between_are_those_with_a_position_inside(span: tuple[np.ndarray, int, int]) -> None:
    offsets, start, end = span
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    expected = sorted(set(owner[start:end].tolist()))
    assume(start < end)
    assert rows_between(offsets, start, end).tolist() == expected


@given(row_counts, st.integers(1, 7))
def test_a_row_is_of_the_group_in_which_it_begins(counts: np.ndarray, width: int) -> None:
    offsets = offsets_of(counts)
    assert groups_of_rows(offsets, width).tolist() == [
        start // width for start, _ in spans_of(offsets, range(len(counts)))
    ]


@given(row_counts, st.data())
def test_sums_of_chunks_add_up_to_the_sums_of_rows_and_a_nan_stays_in_its_row(
    counts: np.ndarray, data: st.DataObject
) -> None:
    offsets = offsets_of(counts)
    value = st.one_of(st.integers(-9, 9).map(float), st.just(np.nan))
    values = np.array(data.draw(st.lists(value, min_size=int(offsets[-1]), max_size=int(offsets[-1]))), np.float32)
    width = data.draw(st.integers(1, 8))
    total = np.zeros(len(counts))
    for start in range(0, len(values), width):
        rows, sums = sum_rows(offsets, start, values[start : start + width])
        total[rows] += sums
    expected = [values[start:end].astype(np.float64).sum() for start, end in spans_of(offsets, range(len(counts)))]
    np.testing.assert_array_equal(total, expected)
