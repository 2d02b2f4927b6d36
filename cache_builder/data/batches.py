"""How sequences become batches: padded, or packed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cache_builder.data.batching import Batch, collate, plan_batches
from cache_builder.data.packing import Packing, collate_packed, plan_packed


@dataclass(frozen=True)
class Batching:
    """What makes batches of sequences."""

    pad_id: int
    tokens: int
    """Of a batch at most, padding included."""
    packing: Packing | None = None
    """None pads."""

    def plan(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Group sequences by their lengths: i64 indices into them, every one once."""
        if self.packing is None:
            return plan_batches(lengths, self.tokens)
        return plan_packed(lengths, self.tokens, self.packing)

    def collate(self, sequences: Sequence[tuple[np.ndarray, np.ndarray]]) -> Batch:
        """Make one batch of (token ids [T], completion mask [T]) pairs."""
        if self.packing is None:
            return collate(sequences, self.pad_id)
        return collate_packed(sequences, self.pad_id, self.packing)
