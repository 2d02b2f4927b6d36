"""Which work a builder does: pure functions of the corpus's sizes and of (part, parts).

units       checkpoint × (shard 0 … shard S−1, probe pass)    one unit = one forward pass over its sequences, one commit
part i/n    the i-th of n equal runs of that list              so a builder loads about N/n + 1 checkpoints
on a cluster, a worker takes one unit after another            of the checkpoint in its memory, as long as there are any
"""

import os
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cache_builder.errors import ConfigError


@dataclass(frozen=True)
class Work:
    """What one builder does for one checkpoint."""

    checkpoint: int
    """Index into the list of checkpoints."""
    shards: Sequence[int]
    probe_pass: bool
    """Whether the probe and the held-out loss are among it."""

    @property
    def units(self) -> int:
        """How many forward passes and commits it takes."""
        return len(self.shards) + self.probe_pass

    def without(self, shards: Container[int], *, probe_pass: bool) -> "Work":
        """Return the rest, where these shards are done, and the probe pass too if `probe_pass`."""
        rest = tuple(shard for shard in self.shards if shard not in shards)
        return replace(self, shards=rest, probe_pass=self.probe_pass and not probe_pass)


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


def units_of(work: Work) -> list[Work]:
    """Return the units of a work, each as a work of its own."""
    shards = [Work(work.checkpoint, (shard,), False) for shard in work.shards]
    return [*shards, Work(work.checkpoint, (), True)] if work.probe_pass else shards


def choose_next(units: Sequence[str], loaded: str | None, others: Iterable[str | None]) -> int:
    """Choose the unit that a worker takes next, and return its index.

    One of the checkpoint that it has in memory; without any, of that which has the most units for each worker, this
    one counted.

    Args:
        units: the checkpoint of each unit that is left, by name.
        loaded: the checkpoint in this worker's memory, if any.
        others: the checkpoint in each other worker's memory.
    """
    left, at_work = Counter(units), Counter(others)
    chosen = loaded if loaded in left else max(left, key=lambda name: left[name] / (at_work[name] + 1))
    return units.index(chosen)


def probe_rows(n_sequences: int, count: int, seed: int) -> np.ndarray:
    """Choose the probe's sequences, rising i64."""
    chosen = np.random.default_rng([seed, 0x9120BE]).choice(n_sequences, min(count, n_sequences), replace=False)
    return np.sort(chosen).astype(np.int64)


def parse_part(text: str | None, group: int = 1) -> tuple[int, int]:
    """Read `--part i/n` (i from 0); without it, torchrun's RANK and WORLD_SIZE; else everything, (0, 1).

    With `group` > 1, each so many of torchrun's processes do one part together.

    Raises:
        ConfigError: it is not of that form, or i is not below n.
    """
    if text is None:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        return rank // group, max(1, world // group)
    index, _, parts = text.partition("/")
    if not (index.isdecimal() and parts.isdecimal() and int(index) < int(parts)):
        raise ConfigError(f"--part {text!r}: expected i/n with 0 ≤ i < n, such as 0/4 … 3/4")
    return int(index), int(parts)
