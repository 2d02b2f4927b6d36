"""The chunks read last, in a bounded number of bytes, and entries gathered from them."""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cache_builder.format.zarr_shards import ArrayReader


class ChunkMemory:
    """The chunks read last, up to a number of bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._chunks: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        """Leave the chunks behind: whoever unpickles this reads its own."""
        return {"limit_bytes": self.limit_bytes, "held_bytes": 0, "_chunks": OrderedDict()}

    def chunk(self, array: ArrayReader, number: int) -> np.ndarray:
        """Return a chunk of an array, from memory where it is held."""
        key = (array.key, number)
        if key in self._chunks:
            self._chunks.move_to_end(key)
            return self._chunks[key]
        return self._hold(key, array.chunk(number))

    def fetch(self, wanted: Sequence[tuple[ArrayReader, int]], threads: int) -> None:
        """Read chunks that will be asked for next, several at once, as long as they fit."""
        missing: dict[tuple[str, int], tuple[ArrayReader, int]] = {}
        room = self.limit_bytes
        for array, number in wanted:
            key = (array.key, number)
            room -= array.chunk_bytes
            if room < 0:
                break
            if key in self._chunks:
                self._chunks.move_to_end(key)
            else:
                missing[key] = array, number
        if len(missing) > 1:
            with ThreadPoolExecutor(min(threads, len(missing))) as pool:
                chunks = pool.map(lambda chunk: chunk[0].chunk(chunk[1]), missing.values())
                for key, values in zip(missing, chunks, strict=True):
                    self._hold(key, values)

    def _hold(self, key: tuple[str, int], values: np.ndarray) -> np.ndarray:
        self._chunks[key] = values
        self.held_bytes += values.nbytes
        while self.held_bytes > self.limit_bytes and len(self._chunks) > 1:
            self.held_bytes -= self._chunks.popitem(last=False)[1].nbytes
        return values

    def gather(self, array: ArrayReader, spans: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return the entries [start, end) of the last axis for every span, one after another."""
        chunk_size = array.spec.chunk
        if len(spans) == 1:
            start, end = spans[0]
            number, offset = divmod(start, chunk_size)
            if start < end <= (number + 1) * chunk_size:  # as nearly always where a row is read alone
                return self.chunk(array, number)[..., offset : offset + end - start].copy()
        total = sum(end - start for start, end in spans)
        values = np.empty((*array.spec.shape[:-1], total), array.spec.numpy_dtype)
        at = 0
        for start, end in spans:
            while start < end:
                number, offset = divmod(start, chunk_size)
                part = self.chunk(array, number)[..., offset : offset + end - start]
                values[..., at : at + part.shape[-1]] = part
                at += part.shape[-1]
                start += part.shape[-1]
        return values


def chunks_of_spans(array: ArrayReader, spans: Sequence[tuple[int, int]]) -> list[tuple[ArrayReader, int]]:
    """Return the chunks of an array that hold the entries [start, end) of every span, each once, in order of need."""
    size = array.spec.chunk
    numbers = (number for start, end in spans for number in range(start // size, -(-end // size)))
    return [(array, number) for number in dict.fromkeys(numbers)]
