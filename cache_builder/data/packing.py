"""Several sequences in a row, so that next to nothing is padding; none sees another.

    row 0   a0 a1 a2 a3 a4 | d0 d1 | pad      position_ids   0 1 2 3 4 | 0 1 | 2
    row 1   b0 b1 b2 b3 | c0 c1 c2 c3                        0 1 2 3 | 0 1 2 3

Position ids that begin again tell transformers where a sequence begins, when it is given no attention mask; its masks
and kernels then keep sequences apart. Padding at a row's end goes on counting, so that a row of one sequence is a plain
causal one. What a batch says of its positions has the order of its sequences, as in a padded one.

rows      as many as are needed, hardly wider than the longest sequence: attention costs the square of a row
one row   for kernels that take the sequences' borders (flash attention), which transformers finds in a single row only

Shapes: B sequences, R rows, T tokens of a row, M positions of the batch, ordered by (sequence, token).
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from cache_builder.data.batching import Batch
from cache_builder.positions import is_position

Packing = Literal["rows", "one row"]
SMALLEST_PART = 8
"""Of the budget, which a batch must reach before it may end early."""
WIDTH = 128
"""Of a row, at least: several short sequences fill it better, and attention over so few tokens costs next to none."""


class _Waiting:
    """Sequences that have no place yet, by their length."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.indices: dict[int, list[int]] = {}
        for index in range(len(lengths) - 1, -1, -1):
            self.indices.setdefault(int(lengths[index]), []).append(index)
        self.lengths = sorted(self.indices)

    def take_row(self, width: int) -> list[int]:
        """Take what fills a row: again and again the longest that has room, of equal ones the first."""
        row: list[int] = []
        while (place := bisect_right(self.lengths, width) - 1) >= 0:
            length = self.lengths[place]
            row.append(self.indices[length].pop())
            if not self.indices[length]:
                del self.lengths[place]
            width -= length
        return row


def _fill(lengths: np.ndarray, width: int) -> list[list[int]]:
    """Put all sequences into rows of one width; return the indices of each row's."""
    waiting, rows = _Waiting(lengths), []
    while waiting.lengths:
        rows.append(waiting.take_row(width))
    return rows


def plan_packed(lengths: np.ndarray, batch_tokens: int, packing: Packing) -> list[np.ndarray]:
    """Group sequences so that none of the packed batches exceeds `batch_tokens`, those with the longest first.

    A batch ends where the longest that is left is below half of its width, whose attention would cost more than
    padding does; but not below an eighth of `batch_tokens`.

    A pure function of the lengths: i64 indices into them, every one once. A sequence longer than the budget is alone.
    """
    waiting, batches = _Waiting(lengths), []
    while waiting.lengths:
        longest = max(1, waiting.lengths[-1])
        if packing == "one row":
            batches.append(waiting.take_row(max(batch_tokens, longest)))
            continue
        members: list[int] = []
        width = max(longest, min(WIDTH, batch_tokens))
        for rows in range(max(1, batch_tokens // width)):
            is_large = width * rows >= batch_tokens // SMALLEST_PART
            if not waiting.lengths or (is_large and max(waiting.lengths[-1], WIDTH) < width // 2):
                break
            members += waiting.take_row(width)
        batches.append(members)
    return [np.array(members, np.int64) for members in batches]


def collate_packed(sequences: Sequence[tuple[np.ndarray, np.ndarray]], pad_id: int, packing: Packing) -> Batch:
    """Pack (token ids [T], completion mask [T]) pairs into one batch and find its positions."""
    lengths = np.array([len(tokens) for tokens, _ in sequences])
    longest, tokens = int(lengths.max()), int(lengths.sum())
    widths = (tokens,) if packing == "one row" else (longest, max(longest, min(WIDTH, tokens)), longest * 3 // 2)
    width, rows = min(((width, _fill(lengths, width)) for width in widths), key=lambda found: found[0] * len(found[1]))
    input_ids = np.full((len(rows), width), pad_id, np.int64)
    attention_mask = np.zeros((len(rows), width), np.int64)
    position_ids = np.empty((len(rows), width), np.int64)
    first = np.empty(len(sequences), np.int64)  # of each sequence, a flat index
    for row, members in enumerate(rows):
        start = 0
        for index in members:
            end = start + lengths[index]
            input_ids[row, start:end] = sequences[index][0]
            position_ids[row, start:] = np.arange(width - start)
            first[index] = row * width + start
            start = end
        attention_mask[row, :start] = 1
    inside = [np.flatnonzero(is_position(completion)) for _, completion in sequences]
    at = np.concatenate([start + tokens for start, tokens in zip(first, inside, strict=True)])
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask),
        "position_ids": torch.from_numpy(position_ids),
        "hidden_index_M": torch.from_numpy(at - 1),
        "label_M": torch.from_numpy(input_ids.reshape(-1)[at]),
        "sequence_M": torch.from_numpy(np.repeat(np.arange(len(sequences)), [len(tokens) for tokens in inside])),
    }
