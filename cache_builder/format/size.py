"""How many files and bytes a cache will have, before anything is built: pure functions of its sizes.

    array        [planes, entries]     entries ─▶ chunks ─▶ shards, one file each, and a zarr.json
    files        exact
    raw bytes    exact: what the arrays hold before compression, edge chunks not padded
    max bytes    never more than this on disk: every chunk stored as it is, checksums, index; the ledgers too
    ledger       JSON in a group's zarr.json, read whole when a cache is opened: an entry per file, a number per chunk

What compression saves depends on the teacher: tools/results/cache_curve.csv has what was measured.
"""

from dataclasses import dataclass

from cache_builder.format.manifest import CorpusGroup, LedgerEntry, seal
from cache_builder.format.records import RecordLayout
from cache_builder.format.zarr_shards import CRC_BYTES, VECTOR_CHUNK, VECTOR_SHARD

INDEX_BYTES = 16
"""Of a shard's index, per chunk."""
CHUNK_OVERHEAD_BYTES = 64
"""More than zstd adds to a chunk that does not compress and is below 128 KiB; above, 1 byte in 256."""
PADDED_ROW_BYTES = 16
"""More than zstd needs for a plane's padding in an edge chunk, which is one long run."""
METADATA_BYTES = 2048
"""More than any array's zarr.json or a manifest has."""
SAMPLE_ID_BYTES = 16
"""Bytes of an example's id, where nothing is known of them: an assumption."""


@dataclass(frozen=True)
class ArraySize:
    """One array of a cache."""

    name: str
    row_bytes: int
    """Bytes of one entry of the last axis, all planes together."""
    entries: int
    shard: int = VECTOR_SHARD
    chunk: int = VECTOR_CHUNK
    planes: int = 1

    @property
    def shards(self) -> int:
        return -(-self.entries // self.shard)

    @property
    def chunks(self) -> int:
        return -(-self.entries // self.chunk)

    @property
    def files(self) -> int:
        """One per shard, and zarr.json."""
        return self.shards + 1

    @property
    def raw_bytes(self) -> int:
        return self.entries * self.row_bytes

    @property
    def max_bytes(self) -> int:
        """Upper bound of what lies on disk, ledger entries included."""
        return self.max_shard_bytes + METADATA_BYTES + self.ledger_bytes

    @property
    def max_shard_bytes(self) -> int:
        """Upper bound of its shards."""
        padded = PADDED_ROW_BYTES * self.planes if self.entries % self.chunk else 0
        data = self.raw_bytes + self.raw_bytes // 256 + padded + self.chunks * (CHUNK_OVERHEAD_BYTES + CRC_BYTES)
        index = self.shards * (self.shard // self.chunk * INDEX_BYTES + CRC_BYTES)
        return data + index

    @property
    def ledger_bytes(self) -> int:
        """About: what the ledger in the group's zarr.json says of this array; numbers have their usual digits."""
        return _ledger_bytes(self.shards, self.chunks)


@dataclass(frozen=True)
class CacheSize:
    """What a cache of N checkpoints consists of."""

    sequences: int
    tokens: int
    positions: int
    checkpoints: int
    top_k: int
    tail_samples: int
    shard_positions: int
    chunk_positions: int
    probe_sequences: int
    probe_positions: int
    probe_top_k: int
    tail_blocks: int = 0
    sample_id_bytes: int | None = None
    """Of all ids together; None where they are not known."""

    @property
    def record_bytes(self) -> int:
        """Bytes of one position before compression: ids, log-probabilities, tail samples and blocks, three scalars."""
        return record_bytes(self.top_k, self.tail_samples, self.tail_blocks)

    @property
    def records(self) -> ArraySize:
        """The targets of one checkpoint."""
        planes = self.record_bytes
        return ArraySize("records", planes, self.positions, self.shard_positions, self.chunk_positions, planes)

    @property
    def corpus(self) -> list[ArraySize]:
        """What is stored once: the sequences."""
        offsets = self.sequences + 1
        ids = SAMPLE_ID_BYTES * self.sequences if self.sample_id_bytes is None else self.sample_id_bytes
        return [
            ArraySize("tokens", 4, self.tokens),
            ArraySize("completion", 1, self.tokens),
            ArraySize("token_offsets", 8, offsets),
            ArraySize("position_offsets", 8, offsets),
            ArraySize("sample_ids", 1, ids),
            ArraySize("sample_id_offsets", 8, offsets),
        ]

    @property
    def probe(self) -> list[ArraySize]:
        """What is stored once: on which sequences and ids checkpoints are compared."""
        r = self.probe_top_k
        return [
            ArraySize("rows", 8, min(self.probe_sequences, self.sequences)),
            ArraySize("ids", 4 * r, self.probe_positions, planes=r),
        ]

    @property
    def checkpoint(self) -> list[ArraySize]:
        """What each checkpoint adds."""
        r = self.probe_top_k
        return [
            self.records,
            ArraySize("loss", 8, self.sequences),
            ArraySize("probe_logp", 2 * r, self.probe_positions, planes=r),
            ArraySize("probe_log_tail", 4, self.probe_positions),
        ]

    @property
    def files(self) -> int:
        """Files of the complete cache: arrays, a zarr.json per group, and those of the cache and of `checkpoints`."""
        groups = [self.corpus, self.probe, *[self.checkpoint] * self.checkpoints]
        return 2 + sum(1 + sum(array.files for array in group) for group in groups)

    @property
    def max_bytes(self) -> int:
        """Upper bound of all files together."""
        groups = [self.corpus, self.probe, *[self.checkpoint] * self.checkpoints]
        return METADATA_BYTES * (len(groups) + 2) + sum(array.max_bytes for group in groups for array in group)

    @property
    def ledger_bytes(self) -> int:
        """JSON that opening the cache reads, about."""
        groups = [self.corpus, self.probe, *[self.checkpoint] * self.checkpoints]
        return sum(array.ledger_bytes for group in groups for array in group)


def record_bytes(top_k: int, tail_samples: int, tail_blocks: int = 0) -> int:
    """Return the bytes of one position before compression."""
    edges = tuple(range(tail_blocks + 1)) if tail_blocks else ()
    return RecordLayout(top_k, tail_samples, 1, edges).n_planes


def recommended_layout(positions: int) -> tuple[int, int]:
    """Return (shard_positions, chunk_positions) that keep a checkpoint's ledger to some hundred MB at 10¹² positions.

    The defaults up to 2³⁰ positions; beyond, shards and chunks grow fourfold at a time, up to 2²² and 2¹⁶: a shard's
    targets are held in memory while it is built, and a chunk is the least that is read.
    """
    shard, chunk = 1 << 16, 1 << 12
    while positions > shard << 14 and shard < 1 << 22:
        shard *= 4
        chunk = min(chunk * 4, 1 << 16)
    return shard, chunk


def _ledger_bytes(shards: int, chunks: int) -> int:
    def size(files: int, crcs: int) -> int:
        entry = LedgerEntry(bytes=5_000_000, sha256="0" * 64, chunk_crc32c=[4_000_000_000] * crcs)
        return len(seal(CorpusGroup(files={f"records/c/0/{10_000 + number}": entry for number in range(files)})))

    per_chunk = size(1, 2) - size(1, 1)
    per_shard = size(2, 1) - size(1, 1) - per_chunk
    return (shards + 1) * per_shard + chunks * per_chunk
