"""Where positions lie: the only arithmetic on offsets, for a corpus, a cache, a batch and the order of training.

    token        0   1   2   3   4 | 0   1   2 | 0   1   2        three rows
    completion       1   1         | 1   1   1 |                  … of tokens that are learned
    position         0   1         |     2   3 |                  numbered through all rows; never a row's first token
    offsets      0                 2           4           4      where each row's positions begin, and the end: [n+1]

A position is predicted from the token before it, so a row's first token is none. Offsets of tokens work alike.

Shapes: T tokens of a row, n rows, P some of the rows, M positions. A span is (start, end), the end not in it.
"""

from collections.abc import Iterable

import numpy as np


def is_position(completion: np.ndarray) -> np.ndarray:
    """Say of each token of a row whether it is a position: a learned token with another before it, bool [T]."""
    mask = np.array(completion, np.bool_)
    mask[:1] = False
    return mask


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """Return where each row begins, and the end of the last, i64 [n+1], from how many entries each has."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def counts_of(offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return how many entries each of `rows` has, i64 [P]."""
    return offsets[rows + 1] - offsets[rows]


def spans_of(offsets: np.ndarray, rows: Iterable[int]) -> list[tuple[int, int]]:
    """Return the span of each of `rows`, in their order."""
    return [(int(offsets[row]), int(offsets[row + 1])) for row in rows]


def positions_of(offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the numbers of all entries of `rows`, one row after another in their order, i64 [M]."""
    counts = counts_of(offsets, rows)
    within = offsets_of(counts)
    return np.repeat(offsets[rows] - within[:-1], counts) + np.arange(within[-1])


def rows_between(offsets: np.ndarray, start: int, end: int) -> np.ndarray:
    """Return the rows that have an entry in the span, rising."""
    first, last = _bounds(offsets, start, end)
    rows = np.arange(first, last)
    return rows[offsets[rows + 1] > offsets[rows]]


def groups_of_rows(offsets: np.ndarray, width: int) -> np.ndarray:
    """Return into which group of `width` entries each row's beginning falls, i64 [n], rising."""
    return offsets[:-1] // width


def sum_rows(offsets: np.ndarray, start: int, values_M: np.ndarray) -> tuple[slice, np.ndarray]:
    """Sum the values of the entries from `start` on by row: the rows that they touch, and their sums, f64.

    Of a row that reaches beyond these entries, only what is here is summed. A NaN makes the sum of its own row NaN.
    """
    first, last = _bounds(offsets, start, start + len(values_M))
    bounds = np.clip(offsets[first : last + 1], start, start + len(values_M)) - start
    unknown = np.isnan(values_M)
    # differences of one running sum, not reduceat, which has no empty rows; hence a NaN must not enter the sum
    running = np.concatenate([[0.0], np.cumsum(np.where(unknown, 0, values_M).astype(np.float64))])
    sums = np.diff(running[bounds])
    sums[np.diff(offsets_of(unknown)[bounds]) > 0] = np.nan
    return slice(first, last), sums


def _bounds(offsets: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """Return the first row and the last + 1 whose spans touch [start, end)."""
    # side="right" passes over empty rows that begin at `start`, to the one that holds it
    return int(np.searchsorted(offsets, start, side="right")) - 1, int(np.searchsorted(offsets, end, side="left"))
