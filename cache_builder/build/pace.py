"""How much of the corpus a builder's checkpoints have run over, and how long they stood still for it.

corpus ─▶ Watched ─▶ engine        a sequence read: its tokens, and the seconds that reading took
shard to be written ─▶ waiting     the seconds until the one before was committed

Host clocks only: nothing waits for a device to be asked what time it is.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cache_builder.sequences import NumberedSequences, SampleIds


@dataclass
class Pace:
    """Counts since the builder began."""

    tokens: int = 0
    """Prompts included; what runs twice counts twice."""
    waiting_seconds: float = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of a block as waiting."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.waiting_seconds += time.perf_counter() - began


class Watched:
    """Sequences whose reading is counted."""

    def __init__(self, sequences: NumberedSequences, pace: Pace) -> None:
        self.sequences, self.pace = sequences, pace
        self.token_offsets, self.position_offsets = sequences.token_offsets, sequences.position_offsets

    def sequence(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        with self.pace.waiting():
            tokens, completion = self.sequences.sequence(row)
        self.pace.tokens += len(tokens)
        return tokens, completion

    @property
    def sample_ids(self) -> SampleIds:
        return self.sequences.sample_ids

    @property
    def n_positions(self) -> int:
        return self.sequences.n_positions

    def __len__(self) -> int:
        return len(self.sequences)
