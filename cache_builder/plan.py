"""Which work a builder does: pure functions of the corpus's sizes and of (part, parts).

units       checkpoint × (shard 0 … shard S−1, extras)        one unit = one forward pass over its sequences, one commit
part i/n    the i-th of n equal runs of that list              so a builder loads about N/n + 1 checkpoints
"""

import os
from dataclasses import dataclass

import numpy as np

from cache_builder.errors import ConfigError


@dataclass(frozen=True)
class Work:
    """What one builder does for one checkpoint."""

    checkpoint: int
    """Index into the list of checkpoints."""
    shards: range
    extras: bool
    """Whether the probe and the held-out loss are among it."""


def divide(n_checkpoints: int, n_shards: int, part: tuple[int, int]) -> list[Work]:
    """Return a part's work; the parts of one n cover every unit once."""
    index, parts = part
    per_checkpoint = n_shards + 1
    total = n_checkpoints * per_checkpoint
    first, last = index * total // parts, (index + 1) * total // parts
    work = []
    for checkpoint in range(n_checkpoints):
        start = min(max(first - checkpoint * per_checkpoint, 0), per_checkpoint)
        end = min(max(last - checkpoint * per_checkpoint, 0), per_checkpoint)
        if start < end:
            work.append(Work(checkpoint, range(start, min(end, n_shards)), end == per_checkpoint))
    return work


def rows_between(position_offsets: np.ndarray, start: int, end: int) -> np.ndarray:
    """Return the rows that have a position in [start, end), rising."""
    first = int(np.searchsorted(position_offsets, start, side="right")) - 1
    last = int(np.searchsorted(position_offsets, end, side="left"))
    rows = np.arange(first, last)
    return rows[position_offsets[rows + 1] > position_offsets[rows]]


def probe_rows(n_sequences: int, count: int, seed: int) -> np.ndarray:
    """Choose the probe's sequences, rising i64."""
    chosen = np.random.default_rng([seed, 0x9120BE]).choice(n_sequences, min(count, n_sequences), replace=False)
    return np.sort(chosen).astype(np.int64)


def parse_part(text: str | None) -> tuple[int, int]:
    """Read `--part i/n` (i from 0); without it, torchrun's RANK and WORLD_SIZE; else everything, (0, 1).

    Raises:
        ConfigError: it is not of that form, or i is not below n.
    """
    if text is None:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    index, _, parts = text.partition("/")
    if not (index.isdecimal() and parts.isdecimal() and int(index) < int(parts)):
        raise ConfigError(f"--part {text!r}: expected i/n with 0 ≤ i < n, such as 0/4 … 3/4")
    return int(index), int(parts)
