"""The order in which rows are trained on: a pure function of (seed, epoch), the same for any number of readers.

    chunks in random order ──▶ windows of many chunks ──▶ the rows of a window in random order

so that a reader meets every chunk once an epoch and keeps one window in memory. Epochs follow each other as one endless
stream; step s takes rows [s·batch, (s+1)·batch) of it, so every step is full and the number of processes, of loader
workers or of accumulated micro-batches changes nothing.

With grouped lengths the rows of many steps are sorted by length, cut into steps, and the steps put in random order: the
same rows in other company, so that a step pads little.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from cache_builder.positions import groups_of_rows, offsets_of

GROUPED_STEPS = 64
"""Steps whose rows are sorted together where lengths are grouped."""


def epoch_order(
    position_offsets: np.ndarray, chunk_positions: int, window_chunks: int, seed: int, epoch: int
) -> np.ndarray:
    """Return every row once, i64 [n], in the order of one epoch.

    A row belongs to the chunk in which its positions begin.
    """
    rng = np.random.default_rng([seed, epoch, 0x0DE2])
    chunk_of_row = groups_of_rows(position_offsets, chunk_positions)
    n_chunks = int(chunk_of_row[-1]) + 1
    window_of_chunk = np.empty(n_chunks, np.int64)
    window_of_chunk[rng.permutation(n_chunks)] = np.arange(n_chunks) // window_chunks
    return np.lexsort((rng.random(len(chunk_of_row)), window_of_chunk[chunk_of_row]))


class RowStream:
    """The endless stream of all rows, or of those in `chosen`, epoch after epoch, cut anywhere."""

    def __init__(
        self,
        position_offsets: np.ndarray,
        chunk_positions: int,
        window_chunks: int,
        seed: int,
        chosen: np.ndarray | None = None,
    ) -> None:
        if chosen is not None:
            position_offsets = offsets_of(np.diff(position_offsets)[chosen])
        self.position_offsets, self.chosen = position_offsets, chosen
        self.chunk_positions, self.window_chunks, self.seed = chunk_positions, window_chunks, seed

    def rows(self, start: int, stop: int) -> Iterator[int]:
        """Yield the rows at places start … stop − 1 of the stream."""
        n = len(self.position_offsets) - 1
        for epoch in range(start // n, -(-stop // n)):
            order = epoch_order(self.position_offsets, self.chunk_positions, self.window_chunks, self.seed, epoch)
            if self.chosen is not None:
                order = self.chosen[order]
            yield from order[max(0, start - epoch * n) : stop - epoch * n].tolist()


def group_lengths(
    rows: Iterator[int], lengths_tokens: np.ndarray, rows_per_step: int, seed: int, start: int
) -> Iterator[int]:
    """Yield the same rows, those of a step being of like length.

    A pure function of the rows, their lengths, the rows of a whole step (all processes, all accumulated micro-batches),
    the seed and `start`, the rows' place in the stream.
    """
    window = 0
    while taken := list(islice(rows, rows_per_step * GROUPED_STEPS)):
        by_length = np.array(taken)[np.argsort(lengths_tokens[taken], kind="stable")]
        steps = [by_length[first : first + rows_per_step] for first in range(0, len(by_length), rows_per_step)]
        for step in np.random.default_rng([seed, start, window, 0x9E0]).permutation(len(steps)):
            yield from steps[step].tolist()
        window += 1
