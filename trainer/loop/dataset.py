"""Batches by row number: a corpus's sequences for fine-tuning, a cache's sequences and targets for distillation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from cache_builder.cache.reader import Cache
from cache_builder.capture.losses import Sequences
from cache_builder.data.batching import Batch, collate
from cache_builder.data.packing import Packing, collate_packed
from cache_builder.targets.tensors import to_torch


class Rows(Dataset[Any]):
    """A corpus's sequences, without a teacher: plain cross-entropy."""

    def __init__(self, corpus: Sequences, sample_ids: Sequence[str], pad_id: int) -> None:
        self.corpus, self.sample_ids, self.pad_id = corpus, sample_ids, pad_id
        self.packing: Packing | None = None
        """How the sequences of a batch share rows; None pads."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitems__(self, items: list[tuple[str | None, int]]) -> dict[str, Any]:
        """Return one batch; `items` are (teacher, row) pairs with one and the same teacher."""
        rows = [row for _, row in items]
        return {
            **self._collate([self.corpus.sequence(row) for row in rows]),
            "rows_B": torch.tensor(rows),
            "divergence_weight_B": torch.zeros(len(rows)),
        }

    def _collate(self, sequences: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
        if self.packing is None:
            return collate(sequences, self.pad_id)
        return collate_packed(sequences, self.pad_id, self.packing)


class CachedRows(Rows):
    """A cache's sequences with what the stage's checkpoint says at each of their positions."""

    def __init__(self, cache: Cache, pad_id: int, weights_of: Callable[[str], np.ndarray]) -> None:
        super().__init__(cache.corpus, cache.corpus.sample_ids, pad_id)
        self.cache, self.weights_of = cache, weights_of

    def __getstate__(self) -> dict[str, Any]:
        """Send a worker that is not forked the weights themselves; what finds them cannot be pickled."""
        weights = {name: self.weights_of(name) for name in self.cache.checkpoints}
        return {**self.__dict__, "weights_of": weights.__getitem__}

    def __getitems__(self, items: list[tuple[str | None, int]]) -> dict[str, Any]:
        teacher = items[0][0]
        self.cache.prefetch(teacher, [row for _, row in items])
        batch = super().__getitems__(items)
        if teacher is None:
            return batch
        rows = batch["rows_B"].numpy()
        return {
            **batch,
            "divergence_weight_B": torch.from_numpy(self.weights_of(teacher)[rows].astype(np.float32)),
            "targets": to_torch(self.cache.read(teacher, rows)),
        }
