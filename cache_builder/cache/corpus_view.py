"""The sequences inside a cache; offsets are in memory, all else is read when asked for."""

from collections.abc import Iterable

import numpy as np

from cache_builder.cache.chunk_cache import ChunkMemory, chunks_of_spans
from cache_builder.errors import CacheDamagedError
from cache_builder.format.manifest import CORPUS, Manifest
from cache_builder.format.zarr_shards import ArrayReader
from cache_builder.positions import spans_of
from cache_builder.sequences import SampleIds


class CachedCorpus:
    """The tokenised sequences inside a cache, by row.

    `token_offsets` and `position_offsets` are i64 [n+1]: where each row's tokens and positions begin.
    """

    def __init__(self, arrays: dict[str, ArrayReader], memory: ChunkMemory, manifest: Manifest, url: str) -> None:
        self._arrays, self._memory, self._url = arrays, memory, url
        self.fingerprint = manifest.corpus.fingerprint
        self.token_offsets = self._offsets("token_offsets", manifest.corpus.tokens)
        self.position_offsets = self._offsets("position_offsets", manifest.corpus.positions)
        self.sample_ids = CachedSampleIds(arrays, memory, f"{url}/{CORPUS}")

    def _offsets(self, name: str, total: int) -> np.ndarray:
        offsets = self._arrays[name].all()
        if offsets[0] != 0 or offsets[-1] != total or (offsets[1:] < offsets[:-1]).any():
            raise CacheDamagedError(f"{self._url}/{CORPUS}/{name} is damaged: it does not rise from 0 to {total:,}")
        return offsets

    def __len__(self) -> int:
        return len(self.token_offsets) - 1

    @property
    def n_positions(self) -> int:
        return int(self.position_offsets[-1])

    def sequence_positions(self, row: int) -> int:
        """Return how many positions a row has."""
        return int(self.position_offsets[row + 1] - self.position_offsets[row])

    def chunks_of(self, rows: Iterable[int]) -> list[tuple[ArrayReader, int]]:
        """Return the chunks that hold the tokens and the masks of these rows."""
        spans = spans_of(self.token_offsets, rows)
        return [chunk for name in ("tokens", "completion") for chunk in chunks_of_spans(self._arrays[name], spans)]

    def sequence(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a row's token ids, u32 [T], and completion mask, bool [T]."""
        span = spans_of(self.token_offsets, [row])
        tokens = self._memory.gather(self._arrays["tokens"], span)
        completion = self._memory.gather(self._arrays["completion"], span)
        if np.count_nonzero(completion[1:]) != self.sequence_positions(row):
            raise CacheDamagedError(
                f"{self._url}/{CORPUS} is damaged: the completion of sequence {row} does not have its positions"
            )
        return tokens, completion.view(np.bool_)

    def sequences(self, rows: Iterable[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return `sequence(row)` of each row."""
        return [self.sequence(row) for row in rows]


class CachedSampleIds(SampleIds):
    """Ids in a cache's arrays."""

    def __init__(self, arrays: dict[str, ArrayReader], memory: ChunkMemory, where: str) -> None:
        self._text, self._offsets, self._memory = arrays["sample_ids"], arrays["sample_id_offsets"], memory
        self._where = where

    def __len__(self) -> int:
        return self._offsets.spec.length - 1

    def read(self, row: int) -> bytes:
        start, end = map(int, self._memory.gather(self._offsets, [(row, row + 2)]))
        length = self._text.spec.length
        if not 0 <= start <= end <= length or (row + 1 == len(self) and end != length):
            raise CacheDamagedError(f"{self._where}/sample_id_offsets is damaged: row {row} has {start:,} to {end:,}")
        text = self._memory.gather(self._text, [(start, end)]).tobytes()
        try:
            text.decode()
        except UnicodeDecodeError:
            raise CacheDamagedError(f"{self._where}/sample_ids is damaged: the id of row {row} is no UTF-8") from None
        return text
