"""One array on disk: Zarr v3's sharding codec, in the one shape that this format uses, read and written directly.

    <array>/zarr.json        shape, data type, shard and chunk size; plain zarr-python opens it
    <array>/c/[0/]<shard>    chunk │ chunk │ … │ index (offset u64, length u64 per chunk) │ crc32c of the index
                             chunk = zstd(little-endian bytes) │ crc32c; edge chunks are padded with ones

Only the last axis is cut. Going through zarr-python costs about 2.7 ms per read and returns fill values for what is
missing; here a read is a range request, and whatever is missing or was exchanged raises.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs.checksum32 import CRC32C
from numcodecs.zstd import Zstd

from cache_builder.errors import CacheDamagedError
from cache_builder.format.indented import indented
from cache_builder.format.manifest import MAX_COUNT
from cache_builder.storage.base import Ranges

CRC_BYTES = 4
DTYPES = {"uint8": "|u1", "uint16": "<u2", "uint32": "<u4", "int64": "<i8", "float32": "<f4", "float64": "<f8"}
ABSENT = np.uint64(2**64 - 1)
MAX_CHUNK_BYTES = 1 << 28
"""What a chunk may be in memory: a kilobyte of zstd may claim to hold any number of bytes."""
VECTOR_CHUNK, VECTOR_SHARD = 1 << 14, 1 << 20


@dataclass(frozen=True)
class ArraySpec:
    """Shape, data type and layout of one array; `shard` and `chunk` count entries of the last axis."""

    shape: tuple[int, ...]
    dtype: str
    shard: int = VECTOR_SHARD
    chunk: int = VECTOR_CHUNK
    level: int = 3

    @property
    def length(self) -> int:
        """Entries of the last axis."""
        return self.shape[-1]

    @property
    def n_shards(self) -> int:
        return -(-self.length // self.shard)

    @property
    def numpy_dtype(self) -> np.dtype:
        return np.dtype(DTYPES[self.dtype])

    @property
    def fill(self) -> np.ndarray:
        """What pads an edge chunk: every bit set, which lies outside any vocabulary and is no number in a float."""
        return np.full(self.numpy_dtype.itemsize, 255, np.uint8).view(self.numpy_dtype)[0]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a whole chunk in memory."""
        return math.prod(self.shape[:-1]) * self.chunk * self.numpy_dtype.itemsize

    def shard_key(self, shard: int) -> str:
        """Name of a shard's file below the array."""
        return "/".join(["c", *["0"] * (len(self.shape) - 1), str(shard)])

    def span(self, shard: int) -> tuple[int, int]:
        """First and last + 1 entry of a shard."""
        return shard * self.shard, min(self.length, (shard + 1) * self.shard)


def array_metadata(spec: ArraySpec, attributes: dict[str, Any] | None = None) -> bytes:
    """Return the array's zarr.json."""
    codecs: list[dict[str, Any]] = [
        {"name": "bytes", "configuration": {"endian": "little"}}
        if spec.numpy_dtype.itemsize > 1
        else {"name": "bytes"},
        {"name": "zstd", "configuration": {"level": spec.level, "checksum": False}},
        {"name": "crc32c"},
    ]
    index_codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {
        "chunk_shape": [*spec.shape[:-1], spec.chunk],
        "codecs": codecs,
        "index_codecs": index_codecs,
        "index_location": "end",
    }
    is_float = spec.dtype.startswith("float")
    fill_value: Any = "0x" + "ff" * spec.numpy_dtype.itemsize if is_float else int(spec.fill)
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(spec.shape),
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [*spec.shape[:-1], spec.shard]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": attributes or {},
        "storage_transformers": [],
    }
    return (indented(document) + "\n").encode()


def parse_array_metadata(data: bytes, where: str) -> tuple[ArraySpec, dict[str, Any]]:
    """Read a zarr.json that `array_metadata` wrote: (layout, attributes).

    Raises:
        CacheDamagedError: anything in it is not as written.
    """
    try:
        document = json.loads(data)
        sharding = document["codecs"][0]["configuration"]
        _check_numbers(document, sharding)
        spec = ArraySpec(
            shape=tuple(document["shape"]),
            dtype=document["data_type"],
            shard=document["chunk_grid"]["configuration"]["chunk_shape"][-1],
            chunk=sharding["chunk_shape"][-1],
            level=sharding["codecs"][1]["configuration"]["level"],
        )
        attributes = document["attributes"]
        intact = array_metadata(spec, attributes) == data
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else repr(error)[:300]
        raise CacheDamagedError(f"{where} is damaged: not the description of an array ({reason})") from None
    if not intact:
        raise CacheDamagedError(f"{where} is damaged: it is not in the form in which this format writes it")
    return spec, attributes


def _check_numbers(document: dict[str, Any], sharding: dict[str, Any]) -> None:
    """Refuse what Python would take for a size and is none: 12.0, true, a number below zero."""
    shard = document["chunk_grid"]["configuration"]["chunk_shape"]
    chunk = sharding["chunk_shape"]
    sizes = [*document["shape"], *shard, *chunk]
    if any(type(size) is not int or not 0 <= size < MAX_COUNT for size in sizes):
        raise ValueError("a size is no whole number from 0 to 2⁶²")
    if not 1 <= len(document["shape"]) <= 2 or not 0 < chunk[-1] <= shard[-1] or shard[-1] % chunk[-1]:
        raise ValueError("its axes or chunks are not those of any array of this format")
    if document["data_type"] not in DTYPES or type(sharding["codecs"][1]["configuration"]["level"]) is not int:
        raise ValueError("its data type or level is none of this format")


@dataclass(frozen=True)
class EncodedShard:
    """A shard's bytes, and the crc32c of each chunk that it holds, in order."""

    data: bytes
    chunk_crcs: list[int]


def encode_shard(spec: ArraySpec, values: np.ndarray) -> EncodedShard:
    """Encode the entries of one shard, [..., entries]."""
    codec = Zstd(level=spec.level)
    entries = values.shape[-1]
    index = np.full((spec.shard // spec.chunk, 2), ABSENT, "<u8")
    blocks: list[bytes] = []
    crcs: list[int] = []
    offset = 0
    for chunk, start in enumerate(range(0, entries, spec.chunk)):
        block = np.full((*spec.shape[:-1], spec.chunk), spec.fill, spec.numpy_dtype)
        part = values[..., start : start + spec.chunk]
        block[..., : part.shape[-1]] = part
        compressed = bytes(codec.encode(block))
        crc = crc32c(compressed)
        blocks += [compressed, crc.to_bytes(CRC_BYTES, "little")]
        crcs.append(crc)
        index[chunk] = offset, len(compressed) + CRC_BYTES
        offset += len(compressed) + CRC_BYTES
    index_bytes = index.tobytes()
    blocks += [index_bytes, crc32c(index_bytes).to_bytes(CRC_BYTES, "little")]
    return EncodedShard(b"".join(blocks), crcs)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of `data`."""
    return int(CRC32C.checksum(data, 0)) & 0xFFFFFFFF


class ArrayReader:
    """Reads whole chunks of one array; keeps no data, only the shards' indexes.

    `chunk_crcs(shard)` gives what the ledger says of each chunk, so that a shard exchanged for another, itself
    intact one is noticed; `most` is the largest value that an entry may have.
    """

    def __init__(
        self,
        store: Ranges,
        key: str,
        spec: ArraySpec,
        chunk_crcs: Callable[[int], list[int]],
        most: int | None = None,
    ) -> None:
        self.store, self.key, self.spec, self.most = store, key, spec, most
        self.chunk_crcs = chunk_crcs
        self.n_chunks = -(-spec.length // spec.chunk)
        self._chunks_per_shard = spec.shard // spec.chunk
        self._indexes: dict[int, list[tuple[int, int]]] = {}

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a whole chunk in memory."""
        return self.spec.chunk_bytes

    @property
    def max_stored_bytes(self) -> int:
        """The most that a chunk takes in its shard: what zstd makes of noise, and the checksum."""
        return self.chunk_bytes + self.chunk_bytes // 128 + 1024 + CRC_BYTES

    def chunk(self, number: int) -> np.ndarray:
        """Return chunk `number`, [..., entries]; the last one is as long as the array's rest.

        Raises:
            CacheDamagedError: its bytes are missing or not those that were committed.
        """
        shard, within = divmod(number, self._chunks_per_shard)
        key = f"{self.key}/{self.spec.shard_key(shard)}"
        offset, size = self._index(shard, key)[within]
        if not CRC_BYTES < size <= self.max_stored_bytes or offset >= MAX_COUNT:
            raise CacheDamagedError(
                f"{self.store.where(key)} is damaged: its index gives chunk {within} {size:,} bytes at {offset:,}"
            )
        data = self.store.read_range(key, offset, size)
        payload, crc = data[:-CRC_BYTES], int.from_bytes(data[-CRC_BYTES:], "little")
        recorded = self.chunk_crcs(shard)[within]
        if crc32c(payload) != crc:
            raise CacheDamagedError(f"{self.store.where(key)} is damaged: chunk {within} fails its checksum")
        if crc != recorded:
            raise CacheDamagedError(
                f"{self.store.where(key)} is damaged: chunk {within} is not the one that was committed "
                f"(crc32c {crc:08x}, the ledger has {recorded:08x})"
            )
        values = self._decoded(payload, key, within)
        entries = min(self.spec.chunk, self.spec.length - number * self.spec.chunk)
        values = values.reshape(*self.spec.shape[:-1], self.spec.chunk)[..., :entries]
        # Here and not where entries are used: a chunk is read once, and used by many batches.
        if self.most is not None and values.max(initial=0) > self.most:
            raise CacheDamagedError(f"{self.store.where(key)} is damaged: it holds {values.max():,} > {self.most:,}")
        return values

    def _decoded(self, payload: bytes, key: str, within: int) -> np.ndarray:
        """Decompress a chunk into the bytes that it must have, never more whatever its header claims."""
        buffer = np.empty(self.chunk_bytes, np.uint8)
        try:
            Zstd().decode(payload, out=buffer)
        except (RuntimeError, ValueError, MemoryError) as error:
            raise CacheDamagedError(
                f"{self.store.where(key)} is damaged: chunk {within} is not {self.chunk_bytes:,} bytes ({error})"
            ) from None
        buffer.flags.writeable = False  # it is handed out again and again
        return buffer.view(self.spec.numpy_dtype)

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield every chunk in order."""
        for number in range(self.n_chunks):
            yield self.chunk(number)

    def all(self) -> np.ndarray:
        """Return the whole array."""
        if not self.n_chunks:
            return np.empty(self.spec.shape, self.spec.numpy_dtype)
        return np.concatenate(list(self.chunks()), axis=-1)

    def _index(self, shard: int, key: str) -> list[tuple[int, int]]:
        if shard not in self._indexes:
            size = self._chunks_per_shard * 16 + CRC_BYTES
            if size > MAX_CHUNK_BYTES:
                raise CacheDamagedError(f"{self.store.where(key)} is damaged: its index would have {size:,} bytes")
            data = self.store.read_tail(key, size)
            if crc32c(data[:-CRC_BYTES]) != int.from_bytes(data[-CRC_BYTES:], "little"):
                raise CacheDamagedError(f"{self.store.where(key)} is damaged: its chunk index fails its checksum")
            start, end = self.spec.span(shard)
            used = -(-(end - start) // self.spec.chunk)
            index = np.frombuffer(data[:-CRC_BYTES], "<u8").reshape(-1, 2)[:used]
            if (index == ABSENT).any() or len(self.chunk_crcs(shard)) != used:
                raise CacheDamagedError(f"{self.store.where(key)} is damaged: its index misses chunks")
            self._indexes[shard] = [(int(offset), int(length)) for offset, length in index]
        return self._indexes[shard]
